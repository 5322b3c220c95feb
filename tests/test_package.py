"""Import cost, registration for load_model in either order, and the wheel in an environment's other folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def run(code, cwd, *, path=None, arguments=("-c",)):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    # Keras 3.15 converts variables in a way that NumPy 2 deprecates.
    known = "ignore::DeprecationWarning:keras.src.backend.tensorflow.core"
    command = [sys.executable, "-W", "error", "-W", known, *arguments, code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_import_and_help_need_neither_keras_nor_tensorflow_nor_numpy(tmp_path):
    code = """
import sys
import keras_sensprune, keras_sensprune.records, keras_sensprune.errors
from keras_sensprune.cli import main
try:
    main(["--help"])
except SystemExit as done:
    assert done.code == 0
heavy = {"keras", "tensorflow", "numpy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    from keras_sensprune import SensitivityRegularizer

    layer = keras.layers.Dense(2, kernel_regularizer=SensitivityRegularizer(2e-4, activation="tanh", order=2))
    model = keras.Sequential([keras.Input((3,)), layer])
    path = tmp_path_factory.mktemp("model") / "model.keras"
    model.save(path)
    return path


@pytest.mark.parametrize(
    "imports",
    ["import keras, keras_sensprune", "import keras_sensprune, keras\nkeras_sensprune.SensitivityRegularizer"],
    ids=["keras first", "ours first"],
)
def test_load_model_finds_the_regularizer(imports, saved_model, tmp_path):
    code = f"""
{imports}
model = keras.models.load_model({str(saved_model)!r})
config = model.layers[0].kernel_regularizer.get_config()
assert config == {{"strength": 2e-4, "decoupled": True, "activation": "tanh", "order": 2}}, config
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_another_backend_is_refused_by_name(monkeypatch):
    from keras_sensprune import sparsity_report
    from keras_sensprune.errors import BackendError

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    monkeypatch.setattr("keras.config.backend", lambda: "jax")
    with pytest.raises(BackendError) as caught:
        sparsity_report(model)
    assert str(caught.value) == (
        "keras_sensprune needs the TensorFlow backend of Keras, but Keras runs on 'jax'. "
        'Set the environment variable KERAS_BACKEND="tensorflow" before Keras is imported.'
    )


@pytest.mark.slow
def test_the_wheel_builds_installs_and_works_from_another_folder(tmp_path):
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = wheels.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "keras_sensprune").rglob("*.py")}
    assert sources <= set(names)
    assert not [n for n in names if n.startswith(("tests", "docs", "benchmarks"))]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    code = f"""
import keras_sensprune
assert keras_sensprune.__file__.startswith({str(target)!r}), keras_sensprune.__file__
for name in keras_sensprune.__all__:
    getattr(keras_sensprune, name)
"""
    done = run(code, tmp_path, path=target)
    assert done.returncode == 0, done.stderr[-2000:]


def test_ctrl_c_and_errors_give_their_exit_codes(monkeypatch, capsys, tmp_path):
    from keras_sensprune import pipeline
    from keras_sensprune.cli import main

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "demo", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "sensprune: interrupted; no half-written file is left\n"
    monkeypatch.undo()
    missing = tmp_path / "no.npz"  # a file that cannot be read is a failure (1), not wrong usage (2)
    assert main(["demo", "--data", str(missing), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("sensprune: ")


def test_config_is_plain_python():
    from keras_sensprune import SensitivityRegularizer

    config = SensitivityRegularizer(np.float32(0.5)).get_config()
    assert type(config["strength"]) is float
