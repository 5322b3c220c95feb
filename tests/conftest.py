"""Shared fixtures. TensorFlow reads its log level when it is imported, so this comes first."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# A loaded machine is slow, which says nothing about the property.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

_REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first, so that no worker waits for another one at the end."""
    items.sort(key=lambda item: "test_pipeline" not in item.nodeid)


@pytest.fixture
def litert_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports run in LiteRT alone unless told otherwise: starting tf.lite takes seconds."""
    import keras_sensprune

    for export in (keras_sensprune.export_tflite, keras_sensprune.export_quantized):
        monkeypatch.setitem(export.__kwdefaults__, "runtimes", ("litert",))


@pytest.fixture(scope="session")
def mnist_path() -> Path:
    """The file with all of MNIST; a test that needs it is skipped where it is absent."""
    named = os.environ.get("KERAS_SENSPRUNE_DATA")
    path = Path(named) if named else _REPOSITORY.parent / "shared" / "data" / "mnist.npz"
    path = path / "mnist.npz" if path.is_dir() else path
    if not path.is_file():
        pytest.skip(f"no MNIST file at {path}; set KERAS_SENSPRUNE_DATA to mnist.npz or its folder")
    return path
