"""`sensprune report|inspect|compact|export|bench` on files: results, JSON, exit codes, nothing overwritten."""

import contextlib
import json

import keras
import numpy as np
import pytest

from keras_sensprune import commands
from keras_sensprune.cli import main
from keras_sensprune.export import tflite
from keras_sensprune.records import CompactionRecord, ExportRecord, SparsityReport, from_json

layers = keras.layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 64, 48 (24 of them dead) and 10 units, example inputs, its `.tflite` file and the record of that."""
    place = tmp_path_factory.mktemp("files")
    model = keras.Sequential(
        [keras.Input((64,), name="x"), layers.Dense(48, "relu", name="hidden"), layers.Dense(10, name="logits")],
        name="small",
    )
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(64, 48)) * (generator.random((64, 48)) < 0.1)
    kernel[:, ::2] = 0
    model.set_weights([kernel, np.ones(48), generator.normal(size=(48, 10)), np.zeros(10)])
    model.save(place / "model.keras")
    np.savez(place / "examples.npz", x=generator.normal(size=(20, 64)).astype("float32"))
    with open(place / "record.json", "w") as file, contextlib.redirect_stdout(file):
        names = [str(place / name) for name in ("model.keras", "model.tflite")]
        assert main(["export", *names, "--measure", "gzip", "--json"]) == 0
    return place


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_report_of_both_kinds_of_files(folder, capsys):
    code, out, err = run(capsys, "report", folder / "model.keras", folder / "model.tflite")
    assert (code, err) == (0, "")
    assert "Model: small\n" in out
    assert "24/48" in out  # dead units
    assert "native sparse kernel" in out
    code, out, _ = run(capsys, "report", folder / "model.keras", "--json")
    (record,) = from_json(out)
    assert isinstance(record, SparsityReport)
    assert record.layers[0].dead_units == 24


def test_inspect_goes_on_behind_a_damaged_file(folder, tmp_path, capsys):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes((folder / "model.tflite").read_bytes()[:1000])
    code, out, err = run(capsys, "inspect", damaged, folder / "model.tflite")
    assert code == 1
    assert err.startswith("sensprune: ")
    assert "damaged.tflite" in err
    assert "1x4" in out or "csr" in out


def test_compact_writes_a_smaller_model(folder, tmp_path, capsys):
    target = tmp_path / "small.keras"
    code, out, _ = run(capsys, "compact", folder / "model.keras", target, "--round-to", 1, "--json")
    record = from_json(out)
    assert (code, type(record)) == (0, CompactionRecord)
    assert record.layers[0].kept == tuple(range(1, 48, 2))
    assert record.layers[0].folded == 24
    small, model = keras.models.load_model(target), keras.models.load_model(folder / "model.keras")
    x = np.random.default_rng(1).normal(size=(5, 64)).astype("float32")
    # float32 sums of 64 products of order 1 in another order: 64 * 6e-8, times outputs of order 10
    np.testing.assert_allclose(small(x), model(x), rtol=0, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["small.keras"]
    code, out, _ = run(capsys, "compact", folder / "model.keras", target, "--overwrite")
    assert code == 0
    assert "parameters: 3,610 ->" in out


@pytest.mark.slow
@pytest.mark.usefixtures("litert_only")
def test_export_to_int8_needs_examples(folder, tmp_path, capsys):
    target = tmp_path / "model.tflite"
    code, _, err = run(capsys, "export", folder / "model.keras", target, "--quantize", "int8")
    assert code == 2
    assert "Argument `representative_data` must be given for quantize='int8'" in err
    assert not list(tmp_path.iterdir())
    arguments = ["--quantize", "int8", "--representative", folder / "examples.npz", "--json"]
    code, out, _ = run(capsys, "export", folder / "model.keras", target, *arguments)
    record = from_json(out)
    assert (code, type(record), record.quantize) == (0, ExportRecord, "int8")
    assert {tensor.dtype for tensor in record.tensors} == {"int8"}


def test_examples_beyond_the_last_whole_batch_are_left_out(tmp_path, monkeypatch):
    """The export itself, with as many examples: `test_int8_is_compared_on_the_inputs_that_its_ranges_come_from`."""
    model, given = keras.Sequential([keras.Input(batch_shape=(3, 16)), layers.Dense(8)]), {}
    model.save(tmp_path / "fixed.keras")
    x = np.random.default_rng(0).random((301, 16)).astype("f4")
    np.save(tmp_path / "examples.npy", x)
    monkeypatch.setattr(tflite, "export_tflite", lambda *_, **options: given.update(options))
    names = [str(tmp_path / name) for name in ("fixed.keras", "m.tflite", "examples.npy")]
    commands.export_file(*names[:2], representative=names[2], quantize="int8")
    np.testing.assert_array_equal(given["representative_data"], x[:300])


def test_the_bytes_that_count_can_be_chosen(folder):
    record = from_json((folder / "record.json").read_text())
    assert record.gzip_bytes == min(candidate.gzip_bytes for candidate in record.candidates)
    assert len(record.candidates) > 1


@pytest.mark.parametrize("name", ["a\0b", "a" * 250])
def test_a_name_that_no_file_can_have_is_2(folder, tmp_path, capsys, name):
    for command, suffix in (("export", ".tflite"), ("compact", ".keras")):
        code, _, err = run(capsys, command, folder / "model.keras", tmp_path / (name + suffix))
        assert code == 2
        assert "Argument `output` must be a name that the file system takes." in err
    assert not list(tmp_path.iterdir())


def test_a_model_that_appears_while_we_compact_is_kept(folder, tmp_path, monkeypatch):
    target = tmp_path / "small.keras"
    monkeypatch.setattr(keras.Model, "save", lambda _, path: (path.write_text("new"), target.write_text("precious")))
    assert main(["compact", str(folder / "model.keras"), str(target)]) == 2
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("small.keras", "precious")]


def test_bench_prints_a_ratio(folder, capsys):
    file = folder / "model.tflite"
    code, out, _ = run(capsys, "bench", file, file, "--pairs", 1, "--threads", 1, "--json")
    (record,) = json.loads(out)
    assert code == 0
    assert record["results"][0]["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "model.txt"], "must be the name of a file that ends in .keras or .tflite"),
        (["inspect", "model.keras"], "must be the name of a file that ends in .tflite"),
        (["compact", "model.keras", "small.h5"], "Argument `output` must be a file name that ends in .keras"),
        (["compact", "model.keras", "missing/small.keras"], "in a folder that exists and may be written to"),
        (["compact", "model.keras", "model.keras"], "Pass --overwrite to replace it."),
        (["compact", "model.keras", "other.keras", "--round-to", "0"], "`round_to` must be an integer of at least 1"),
        (["export", "model.keras", "model.tflite"], "Pass --overwrite to replace it."),
        (["bench", "model.tflite"], "two or more .tflite files"),
    ],
)
def test_wrong_usage_is_2_and_changes_nothing(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_wrong_option_is_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["export", "a.keras", "b.tflite", "--quantize", "int4"])
    assert caught.value.code == 2
    assert "invalid choice: 'int4'" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive", b"text"])
def test_a_file_that_is_no_model_is_1_and_named(tmp_path, capsys, content):
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_bytes(content)
    code, _, err = run(capsys, "report", path)
    assert code == 1
    assert f"Cannot read {str(path)!r} as a Keras model" in err


def test_examples_that_are_no_arrays_are_1(folder, tmp_path, capsys):
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no archive")
    code, _, err = run(capsys, "export", folder / "model.keras", tmp_path / "m.tflite", "--representative", bad)
    assert code == 1
    assert "bad.npz" in err
