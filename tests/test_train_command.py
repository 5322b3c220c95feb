"""`sensprune train`: what it writes, what it prints, what it refuses, and that it goes on where it was killed."""

import json
import os
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_sensprune import recipe_run
from keras_sensprune.cli import main
from keras_sensprune.records import TrainRecord, from_json
from keras_sensprune.reports.files import record_text

RECIPE = {
    "network": "lenet-300-100",
    "budget": {"sparsity": 0.75},
    "dense_epochs": 1,
    "round_epochs": 1,
    "fine_epochs": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recipe and 300 images."""
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", 300), ("test", 300)):
        y = np.arange(count) % 10
        x = rng.integers(0, 100, (count, 28, 28), np.uint8)
        x[np.arange(count), y] += 150  # row number y is brighter
        parts |= {f"x_{name}": x, f"y_{name}": y}
    np.savez(folder / "data.npz", **parts)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    return folder


def train(place, output, *more, recipe="recipe.json", data="data.npz"):
    arguments = ["--recipe", str(place / recipe), "--data", str(place / data), "--output", str(output), *more]
    return main(["train", *arguments])


def test_a_recipe_that_was_refused_can_be_corrected_in_the_same_folder(place, tmp_path, capsys):
    output = tmp_path / "out"
    (place / "bad.json").write_text(json.dumps({**RECIPE, "budget": {"sparsity": 0.9999999}}))
    assert train(place, output, recipe="bad.json") == 2
    assert "`sparsity` must be at most" in capsys.readouterr().err
    assert train(place, output) == 0


def test_a_run_that_was_killed_goes_on_and_writes_everything(place, tmp_path, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise OSError(28, "No space left on device")

    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(recipe_run, "export_tflite", broken)
        assert train(place, output) == 1
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.err.splitlines()[:4]] == ["dense", "round 1", "round 2", "fine-tune"]
    assert said.out == ""
    assert os.listdir(output) == [recipe_run.PROGRESS]
    (place / "other.json").write_text(json.dumps({**RECIPE, "seed": 1}))
    assert train(place, output, recipe="other.json") == 1
    assert "has the progress of another recipe, which is in" in capsys.readouterr().err

    assert train(place, output, "--json") == 0
    said = capsys.readouterr()
    record = from_json(said.out)
    assert isinstance(record, TrainRecord)
    assert said.err == "all phases are done already\n"
    assert sorted(os.listdir(output)) == sorted(recipe_run.OUTPUTS)
    assert from_json((output / "report.json").read_text()) == record
    assert (record.result.sparsity, record.result.unmet) == (0.75, ())
    model = keras.models.load_model(output / "model.keras")
    assert sum(int(np.count_nonzero(w)) for w in model.get_weights() if w.ndim == 2) == 266_200 // 4
    assert os.path.getsize(output / "model.tflite") == record.export.bytes
    text = record_text(record)
    assert "compression: 4.00x (weights)" in text
    assert f"test error {record.error:.2f} %" in text

    assert train(place, output) == 2  # results that exist are kept
    assert "already holds model.keras, model.tflite, report.json" in capsys.readouterr().err


def test_bytes_are_those_of_the_exported_file(place, tmp_path, monkeypatch):
    export, asked = recipe_run.export_tflite, []

    def counted(model, path, **options):
        """The first size is that of a real file; later ones are what the sparse file would have, without making it."""
        final = "runtimes" not in options
        weights = sum(int(np.count_nonzero(w)) for w in model.get_weights() if w.ndim == 2)
        found = export(model, path, **options) if final or not asked else SimpleNamespace(bytes=20_000 + 4 * weights)
        asked.append(found.bytes)
        return found

    monkeypatch.setattr(recipe_run, "export_tflite", counted)
    (place / "bytes.json").write_text(json.dumps({**RECIPE, "budget": {"bytes": 220_000}, "fine_epochs": 0}))
    assert train(place, tmp_path / "out", recipe="bytes.json") == 0
    record = from_json((tmp_path / "out" / "report.json").read_text())
    assert asked[0] > 266_200 * 4  # the dense file
    assert asked[-1] == record.export.bytes == os.path.getsize(tmp_path / "out" / "model.tflite")
    assert record.result.unmet == ()
    assert record.result.final.nonzero == pytest.approx(50_000, rel=0.03)  # 1/256 of all weights is 1,040


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 3}, "bad.json: The recipe has the unknown key 'epochs'. Allowed are network, budget, learning_ra"),
        ({"network": "vgg"}, "bad.json: Argument `network` must be one of 'lenet-300-100', 'lenet-5', 'cifar-small'."),
        ({"network": "cifar-small"}, "data.npz: x_train has shape (300, 28, 28). Expected an .npz file with the keys"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(place, tmp_path, capsys, changed, message):
    (place / "bad.json").write_text(json.dumps({**RECIPE, **changed}))
    assert train(place, tmp_path / "out", recipe="bad.json") == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
