"""A small problem for the tests of planning: 60 examples of three classes, and the function that builds its model."""

from __future__ import annotations

import keras
import numpy as np

from keras_sensprune import SensitivityRegularizer

X = np.random.default_rng(7).normal(size=(60, 4)).astype("float32")
Y = np.argmax(X @ np.random.default_rng(8).normal(size=(4, 3)), axis=1).astype("int32")
WEIGHTS = 4 * 8 + 8 * 3


def build(strength, learning_rate=0.2):
    sparse = SensitivityRegularizer(strength)
    hidden = keras.layers.Dense(8, "relu", kernel_regularizer=sparse)
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3, kernel_regularizer=sparse)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A few steps only: tracing every new model would take most of the time.
    model.compile(keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"], run_eagerly=True)
    return model


class Counted:
    """`build`, with the arguments of its calls."""

    def __init__(self, function=build):
        self.function = function
        self.calls = []

    def __call__(self, *values):
        self.calls.append(values)
        return self.function(*values)


def never(*values):
    raise AssertionError("a model was built although an argument is wrong")
