"""The name of an exported file: given in one step, and never to the loss of another file."""

import functools
import os
import stat

import numpy as np
import pytest

from keras_sensprune import errors
from keras_sensprune.errors import ArgumentError
from keras_sensprune.export import tflite, verify
from tests.export.test_flatbuffer import mlp, pruned

export_tflite = functools.partial(tflite.export_tflite, runtimes=("litert",))  # starting tf.lite takes seconds


@pytest.fixture(scope="module")
def small():
    return pruned(mlp(64, 32, 10), 0.9)


def test_existing_file_is_kept_unless_overwrite(small, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_text("precious")
    with pytest.raises(ArgumentError) as caught:
        export_tflite(small, path)
    assert str(caught.value) == str(
        errors.argument_error("path", "a file that does not exist", str(path), "Pass overwrite=True to replace it.")
    )
    assert path.read_text() == "precious"
    export_tflite(small, path, overwrite=True)
    assert path.read_bytes()[4:8] == b"TFL3"
    assert os.listdir(tmp_path) == ["model.tflite"]


def test_file_that_appears_meanwhile_is_kept(small, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    agreed = verify.Comparison(0.0, 1.0, 1.0, ("run",), 1, {"run": {"output_0": np.zeros((16, 10))}})
    monkeypatch.setattr(verify, "verify_file", lambda *_, **__: path.write_text("precious") and agreed)
    with pytest.raises(ArgumentError, match="must be a file that does not exist"):
        export_tflite(small, path)
    assert (os.listdir(tmp_path), path.read_text()) == (["model.tflite"], "precious")


def test_file_that_appears_in_the_last_moment_is_kept(small, tmp_path, monkeypatch):
    """The name is given in one step, so there is no moment between looking and writing."""
    path, link = tmp_path / "model.tflite", os.link
    monkeypatch.setattr(os, "link", lambda *names: path.write_text("precious") and link(*names))
    with pytest.raises(ArgumentError, match="must be a file that does not exist"):
        export_tflite(small, path)
    assert (os.listdir(tmp_path), path.read_text()) == (["model.tflite"], "precious")


def test_a_file_system_without_hard_links_will_do(small, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    export_tflite(small, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == ["model.tflite"]


def test_names_of_files_at_the_limits(small, tmp_path):
    for name in ("a\0b.tflite", "a" * 249 + ".tflite"):
        with pytest.raises(ArgumentError, match="Argument `path` must be a name that the file system takes"):
            export_tflite(small, os.path.join(tmp_path, name))
    export_tflite(small, tmp_path / ("a" * 240 + ".tflite"))  # 247 bytes: longer than a longer temporary name leaves
    assert len(os.listdir(tmp_path)) == 1


def test_file_has_the_usual_permissions(small, tmp_path):
    (tmp_path / "other").write_text("")
    export_tflite(small, tmp_path / "model.tflite")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert len(modes) == 1
