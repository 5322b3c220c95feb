"""Files of pruning states that are damaged or lie."""

import json
import os

import numpy as np
import pytest

from keras_sensprune import archive as archives
from keras_sensprune.errors import DataError
from keras_sensprune.training.sidecar import SideCar

from .sidecars import contents, npy, problem, reseal, seal


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
