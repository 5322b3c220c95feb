"""A small problem for the tests of `sparsify`: two classes, a network of 140 weights, and what is looked at."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_sensprune import Budget, SensitivityRegularizer, sparsify
from keras_sensprune.errors import ArgumentError
from keras_sensprune.training.session import attached

layers = keras.layers
EPOCHS = {"dense_epochs": 2, "round_epochs": 1, "fine_epochs": 1, "batch_size": 50, "say": None}


def problem(examples=300):
    """Two classes, separated by the sum of two of twelve inputs."""
    x = np.random.default_rng(0).normal(size=(examples, 12)).astype("float32")
    return x, (x[:, 0] + x[:, 1] > 0).astype("int32")


def network(regularizer=None, optimizer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(10, "relu", kernel_regularizer=regularizer, name="hidden"),
            layers.Dense(2, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    return model


class Diary(keras.callbacks.Callback):
    """What a user's callback sees; `stop` is called at each epoch's end."""

    def __init__(self, stop=lambda epoch: None):
        super().__init__()
        self.epochs, self.rates, self.keys, self.stop = [], [], set(), stop

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)
        self.rates.append(float(self.model.optimizer.learning_rate.numpy()))
        self.keys |= set(logs)
        self.stop(epoch)


def state(model):
    """Everything of a model but its weights that `sparsify` touches."""
    return {
        "on layers": [getattr(layer, "kernel_regularizer", None) for layer in model.layers],
        "on variables": [variable.regularizer for variable in model.weights],
        "constraints": [variable.constraint for variable in model.weights],
        "optimizer": [variable.numpy().tolist() for variable in model.optimizer.variables],
        "loss": model.loss,
        "compiled": (model.compiled, id(model.optimizer)),
        "attached": attached(model),
        "hooks": [name for name in ("train_step", "compute_loss") if name in vars(model)],
    }


def assert_as_before(model, before):
    after = state(model)
    for name, value in before.items():
        assert after[name] == value, name


def coded(model):
    """A size like that of a sparse file: 5 bytes per nonzero weight, and a header."""
    return 100 + 5 * sum(int(np.count_nonzero(w)) for w in model.get_weights() if w.ndim == 2)


def zeros(model):
    return sum(int(np.sum(w == 0)) for w in model.get_weights() if w.ndim == 2)


def refused(changed):
    """What `sparsify` says of changed arguments; it must leave the model as it was."""
    model = network()
    weights = model.get_weights()
    arguments = {"data": problem(), "budget": Budget(error=1.0), **EPOCHS, **changed}
    with pytest.raises(ArgumentError) as caught:
        sparsify(model, arguments.pop("data"), arguments.pop("budget"), **arguments)
    for now, then in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)
    assert not any(isinstance(v.regularizer, SensitivityRegularizer) for v in model.weights)
    return str(caught.value)
