"""What the command line does with files: a `.keras` or `.tflite` file in, a record (and perhaps a new file) out."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from keras_sensprune.arrays import array_of_npy, arrays_of_npz
from keras_sensprune.errors import argument_error
from keras_sensprune.export.files import give_name, name_exists, temporary_file
from keras_sensprune.keras_file import load_keras
from keras_sensprune.records import CompactionRecord, ExportRecord, SparsityReport
from keras_sensprune.records.inspection import TfliteRecord
from keras_sensprune.records.latency import LatencyRecord

_KINDS = "buif"  # of example inputs


def report_file(path: str) -> SparsityReport | TfliteRecord:
    """What a file holds, layer by layer (`.keras`) or tensor by tensor (`.tflite`).

    Raises:
        ArgumentError: if the name ends in neither.
        DataError: if the file cannot be read as what its name says.
    """
    if _suffix(path, ".keras", ".tflite") == ".tflite":
        return inspect_file(path)
    from keras_sensprune.census import sparsity_report

    return sparsity_report(load_keras(path))


def inspect_file(path: str) -> TfliteRecord:
    """Tensors, encodings and execution of a `.tflite` file; neither Keras nor LiteRT is started.

    Raises:
        ArgumentError: if the name does not end in .tflite.
        DataError: if the file cannot be read.
    """
    _suffix(path, ".tflite")
    from keras_sensprune.export.inspection import inspect_tflite

    return inspect_tflite(path)


def compact_file(path: str, output: str, *, round_to: int = 16, overwrite: bool = False) -> CompactionRecord:
    """Takes the dead units out of a `.keras` model and saves the smaller one.

    Raises:
        ArgumentError: if a path or `round_to` is not allowed, before anything is read.
        DataError, ModelError: if the model cannot be loaded or compacted.
    """
    _suffix(path, ".keras")
    target = _target(output, ".keras", overwrite)
    from keras_sensprune.compaction.model import compact

    model, record = compact(load_keras(path), round_to=round_to)
    with temporary_file(target, ".keras") as temporary:
        model.save(temporary)
        give_name(temporary, target, overwrite)
    return record


def export_file(path: str, output: str, *, representative: str | None = None, **options: Any) -> ExportRecord:
    """Exports a `.keras` model as a checked `.tflite` file.

    Args:
        path: the model.
        output: the file to write.
        representative: an .npy or .npz file of example inputs (an .npz with one array per input name); int8 needs it.
            Those that do not fill a batch of a model with a fixed one are left out.
        **options: of `export_tflite`.

    Raises:
        ArgumentError, DataError, ModelError, ExportError: as `export_tflite`; nothing is written then.
    """
    _suffix(path, ".keras")
    _target(output, ".tflite", bool(options.get("overwrite")))
    from keras_sensprune.export.tflite import export_tflite

    examples = None if representative is None else read_examples(representative)
    model = load_keras(path)
    if examples is not None:
        options["representative_data"] = _whole_batches(model, examples)
    return export_tflite(model, output, **options)


def bench_files(paths: list[str], *, pairs: int, threads: tuple[int, ...], batch: int) -> list[LatencyRecord]:
    """Latency of every further `.tflite` file against the first, in interleaved pairs of fresh processes.

    Raises:
        ArgumentError: if there are fewer than two files or a name does not end in .tflite.
        DataError, ExportError: if a file cannot be read or run.
    """
    for path in paths:
        _suffix(path, ".tflite")
    if len(paths) < 2:
        raise argument_error("FILE", "two or more .tflite files, the first of which is the baseline", paths)
    from keras_sensprune.export.latency import benchmark_tflite

    return [benchmark_tflite(paths[0], path, pairs=pairs, threads=threads, batch=batch) for path in paths[1:]]


def _suffix(path: str, *allowed: str) -> str:
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in allowed:
        raise argument_error("FILE", f"the name of a file that ends in {' or '.join(allowed)}", path)
    return suffix


def _target(output: str, suffix: str, overwrite: bool) -> pathlib.Path:
    """`output`, if a file may be written there; found out before anything is computed."""
    target = pathlib.Path(output)
    exists = name_exists(target, "output")
    if target.suffix.lower() != suffix:
        raise argument_error("output", f"a file name that ends in {suffix}", output)
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK | os.X_OK):
        raise argument_error("output", "in a folder that exists and may be written to", output)
    if target.is_dir() or (exists and not overwrite):
        raise argument_error("output", "a file that does not exist", output, "Pass --overwrite to replace it.")
    return target


def read_examples(path: str) -> Any:
    """The array of an .npy file, or the arrays of an .npz file by name (the array itself if it is the only one).

    Raises:
        ArgumentError: if the name ends in neither.
        DataError: if the file cannot be read.
    """
    if _suffix(path, ".npy", ".npz") == ".npy":
        return array_of_npy(path, _KINDS)
    arrays = arrays_of_npz(path, kinds=_KINDS)
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _whole_batches(model: Any, examples: Any) -> Any:
    """The examples of a file, cut to whole batches where the model has a fixed one."""
    sizes = [tensor.shape[0] for tensor in getattr(model, "inputs", None) or () if tensor.shape[0]]
    batch = min(sizes, default=1)
    arrays = list(examples.values()) if isinstance(examples, dict) else [examples]
    count = min((len(array) for array in arrays if array.ndim), default=0)
    if batch == 1 or count < batch:
        return examples  # `export_tflite` says what is wrong, if anything is
    count -= count % batch
    return {name: value[:count] for name, value in examples.items()} if isinstance(examples, dict) else examples[:count]
