"""Files of pruning states that are damaged, lie, or belong to something else; and files that are written badly."""

import errno
import io
import json
import os
import zipfile

import keras
import numpy as np
import pytest

from keras_sensprune import Block, PruneAtEpochEnd, Sensitivity, SensitivityRegularizer
from keras_sensprune import archive as archives
from keras_sensprune.errors import ArgumentError, DataError
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


def test_every_truncation_is_refused(saved):
    path, one, _ = saved
    whole = path.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 60), len(whole) - 64, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert problem(path, one).startswith("it is damaged: "), length
        assert path.stat().st_size == length


def test_one_flipped_bit_anywhere_is_refused(saved):
    path, one, _ = saved
    whole = path.read_bytes()
    before = contents(one)
    for position in range(
        0, len(whole), 7
    ):  # in every field of every part: none of them is 7 bytes apart from the next
        content = bytearray(whole)
        content[position] ^= 1 << (position % 8)
        path.write_bytes(content)
        with pytest.raises(DataError, match="it is damaged"):
            SideCar(path).begin(one, 3)
    assert contents(one) == before


@pytest.mark.parametrize("garbage", [b"", b"x", b"PK\x05\x06" + bytes(18), b"\x80\x04N.", os.urandom(500)])
def test_garbage_is_refused_with_and_without_a_right_digest(saved, garbage):
    path, one, _ = saved
    path.write_bytes(garbage)
    assert problem(path, one).endswith("or delete it and the checkpoints, and train from the beginning.")
    seal(path, garbage)
    assert problem(path, one).startswith("it cannot be read as a pruning state (")


def test_pickles_are_never_opened(saved):
    path, one, _ = saved
    opened = []

    class Trap:
        def __reduce__(self):
            return (opened.append, (1,))

    reseal(path, members={"1/sensitivity/0.npy": npy(np.array([Trap()] * 48, object), allow_pickle=True)})
    assert "1/sensitivity/0 is object of shape (48,), not float32 (8, 6)." in problem(path, one)
    assert not opened


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((8, 7), "f4"), "is float32 of shape (8, 7), not float32 (8, 6)"),
        (np.zeros((8, 6), "f8"), "is float64 of shape (8, 6), not float32 (8, 6)"),
        (np.zeros((8, 6), ">f4"), "is >f4 of shape (8, 6), not float32 (8, 6)"),
        (np.broadcast_to(np.float32(0), (8, 6, 10**4)), "is float32 of shape (8, 6, 10000), not float32 (8, 6)"),
    ],
)
def test_arrays_of_another_size_are_refused_before_memory_is_taken(saved, array, told):
    path, one, _ = saved
    reseal(path, members={"1/sensitivity/0.npy": npy(array)})
    assert f"1/sensitivity/0 {told}." in problem(path, one)


def test_arrays_that_claim_the_right_size_but_hold_another_are_refused(saved):
    path, one, _ = saved
    honest = npy(np.zeros((8, 6), "f4"))
    for lying in (honest[:-1], honest + b"x", honest[:-192]):
        reseal(path, members={"1/sensitivity/0.npy": lying})
        assert "1/sensitivity/0 claims shape (8, 6) of float32, 192 bytes, but holds" in problem(path, one)


def test_names_with_paths_are_not_followed(saved, tmp_path):
    path, one, found = saved
    evil = {"../evil.npy": b"x", "/evil.npy": b"x", "..\\evil": b"x", "1/../mask/0.npy": npy(np.zeros(6, "u1"))}
    reseal(path, members=evil)
    SideCar(path).begin(one, 3)  # they are not even looked at
    assert contents(one) == found[3]
    assert sorted(os.listdir(tmp_path)) == ["state"]
    reseal(path, members={"1/mask/0.npy": None, "/1/mask/0.npy": npy(np.zeros(6, "u1"))})
    assert "no item named '1/mask/0.npy'" in problem(path, one)


def set_in(*keys, value):
    def change(header):
        inner = header
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def nested(depth):
    return lambda header: {**header, "records": json.loads("[" * depth + "]" * depth)}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda header: [header], id="a list"),
        pytest.param(lambda header: "header", id="a string"),
        pytest.param(set_in("format", value=2), id="another format"),
        pytest.param(set_in("format", value="1"), id="format as text"),
        pytest.param(set_in("states", value=[]), id="no state"),
        pytest.param(set_in("states", value={}), id="states as object"),
        pytest.param(lambda header: {**header, "states": header["states"] * 2}, id="four states"),
        pytest.param(set_in("states", 1, value=None), id="a state that is null"),
        pytest.param(set_in("states", 1, "epochs", value=-3), id="negative epochs"),
        pytest.param(set_in("states", 1, "epochs", value=3.0), id="epochs as float"),
        pytest.param(set_in("states", 1, "epochs", value=True), id="epochs as boolean"),
        pytest.param(set_in("states", 1, "iterations", value="30"), id="iterations as text"),
        pytest.param(set_in("states", 1, "iterations", value=10**30), id="iterations beyond 64 bits"),
        pytest.param(set_in("states", 1, "records", value=4), id="more records than there are"),
        pytest.param(set_in("states", 1, "counters", value=[1, 2]), id="counters as list"),
        pytest.param(set_in("states", 1, "counters", "wait", value=None), id="a counter that is null"),
        pytest.param(set_in("states", 1, "counters", "wait", value=2**63), id="a counter beyond 64 bits"),
        pytest.param(set_in("states", 1, "counters", "more", value=1), id="a counter too many"),
        pytest.param(set_in("states", 1, "seeds", value=5), id="seeds as number"),
        pytest.param(set_in("states", 1, "seeds", value=[[1, "2"]]), id="a seed with text"),
        pytest.param(set_in("states", 1, "seeds", value=[[1]]), id="a seed too short"),
        pytest.param(set_in("states", 1, "seeds", value=[]), id="too few seeds"),
        pytest.param(set_in("states", 1, "global_seed", value=3), id="global seed as number"),
        pytest.param(set_in("records", value={}), id="records as object"),
        pytest.param(set_in("records", value=[1, 2, 3]), id="records as numbers"),
        pytest.param(set_in("records", 0, "nonzero", value="many"), id="a record with text for a number"),
        pytest.param(set_in("records", 0, "record", value="Evil"), id="a record of an unknown type"),
        pytest.param(set_in("records", 0, "record", value="Recipe"), id="a record of another type"),
        pytest.param(set_in("records", 0, "kept_by_floor", value=[1]), id="a label that is a number"),
        pytest.param(set_in("records", 0, "more", value=1), id="a record with a field too many"),
        pytest.param(nested(900), id="deeply nested"),
        pytest.param(set_in("threshold", value="0.1"), id="threshold as text"),
        pytest.param(set_in("description", value=None), id="no description"),
        pytest.param(set_in("description", "weights", value=3), id="weights as number"),
        pytest.param(set_in("description", "weights", 0, value=3), id="a weight as number"),
        pytest.param(set_in("description", "more", value=3), id="a description with a field too many"),
    ],
)
def test_malformed_headers_are_refused(saved, change):
    path, one, _ = saved
    reseal(path, change)
    assert problem(path, one).endswith("or delete it and the checkpoints, and train from the beginning.")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 10**6, b'{"format": ' + b"9" * 10**5 + b"}"])
def test_headers_that_are_no_json_are_refused(saved, text):
    path, one, _ = saved
    reseal(path, members={archives.HEADER: text})
    assert problem(path, one).startswith("it")


def test_headers_are_read_up_to_a_limit(saved, monkeypatch):
    path, one, _ = saved
    monkeypatch.setattr(archives, "LARGEST_HEADER", 100)
    assert problem(path, one).startswith("its header is longer than the allowed 100 bytes.")


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
        "training starts at epoch 0. Train with fit(..., initial_epoch=3). If BackupAndRestore chose the epoch, the "
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
