"""A `sparsify` that was killed goes on where it was; what is not its file is refused."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from keras_sensprune import Budget, sparsify
from keras_sensprune.errors import DataError
from keras_sensprune.planning.progress import described
from tests.planning.two_classes import EPOCHS, Diary, coded, network, problem

layers = keras.layers


class Killed(Exception):
    """In the place of the death of a process."""


def test_a_killed_run_with_bytes_goes_to_the_target_that_it_had(tmp_path):
    def size_of(model):
        """Bytes by which the target is 35 weights for the dense network, and fewer for one that was pruned."""
        return coded(model) + grown[0]

    class Grow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            grown[0] = 50 if epoch == 2 else 0  # after the first round
            if epoch == 3 and kill:
                raise Killed

    grown, kill, found = [0], True, []
    for folder in (None, tmp_path, tmp_path):
        kill = folder is not None and not found[1:]
        try:
            arguments = {"size_of": size_of, "callbacks": [Grow()], "folder": folder, **EPOCHS}
            found.append(sparsify(network(), problem(), Budget(bytes=275), **arguments))
        except Killed:
            found.append(None)
    whole, killed, resumed = found
    assert killed is None
    assert [phase.nonzero for phase in whole.phases] == [140, 70, 35, 35]
    assert [phase.nonzero for phase in resumed.phases] == [140, 70, 35, 35]


def test_a_killed_run_goes_on_and_a_finished_one_returns_at_once(tmp_path):
    def kill(epoch):
        if epoch == 3:  # in the second round
            raise Killed

    budget, folder = Budget(sparsity=0.75), tmp_path / "run"
    with pytest.raises(Killed):
        sparsify(network(), problem(), budget, callbacks=[Diary(kill)], folder=folder, **EPOCHS)
    assert [path.name for path in folder.iterdir()] == ["sparsify.state"]
    model, diary, said = network(), Diary(), []
    result = sparsify(model, problem(), budget, callbacks=[diary], folder=folder, **{**EPOCHS, "say": said.append})
    assert said[0] == "going on after round 1"
    assert diary.epochs == [3, 4]  # the second round and the fine-tuning
    assert [phase.name for phase in result.phases] == ["dense", "round 1", "round 2", "fine-tune"]
    again, silent = network(), Diary()
    assert sparsify(again, problem(), budget, callbacks=[silent], folder=folder, **EPOCHS) == result
    assert silent.epochs == []
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    _assert_refused(folder, budget)


def _assert_refused(folder, budget):
    """What is not this run's intact file is refused, and left alone."""
    file = folder / "sparsify.state"
    content = file.read_bytes()
    with pytest.raises(DataError) as caught:
        sparsify(network(), problem(), dataclasses.replace(budget, sparsity=0.8), folder=folder, **EPOCHS)
    assert str(caught.value).startswith(f"{file}: it was made with budget ")
    assert "delete it to begin anew" in str(caught.value)
    other = keras.Sequential([keras.Input((12,)), layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    other.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    with pytest.raises(DataError, match="it was made with weights"):
        sparsify(other, problem(), budget, folder=folder, **EPOCHS)
    x, y = problem()
    slower = network(optimizer=keras.optimizers.Adam(0.01))
    summed = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    summed.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    rate = "optimizer config learning_rate 0.019999999552965164, but this run has 0.009999999776482582"
    reduction = "loss config reduction 'sum_over_batch_size', but this run has 'sum'"
    for model, data, what in ((slower, (x, y), rate), (summed, (x, y), reduction), (network(), (x, 1 - y), "data ")):
        with pytest.raises(DataError, match=f"it was made with {what}"):
            sparsify(model, data, budget, folder=folder, **EPOCHS)
    assert file.read_bytes() == content
    for damaged in (content[:-100], content[:50] + b"x" + content[51:], b"", b"foreign"):
        file.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            sparsify(network(), problem(), budget, folder=folder, **EPOCHS)
        assert str(file) in str(caught.value)
        assert file.read_bytes() == damaged


def test_what_was_compiled_is_described_alike_in_every_process():
    def own(y_true, y_pred):
        return keras.ops.mean((y_true - y_pred) ** 2)

    loss = {"a": own, "b": [keras.losses.MeanSquaredError(name="mse"), None, "mae"]}
    found = described(loss)
    assert found["a"] == "own"
    assert (found["b"][0]["class"], found["b"][1:]) == ("MeanSquaredError", [None, "mae"])
    assert found["b"][0]["config"]["reduction"] == "sum_over_batch_size"
    assert described(keras.optimizers.SGD(0.5))["config"]["learning_rate"] == 0.5
    assert json.loads(json.dumps(found)) == found
    assert described(object()) == "object"
