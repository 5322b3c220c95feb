"""Files of pruning states: both states come back; foreign files are refused; files that are written badly."""

import errno
import json
import os

import keras
import numpy as np
import pytest

from keras_sensprune import Block, PruneAtEpochEnd, Sensitivity
from keras_sensprune import archive as archives
from keras_sensprune.errors import ArgumentError, DataError
from keras_sensprune.training.sidecar import SideCar

from .sidecars import at_epoch, contents, problem, session


@pytest.mark.parametrize("epoch", [2, 3])
def test_both_states_come_back_by_the_number_of_updates(saved, epoch):
    path, _, found = saved
    fresh = session()
    fresh.model.optimizer.iterations.assign(10 * epoch)
    keras.utils.set_random_seed(7)  # another global seed than that of the file
    records = SideCar(path).begin(fresh, epoch)
    assert contents(fresh) == found[epoch]
    assert [record.epoch for record in records] == list(range(epoch))
    assert records == tuple(at_epoch(session(), epoch))


def test_the_file_can_be_looked_at_with_numpy_and_holds_no_pickle(saved):
    path, one, _ = saved
    with np.load(path, allow_pickle=False) as file:
        header = json.loads(file[archives.HEADER])
        mask = np.unpackbits(file["1/mask/0"])[:48].reshape(8, 6)
        np.testing.assert_array_equal(file["1/sensitivity/1"], one.weights[1].sensitivity.numpy())
    np.testing.assert_array_equal(mask, one.weights[0].mask.numpy())
    assert header["labels"] == [weight.label for weight in one.weights]
    assert [state["epochs"] for state in header["states"]] == [2, 3]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (dict(units=(6,)), "it describes 2 pruned weights, but the model has 1."),
        (dict(units=(6, 5)), "'shape': [6, 4], 'dtype': 'float32', 'curved': True}, but that of the model ("),
        (dict(dtype="float64"), "its pruned weight 0 (sequential"),
        (dict(structure=Block(1, 4)), "it was made with structure weight, but this run has Block(1, 4)."),
        (dict(sensitivity=Sensitivity("unspecific", every=7)), "it was made with sensitivity {'kind': 'unspecific'"),
        (dict(sensitivity=Sensitivity("unspecific", output_fn=lambda m, x: m(x))), "'output_fn': False"),
    ],
    ids=["fewer weights", "another shape", "another dtype", "another structure", "another pace", "an output_fn"],
)
@pytest.mark.filterwarnings("ignore:The inputs of .* are not a multiple of 4")
def test_files_of_another_model_or_configuration_are_refused(saved, other, told):
    path, _, _ = saved
    one = session(**other)
    at_epoch(one, 3)
    assert told in problem(path, one)


def test_files_of_another_time_are_refused_with_the_way_out(saved):
    path, one, _ = saved
    at_epoch(one, 3)
    assert problem(path, one, epoch=0) == (
        "its state after 30 updates, as many as the model has made, belongs to the beginning of epoch 3, but "
        "training starts at epoch 0. To go on, train with fit(..., initial_epoch=3); for another run, delete the file "
        "or choose another path. If BackupAndRestore chose the epoch, the "
        'process died between its two files: write "epoch": 3 into its training_metadata.json.'
    )
    at_epoch(one, 1)
    assert problem(path, one, epoch=1) == (
        "it holds the state after 20 updates (epoch 2) and 30 updates (epoch 3), but the model has made 10 and "
        "training starts at epoch 1. To go on, restore the model as it was then: with BackupAndRestore, or load it and "
        "pass initial_epoch to fit. To begin anew, delete the file or choose another path."
    )


def test_a_missing_file_is_a_new_beginning_at_epoch_0_only(tmp_path):
    one, path = session(), tmp_path / "state"
    one.model.optimizer.iterations.assign(1000)  # trained before, without pruning
    assert SideCar(path).begin(one, 0) is None
    assert problem(path, one, epoch=2) == (
        "there is no such file, but training starts at epoch 2, so it goes on from a run whose pruning state should be "
        "in this file. Put it back; or train from epoch 0 to begin pruning anew."
    )
    assert os.listdir(tmp_path) == []


def test_the_file_of_another_run_is_not_overwritten(saved):
    path, one, _ = saved
    before = path.read_bytes()
    with pytest.raises(DataError, match="belongs to another run"):
        SideCar(path).save(one, 1, [])
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["", "folder", "absent/state", "file/state", "nul\0", "folder/"])
def test_paths_that_cannot_be_files_are_refused_before_training(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    path = f"{tmp_path}/{place}" if place else ""
    with pytest.raises(ArgumentError, match="Argument `state_path` must be the path of a file"):
        SideCar(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("path", [3, 2.5, ["a"]])
def test_what_is_no_path_is_refused_by_the_callback(path):
    with pytest.raises(ArgumentError) as caught:
        PruneAtEpochEnd(state_path=path)
    assert str(caught.value) == f"Argument `state_path` must be the path of a file. Received: {path!r}."


def test_a_folder_that_takes_no_file_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # the superuser may write everywhere, but nobody into /proc
        folder = "/proc"
    with pytest.raises(ArgumentError, match=r"No file can be made there .*Make the folder, or choose another"):
        SideCar(os.path.join(folder, "state"))


@pytest.mark.parametrize("step", ["write_array", "fsync", "replace"])
def test_a_full_disk_leaves_the_file_as_it_was(saved, monkeypatch, step):
    path, one, _ = saved
    before, car = path.read_bytes(), SideCar(path)
    car.begin(one, 3)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format if step == "write_array" else os, step, full)
        with pytest.raises(DataError) as caught:
            car.save(one, 4, at_epoch(one, 4))
    assert str(caught.value) == (
        f"{path}: the state could not be written (OSError: [Errno 28] No space left on device); the file is as it was "
        "before. Make room, and start the same run again: it goes on from there."
    )
    assert path.read_bytes() == before
    car.save(one, 4, at_epoch(one, 4))  # what was left over does not matter
    at_epoch(one, 3)
    assert len(SideCar(path).begin(one, 3)) == 3


def test_another_threshold_is_told(tmp_path):
    one, path = session(), tmp_path / "state"
    car = SideCar(path, threshold=0.1)
    car.save(one, 1, at_epoch(one, 1))
    with pytest.warns(UserWarning, match="was written with") as caught:
        SideCar(path, threshold=0.05).begin(one, 1)
    assert [str(w.message) for w in caught] == [f"{path} was written with threshold=0.1; from here on it is 0.05."]
