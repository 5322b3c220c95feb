"""Sessions whose contents tell the epoch, and pruning states that are written as they should not be."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest

from keras_sensprune import Sensitivity, SensitivityRegularizer
from keras_sensprune import archive as archives
from keras_sensprune.errors import DataError
from keras_sensprune.records import PruneRecord
from keras_sensprune.training.sidecar import SideCar
from keras_sensprune.training.snapshot import take_snapshot
from keras_sensprune.training.step import PruningSession
from tests.faults.formats import with_digest

RNG = np.random.default_rng(0)


def session(units=(6, 4), sensitivity=None, structure="weight", dtype="float32"):
    """A session of a small model; the first layer is smooth, so that a curvature is kept for it."""
    keras.utils.set_random_seed(0)
    r = SensitivityRegularizer(1e-2, order=2)
    layers = [keras.layers.Dense(n, "tanh", kernel_regularizer=r, dtype=dtype) for n in units]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dropout(0.5, seed=1)])
    model.compile("sgd", "mse")
    return PruningSession(model, sensitivity or Sensitivity("unspecific"), structure=structure)


def at_epoch(one, epoch):
    """The session as after `epoch` epochs of 10 updates, with contents that tell which epoch."""
    rng = np.random.default_rng(epoch)
    one.model.optimizer.iterations.assign(10 * epoch)
    for weight in one.weights:
        weight.mask.assign((rng.random(weight.mask.shape) < 0.5).astype("float32"))
        weight.sensitivity.assign(rng.random(weight.mask.shape))
        if weight.curvature is not None:
            weight.curvature.assign(rng.random(weight.mask.shape))
    one.rule.pace.refreshes.assign(3 + epoch)
    return [PruneRecord(e, 0.1, 80, 70, 60 - e, 0.5, ("a",)) for e in range(epoch)]


def contents(one):
    """All that a snapshot of the session holds."""
    found = take_snapshot(one, 0, [])
    arrays = {name: array.tolist() for name, array in found.arrays.items()}
    return arrays, found.counters, found.seeds, found.global_seed


def problem(path, one, epoch=3):
    """The message with which the file is refused; neither the session nor the file may have changed."""
    before = contents(one)
    with pytest.raises(DataError) as caught:
        SideCar(path).begin(one, epoch)
    assert contents(one) == before
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def reseal(path, change=None, members=None):
    """Writes the file anew with a right digest, after `change(header)` and with other members by name."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    if change is not None:
        header = json.loads(parts[archives.HEADER])
        header = change(header) or header
        parts[archives.HEADER] = json.dumps(header).encode()
    parts |= members or {}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.comment = b"0" * 64
        for name, content in parts.items():
            if content is not None:
                file.writestr(name, content)
    seal(path, buffer.getvalue()[:-64])


def seal(path, content):
    path.write_bytes(with_digest(content))


def npy(array, **settings):
    buffer = io.BytesIO()
    np.save(buffer, array, **settings)
    return buffer.getvalue()
