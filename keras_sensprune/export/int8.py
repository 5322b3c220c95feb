"""Conversion to full int8, in a process of its own: the converter can end the process that it runs in.

`python -m keras_sensprune.export.int8 FOLDER BATCH` converts `FOLDER/model` with the examples of
`FOLDER/representative.npz`.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_sensprune.errors import ExportError
from keras_sensprune.export.verify import child_environment, signal_name

TIMEOUT = 1800.0
_ALTERNATIVE = "Use quantize='dynamic' or 'float16' instead."


def convert_in_child(folder: str, representative: Mapping[str, np.ndarray], batch: int) -> bytes:
    """The SavedModel in `folder`/model as a `.tflite` file with int8 weights and activations, float32 in and out.

    Args:
        folder: a temporary folder; files are added to it.
        representative: arrays (examples, ...) by input name.
        batch: how many examples the model takes at once.

    Returns:
        The bytes of the file.

    Raises:
        ExportError: if the converter fails or ends its process, with the reason and what to do instead.
    """
    place = pathlib.Path(folder)
    np.savez(place / "representative.npz", **{f"input:{k}": v for k, v in representative.items()})  # type: ignore[arg-type]
    command = [sys.executable, "-W", "ignore", "-m", "keras_sensprune.export.int8", folder, str(batch)]
    try:
        child = subprocess.run(
            command,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"The conversion to int8 did not end within {TIMEOUT:g} seconds. {_ALTERNATIVE}") from None
    result = place / "model.tflite"
    if child.returncode < 0:
        name = signal_name(child.returncode)
        raise ExportError(f"The converter itself crashes on int8 for this model ({name}). {_ALTERNATIVE}")
    if child.returncode or not result.exists():
        lines = [line for line in child.stderr.splitlines() if line.strip()]
        raise ExportError(f"{lines[-1].strip()[:300] if lines else 'No reason was given.'} {_ALTERNATIVE}")
    return result.read_bytes()


def _child(folder: pathlib.Path, batch: int) -> None:
    import tensorflow as tf

    with np.load(folder / "representative.npz", allow_pickle=False) as loaded:
        arrays = {key.removeprefix("input:"): loaded[key] for key in loaded.files}

    def examples() -> Iterator[dict[str, Any]]:
        for start in range(0, len(next(iter(arrays.values()))), batch):
            yield {name: value[start : start + batch] for name, value in arrays.items()}

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "model"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = examples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    unfinished = folder / "unfinished"
    unfinished.write_bytes(converter.convert())
    unfinished.rename(folder / "model.tflite")


if __name__ == "__main__":
    _child(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
