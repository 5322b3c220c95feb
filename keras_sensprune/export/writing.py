"""From a dense `.tflite` file in memory to the smallest file that agrees, under its name on disk."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from keras_sensprune.errors import ExportError
from keras_sensprune.export import choices, flatbuffer, packing, verify
from keras_sensprune.export.agreement import ROUNDING, TINY, TWIN_PEAK, TWIN_ROUNDING, Limits, check_outputs, rms
from keras_sensprune.export.clusters import clustered
from keras_sensprune.export.files import checked_target as checked_target
from keras_sensprune.export.files import give_name, temporary_file, write
from keras_sensprune.export.latency import benchmark_tflite
from keras_sensprune.export.recording import class_errors, gzip_size, record_of, verdicts
from keras_sensprune.records import ExportRecord

Answers = Mapping[str, Mapping[str, np.ndarray]]  # by run and output
LARGE_LOSS = 0.2  # of the outputs (root mean square): clustering that changes them by more is warned of


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
    with temporary_file(target) as file:
        write(file, dense)
        limits = Limits(options.tolerance, ROUNDING.get(options.quantize))
        comparison, clustering = _verified(file, examples, options, limits), 0.0
        if options.clusters is not None:
            dense = clustered(dense, options.clusters)
            comparison, clustering = _checked_clusters(file, dense, examples, options, comparison)
        best, candidates = _best(dense, examples, options, file)
        content, tried, twin = dense, "", 0.0
        if best is not None:
            try:
                content, comparison, twin = best, *_checked_twin(file, best, examples, options, comparison)
            except ExportError as error:
                tried = str(error)
                warnings.warn(f"The sparse file was not used, the dense one is written instead. {tried}", stacklevel=3)
                write(file, dense)
        record = record_of(target, content, comparison, options.quantize, options.clusters)
        keras_error, file_error = class_errors(comparison, examples.expected, examples.labels)
        record = dataclasses.replace(
            record,
            dense_bytes=len(dense),
            candidates=verdicts(candidates, content, tried),
            twin_difference=twin,
            clustering_difference=clustering,
            keras_error=keras_error,
            error=file_error,
        )
        give_name(file, target, options.overwrite)
    return record


def _verified(
    file: pathlib.Path, examples: Examples, options: Options, limits: Limits, twin: Answers | None = None
) -> verify.Comparison:
    return verify.verify_file(
        file,
        examples.inputs,
        examples.expected,
        batch=examples.batch,
        limits=limits,
        twin=twin,
        runtimes=options.runtimes,
    )


def _checked_clusters(
    file: pathlib.Path, content: bytes, examples: Examples, options: Options, exact: verify.Comparison
) -> tuple[verify.Comparison, float]:
    """Write the clustered file: all runs must agree on it; how far it is from the model is measured, not judged.

    The unclustered file agreed with the model before, and this one differs from it in the values of weights only. So
    what it is off by is the loss that was asked for, unless the user set a tolerance.
    """
    write(file, content)
    found = _verified(file, examples, options, Limits(math.inf))
    first = found.runs[0]
    for run in found.runs[1:]:
        check_outputs(found.answers[first], found.answers[run], run, Limits(reference=f"the same file ({first})"))
    lost = max(
        rms(value - found.answers[first][name]) / max(rms(value), TINY) for name, value in examples.expected.items()
    )
    loss = f"{options.clusters} values per tensor move the outputs by {found.max_difference:.3g}"
    if options.tolerance is not None and found.max_difference > options.tolerance:
        limit = f"more than the tolerance {options.tolerance:.3g}"
        raise ExportError(f"{loss}, {limit}. Ask for more clusters, or pass a larger `tolerance`.")
    if lost > LARGE_LOSS:
        text = f"{loss}, or {100 * lost:.0f} % (root mean square). Look at the errors; more clusters lose less."
        warnings.warn(text, stacklevel=4)
    return dataclasses.replace(found, tolerance=exact.tolerance), lost


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
    size: Callable[[bytes], int] = len if options.measure == "raw" else gzip_size
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
    """Write the sparse file; compare it with its dense twin, run by run, and measure its distance to the model."""
    write(file, content)
    rounding = TWIN_ROUNDING.get(options.quantize)
    limits = Limits(options.tolerance, rounding, None if rounding is None else TWIN_PEAK, "the dense file")
    found = _verified(file, examples, options, limits, dense.answers)
    worst = max(
        float(np.max(np.abs(value.astype(np.float64) - found.answers[run][name].astype(np.float64)), initial=0.0))
        for name, value in examples.expected.items()
        for run in found.runs
    )
    absolute = options.tolerance is not None or (options.quantize == "float32" and options.clusters is None)
    if absolute and worst > dense.tolerance:
        raise ExportError(
            f"It differs from the Keras model by {worst:.3g}, more than the tolerance {dense.tolerance:.3g}."
        )
    return dataclasses.replace(dense, max_difference=worst, answers=found.answers), found.max_difference
