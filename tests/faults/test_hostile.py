"""Hostile files: refused with an error of ours that names the file, in bounded time and memory, and no code is run."""

import dataclasses
import io
import json
import os
import resource
import sys
import time
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from keras_sensprune import keras_file
from keras_sensprune.commands import read_examples
from keras_sensprune.errors import DataError
from keras_sensprune.keras_file import WEIGHTS, load_keras, read_weights
from tests.faults import runner
from tests.faults.formats import FORMATS, keras_files, outcome
from tests.faults.mutations import archived, members

# Each takes milliseconds (a start of a child for .keras); on a busy machine a hundred times that.
SECONDS_FOR_ALL = 60
COUNTS = {"state": 100, "npz": 60, "examples-npy": 60, "examples-npz": 60, "json": 100, "tflite": 60, "keras": 5}
COUNTS |= {"progress": 60, "recipe": 60}


@pytest.mark.filterwarnings("ignore")  # NumPy and Keras warn of some of the damage before they refuse
@pytest.mark.parametrize("name", COUNTS)
def test_damaged_files_are_accepted_or_refused(name, tmp_path):
    form, path = FORMATS[name], tmp_path / ("file" + FORMATS[name].suffix)
    seeds, found, begun = form.seeds(), [], time.perf_counter()
    for seed in seeds:
        path.write_bytes(seed)
        assert outcome(form, str(path)) == "accepted"
    for number in range(COUNTS[name]):
        path.write_bytes(form.inputs(seeds, number))
        found.append(outcome(form, str(path)))
    assert set(found) <= {"accepted", "refused"}
    assert found.count("refused") > COUNTS[name] / 3  # the damage is real
    assert time.perf_counter() - begun < SECONDS_FOR_ALL


def test_the_inputs_are_the_same_in_every_run():
    for name in ("npz", "json"):
        form = FORMATS[name]
        assert [form.inputs(form.seeds(), i) for i in range(20)] == [form.inputs(form.seeds(), i) for i in range(20)]
    assert keras_files()[0] == keras_files()[0]


@pytest.mark.slow
def test_damaged_weights_in_a_child():
    results = list(runner.run("keras-weights", 0, 200))
    assert [result.number for result in results] == list(range(200))
    assert all(runner.expected("keras-weights", result) for result in results)


def test_a_worker_that_is_ended_by_a_file_is_started_again(monkeypatch):
    """Input 2 ends the process, input 4 never ends."""
    script = (
        "import os, signal, sys, time\n"
        "for i in range(int(sys.argv[1]), int(sys.argv[2])):\n"
        "    if i == 2: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if i == 4: time.sleep(600)\n"
        "    print(i, 0.001, 0.0, 'refused', flush=True)\n"
    )
    monkeypatch.setattr(runner, "command", lambda name, a, b: [sys.executable, "-c", script, str(a), str(b)])
    monkeypatch.setattr(runner, "START", 5.0)  # seconds; a bare interpreter starts in some hundredths
    monkeypatch.setitem(FORMATS, "json", dataclasses.replace(FORMATS["json"], seconds=0.3))
    found = list(runner.run("json", 0, 6))
    assert [result.number for result in found] == list(range(6))
    assert found[2].outcome == "crash: SIGSEGV"
    assert found[4].outcome.startswith("no end within ")
    assert {result.outcome for result in found} - {found[2].outcome, found[4].outcome} == {"refused"}
    assert [result.number for result in found if not runner.expected("json", result)] == [2, 4]


def test_too_much_time_or_memory_is_not_as_expected():
    for seconds, megabytes in ((11.0, 0.0), (0.0, 300.0)):
        result = runner.judged("npz", runner.Result(0, seconds, megabytes, "refused"))
        assert not runner.expected("npz", result)


# ------------------------------------------------------------------ .keras files made by hand


@pytest.fixture(scope="module")
def honest():
    return members(keras_files()[0])


def refused(tmp_path, content, compression=zipfile.ZIP_STORED):
    """What `load_keras` says of an archive with this content, without the beginning."""
    path = tmp_path / "model.keras"
    path.write_bytes(content if isinstance(content, bytes) else archived(content, compression))
    with pytest.raises(DataError) as caught:
        load_keras(str(path))
    prefix = f"Cannot read {str(path)!r} as a Keras model: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def weights(fill):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        fill(file)
    return buffer.getvalue()


def bomb(file):
    file.create_dataset("bomb", (2**20, 2**10), "f4", chunks=(2**10, 2**10), compression="gzip")


def elsewhere(file):
    file.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def soft(file):
    file["x"] = h5py.SoftLink("/y")


def outward(file):
    file["x"] = h5py.ExternalLink("/etc/other.h5", "/y")


def circle(file):
    group = file.create_group("a")
    group["a"] = group


@pytest.mark.parametrize(
    ("fill", "reason"),
    [(bomb, "claims"), (elsewhere, "another file"), (soft, "is a link"), (outward, "is a link"), (circle, "circle")],
)
def test_weights_that_lead_astray_are_refused(honest, tmp_path, monkeypatch, fill, reason):
    assert reason in refused(tmp_path, {**honest, WEIGHTS: weights(fill)})


def test_weights_that_crash_hdf5_end_a_child_only(honest, tmp_path, monkeypatch):
    (tmp_path / "h5py.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    monkeypatch.setattr(keras_file, "child_environment", lambda: environment)
    assert refused(tmp_path, honest) == "its weights crash HDF5: the process was ended by SIGSEGV."


def test_weights_that_never_end_are_given_up(honest, tmp_path, monkeypatch):
    (tmp_path / "h5py.py").write_text("import time\ntime.sleep(600)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    monkeypatch.setattr(keras_file, "child_environment", lambda: environment)
    monkeypatch.setattr(keras_file, "TIMEOUT", 1.0)
    assert refused(tmp_path, honest) == "reading its weights did not end within 1 seconds."


@pytest.mark.parametrize("name", ["../x", "/etc/x", "assets/../../x", "..\\x", "C:x"])
def test_members_that_point_out_of_the_archive_are_refused(honest, tmp_path, name):
    assert refused(tmp_path, {**honest, name: b""}) == f"its member {name!r} points out of the archive."
    assert os.listdir(tmp_path) == ["model.keras"]


def test_bombs_are_refused_by_what_they_declare(honest, tmp_path):
    zeros, deflated = bytes(65 * 2**20), zipfile.ZIP_DEFLATED
    assert "unpacks to 68,157,440 bytes" in refused(tmp_path, {**honest, WEIGHTS: zeros}, deflated)
    assert "is larger than the allowed" in refused(tmp_path, {**honest, "config.json": zeros}, deflated)


def test_what_is_missing_double_or_no_file_is_named(honest, tmp_path):
    assert refused(tmp_path, {"config.json": b"{}"}) == f"it lacks config.json or {WEIGHTS}."
    twice = archived({**honest, "config.jsoN": b"{}"}).replace(b"config.jsoN", b"config.json")
    assert refused(tmp_path, twice) == "two of its members have the same name."
    assert refused(tmp_path, b"text").startswith("it is no zip archive, as .keras files are")
    os.mkfifo(tmp_path / "pipe.keras")
    for path, reason in ((tmp_path / "pipe.keras", "no regular file"), (tmp_path / "none.keras", "does not exist")):
        with pytest.raises(DataError, match=reason):
            load_keras(str(path))


CODE = [
    {"module": "os", "class_name": "system", "config": "touch MARK", "registered_name": None},
    {"module": "builtins", "class_name": "exec", "config": "open('MARK', 'w')", "registered_name": "exec"},
    {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"},
    {"class_name": "__lambda__", "config": {"code": "gASVAAAA", "defaults": None, "closure": None}},
    {"module": "keras.config", "class_name": "enable_unsafe_deserialization", "config": {}, "registered_name": None},
]


@pytest.mark.parametrize("code", CODE, ids=lambda code: code["class_name"])
def test_configurations_that_name_code_are_refused_and_run_nothing(honest, tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    config = json.loads(honest["config.json"])
    config["config"]["layers"][1] = json.loads(json.dumps(code).replace("MARK", str(tmp_path / "mark")))
    assert refused(tmp_path, {**honest, "config.json": json.dumps(config).encode()})
    assert sorted(os.listdir(tmp_path)) == ["model.keras"]
    monkeypatch.undo()
    assert not keras.src.saving.serialization_lib.in_safe_mode()  # nothing is left switched


def test_lambda_layers_are_refused_and_not_run(tmp_path):
    mark = str(tmp_path / "mark")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: (open(mark, "w").close(), x)[1])])
    os.remove(mark)  # made when the layer was called to learn its shape
    model.save(tmp_path / "lambda.keras")
    assert "Lambda" in refused(tmp_path, (tmp_path / "lambda.keras").read_bytes())
    assert not os.path.exists(mark)


@pytest.mark.slow  # TensorFlow waits ten seconds for memory to become free
def test_a_model_of_far_more_memory_than_its_weights_is_refused(honest, tmp_path):
    """48 GB of weights in the configuration, some kB in the file."""
    config = honest["config.json"].replace(b'"units": 3,', b'"units": 3000000000,')
    assert config != honest["config.json"]
    begun = time.perf_counter()
    assert refused(tmp_path, {**honest, "config.json": config})
    assert time.perf_counter() - begun < SECONDS_FOR_ALL


def test_loading_may_take_16_times_the_bytes_and_leaves_the_limit_as_it_was(honest, tmp_path, monkeypatch):
    before, asked, real = resource.getrlimit(resource.RLIMIT_AS), [], keras_file.limited_memory
    monkeypatch.setattr(keras_file, "limited_memory", lambda needed: asked.append(needed) or real(needed))
    path = tmp_path / "model.keras"
    path.write_bytes(archived(honest))
    assert load_keras(str(path)).count_params() == 4 * 3 + 3 + 3 * 2 + 2
    assert read_weights(str(path)) == 4
    assert asked == [16 * sum(map(len, honest.values())), 16 * len(honest[WEIGHTS])]
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_the_limit_is_what_is_used_and_what_is_needed_and_room_for_tensorflow():
    with keras_file.limited_memory(3 * 2**30):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    room = 3 * 2**30 + keras_file.SPARE + keras_file.PER_CORE * os.cpu_count()
    assert abs(limit - used - room) < 2**26  # bytes that other threads may take or give back in between


# ------------------------------------------------------------------ example inputs


def test_examples_that_are_bombs_pickles_or_empty_are_refused(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "empty.npz")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    (tmp_path / "bomb.npy").write_bytes(header.getvalue())
    for name, reason in (("pickle.npy", "dtype object"), ("empty.npz", "no arrays"), ("bomb.npy", "but holds 0")):
        with pytest.raises(DataError, match=reason) as caught:
            read_examples(str(tmp_path / name))
        assert name in str(caught.value)


def test_examples_come_back_as_they_were(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False])}
    np.save(tmp_path / "one.npy", arrays["a"])
    np.savez_compressed(tmp_path / "both.npz", **arrays)
    np.savez(tmp_path / "one.npz", a=arrays["a"])
    np.testing.assert_array_equal(read_examples(str(tmp_path / "one.npy")), arrays["a"])
    np.testing.assert_array_equal(read_examples(str(tmp_path / "one.npz")), arrays["a"])
    both = read_examples(str(tmp_path / "both.npz"))
    assert {name: value.tolist() for name, value in both.items()} == {k: v.tolist() for k, v in arrays.items()}
