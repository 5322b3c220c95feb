"""From a dense `.tflite` file in memory to the smallest file that agrees, under its name on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import math
import os
import pathlib
import secrets
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_sensprune.errors import ExportError, argument_error
from keras_sensprune.export import choices, flatbuffer, packing, verify
from keras_sensprune.export.clusters import clustered
from keras_sensprune.export.latency import benchmark_tflite
from keras_sensprune.formulas.counting import information_bits
from keras_sensprune.records import CandidateRecord, ExportRecord, TensorRecord

VALUE_BITS = {"float32": 32, "float16": 16, "int8": 8}


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What a file is compared on.

    Attributes:
        inputs: arrays (examples, ...) by input name.
        expected: what the original model answers, (examples, ...) by output name.
        batch: the batch size that is fixed in the file; None if it is free.
        labels: class numbers (examples,), or None.
    """

    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    batch: int | None = None
    labels: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """How a file is written.

    Attributes:
        quantize: number format that the dense file has.
        sparse: "auto", "none", or the one encoding that weights shall have.
        target: "size" or "latency".
        measure: "raw" or "gzip": the bytes that count for "size".
        clusters: values per weight tensor, or None.
        tolerance: largest absolute difference, or None for the defaults of `verify`.
        runtimes: which runtimes must agree.
        overwrite: whether a file that exists may be replaced.
    """

    quantize: str = "float32"
    sparse: str = "auto"
    target: str = "size"
    measure: str = "raw"
    clusters: int | None = None
    tolerance: float | None = None
    runtimes: tuple[str, ...] = ("litert", "tflite")
    overwrite: bool = False


def write_checked(
    dense: bytes, path: str | os.PathLike[str], examples: Examples, options: Options | None = None
) -> ExportRecord:
    """Encode, run, compare, and only then give the file its name.

    The dense file is compared with the model; the sparse one with its dense twin, run by run.

    Args:
        dense: the model as the converter has written it, without sparse weights.
        path: the file to write, in an existing folder.
        examples: what to compare on.
        options: how to write; None means the defaults.

    Returns:
        The record of the file.

    Raises:
        ArgumentError: if the path cannot be written to, or the file exists and may not be replaced.
        ExportError: if the dense file does not load, crashes, answers NaN, or differs too much. If only the sparse
            file does, the dense one is written, with a warning.
    """
    options = options or Options()
    target = checked_target(path, options.overwrite)
    dense = flatbuffer.positive_zeros(dense)
    if options.clusters is not None:
        dense = clustered(dense, options.clusters)
    with _temporary_file(target) as file:
        _write(file, dense)
        rounding = verify.ROUNDING.get("clustered" if options.clusters is not None else options.quantize)
        comparison = _verified(file, examples, examples.expected, options, rounding)
        best, candidates = _best(dense, examples, options, file)
        content, tried, twin = dense, "", 0.0
        if best is not None:
            try:
                content, comparison, twin = best, *_checked_twin(file, best, examples, options, comparison)
            except ExportError as error:
                tried = str(error)
                warnings.warn(f"The sparse file was not used, the dense one is written instead. {tried}", stacklevel=3)
                _write(file, dense)
        record = _record(target, content, len(dense), comparison, options)
        verdicts, (keras_error, file_error) = _verdicts(candidates, content, tried), _errors(comparison, examples)
        record = dataclasses.replace(
            record, candidates=verdicts, twin_difference=twin, keras_error=keras_error, error=file_error
        )
        checked_target(path, options.overwrite)  # it may have appeared while we converted
        os.replace(file, target)
    return record


def _verified(
    file: pathlib.Path,
    examples: Examples,
    expected: Mapping[str, np.ndarray],
    options: Options,
    rounding: float | None,
) -> verify.Comparison:
    return verify.verify_file(
        file,
        examples.inputs,
        expected,
        batch=examples.batch,
        tolerance=options.tolerance,
        rounding=rounding,
        runtimes=options.runtimes,
    )


def _best(
    dense: bytes, examples: Examples, options: Options, file: pathlib.Path
) -> tuple[bytes | None, list[tuple[str, bytes]]]:
    """The sparse content to be checked, None if dense is best; and everything that was tried, by name.

    Raises:
        ExportError: if an encoding was asked for that a weight cannot have.
    """
    candidates = [("dense", dense)]
    if options.sparse == "none":
        return None, candidates
    if options.sparse != "auto":
        forced = packing.encode(dense, choices.forced(dense, options.sparse, options.quantize))
        return forced, [*candidates, (f"sparse ({options.sparse})", forced)]
    if options.target == "latency":
        chosen = choices.fastest(dense, lambda a, b: _time_ratio(a, b, examples.batch or 1))
        if not chosen:
            return None, candidates
        candidates.append(("sparse (latency)", packing.encode(dense, chosen)))
        return candidates[-1][1], candidates
    for name, gzipped in (("sparse (bytes)", False), ("sparse (gzip)", True)):
        chosen = choices.smallest(dense, gzipped)
        content = packing.encode(dense, chosen)
        if chosen and all(content != other for _, other in candidates):
            candidates.append((name, content))
    size: Callable[[bytes], int] = len if options.measure == "raw" else _gzip_size
    best = min((content for _, content in candidates), key=size)
    return (None if best is dense else best), candidates


def _time_ratio(one: bytes, other: bytes, batch: int) -> float:
    """Time of the second content / time of the first, in LiteRT on this machine, one thread."""
    with tempfile.TemporaryDirectory(prefix="sensprune-") as folder:
        files = [pathlib.Path(folder) / name for name in ("one.tflite", "other.tflite")]
        for file, content in zip(files, (one, other), strict=True):
            file.write_bytes(content)
        record = benchmark_tflite(*files, threads=(1,), pairs=5, batch=batch, seconds=0.1)
    return record.results[0].ratio


def _checked_twin(
    file: pathlib.Path, content: bytes, examples: Examples, options: Options, dense: verify.Comparison
) -> tuple[verify.Comparison, float]:
    """Write the sparse file; compare it with its dense twin, and measure its distance to the model."""
    _write(file, content)
    twin = dense.answers[dense.runs[0]]
    found = _verified(file, examples, twin, options, verify.TWIN_ROUNDING.get(options.quantize))
    worst = max(
        float(np.max(np.abs(value.astype(np.float64) - found.answers[run][name].astype(np.float64)), initial=0.0))
        for name, value in examples.expected.items()
        for run in found.runs
    )
    absolute = options.tolerance is not None or (options.quantize == "float32" and options.clusters is None)
    if absolute and worst > dense.tolerance:
        raise ExportError(f"It differs from the model by {worst:.3g}, more than the tolerance {dense.tolerance:.3g}.")
    return dataclasses.replace(dense, max_difference=worst, answers=found.answers), found.max_difference


def _verdicts(candidates: list[tuple[str, bytes]], written: bytes, failed: str) -> tuple[CandidateRecord, ...]:
    records = []
    for name, content in candidates:
        chosen = content is written
        reason = "agrees, and is the best by what was asked" if chosen else "another one is better by what was asked"
        if failed and name != "dense":
            reason = f"does not agree: {failed}"
        records.append(CandidateRecord(name, len(content), _gzip_size(content), chosen, reason))
    return tuple(records)


def _errors(comparison: verify.Comparison, examples: Examples) -> tuple[float, float] | tuple[None, None]:
    """Percent of wrong classes of model and file (first output, first run), if there are labels."""
    if examples.labels is None:
        return None, None
    name = next(iter(examples.expected))
    file = comparison.answers[comparison.runs[0]][name]
    wrong = [np.argmax(value, axis=-1) != examples.labels for value in (examples.expected[name], file)]
    return round(100.0 * float(np.mean(wrong[0])), 4), round(100.0 * float(np.mean(wrong[1])), 4)


def _record(
    target: pathlib.Path, content: bytes, dense_bytes: int, comparison: verify.Comparison, options: Options
) -> ExportRecord:
    tensors = flatbuffer.weight_tensors(content)
    sparse_tensors = sum(tensor.encoding != "dense" for tensor in tensors)
    return ExportRecord(
        path=str(target),
        encoding="sparse" if sparse_tensors else "dense",
        bytes=len(content),
        gzip_bytes=_gzip_size(content),
        dense_bytes=dense_bytes,
        tensors=tensors,
        sparse_tensors=sparse_tensors,
        max_difference=comparison.max_difference,
        largest_output=comparison.largest_output,
        tolerance=comparison.tolerance,
        runs=comparison.runs,
        examples=comparison.examples,
        quantize=options.quantize,
        information_bytes=math.ceil(sum(_information(tensor, options.clusters) for tensor in tensors) / 8),
    )


def _information(tensor: TensorRecord, clusters: int | None) -> float:
    total = math.prod(tensor.shape)
    bits: float = VALUE_BITS[tensor.dtype]
    if clusters is not None:
        bits = min(bits, math.log2(clusters))
    return information_bits(total, total - tensor.zeros, bits)


def _gzip_size(content: bytes) -> int:
    return len(gzip.compress(content, 9, mtime=0))


def checked_target(path: Any, overwrite: Any) -> pathlib.Path:
    """`path`, if a file may be written there.

    Raises:
        ArgumentError: if not, with the reason.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise argument_error("path", "the name of a file", path)
    if not isinstance(overwrite, bool):
        raise argument_error("overwrite", "True or False", overwrite)
    target = pathlib.Path(os.fspath(path))
    if not target.parent.is_dir():
        raise argument_error("path", "in a folder that exists", str(path), "Create the folder first.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise argument_error("path", "in a folder that may be written to", str(path))
    if target.is_dir():
        raise argument_error("path", "the name of a file, not of a folder", str(path))
    if os.path.lexists(target) and not overwrite:
        allowed = "a file that does not exist"
        raise argument_error("path", allowed, str(path), "Pass overwrite=True to replace it.")
    return target


@contextlib.contextmanager
def _temporary_file(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new name beside `target`; whatever is left under it is removed at the end, also after Ctrl-C."""
    file = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _write(file: pathlib.Path, content: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())  # the later rename must not outrun the content
