"""Fixtures of the tests of training."""

from __future__ import annotations

import keras
import pytest

from keras_sensprune.training.sidecar import SideCar

from .sidecars import at_epoch, contents, session


@pytest.fixture
def float64():
    """Everything that is built in the test computes in float64."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(3)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(bytes of a file with the states of epochs 2 and 3, its session, contents of both)."""
    path, one, found = tmp_path_factory.mktemp("made") / "state", session(), {}
    car = SideCar(path)
    for epoch in (1, 2, 3):
        car.save(one, epoch, at_epoch(one, epoch))
        found[epoch] = contents(one)
    return path.read_bytes(), one, found


@pytest.fixture
def saved(made, tmp_path):
    """(path of such a file, its session at epoch 3, contents at both epochs)."""
    content, one, found = made
    path = tmp_path / "state"
    path.write_bytes(content)
    at_epoch(one, 3)
    return path, one, found
