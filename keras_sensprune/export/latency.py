"""`benchmark_tflite`: latency and memory of `.tflite` files beside each other, every run in a process of its own.

Fresh processes, because a process that has run other models is slower with large ones (caches and heap are no longer
its own), which flatters whatever is compared with them. In each round every file runs once, in random order, and only
ratios within a round are compared: a machine that is busy for a while slows both sides of a ratio.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np

from keras_sensprune.errors import DataError, ExportError, argument_error, number_argument
from keras_sensprune.export.verify import child_environment, signal_name
from keras_sensprune.records.latency import FileTiming, LatencyRecord, ThreadLatency

TIMEOUT = 600.0
_RESAMPLES = 2000
Progress = Callable[[int, int], None]
Sample = tuple[float, float, float]  # microseconds, milliseconds to load, bytes of memory


def benchmark_tflite(
    baseline: str | os.PathLike[str],
    candidate: str | os.PathLike[str],
    *,
    threads: Sequence[int] = (1, 2),
    pairs: int = 9,
    batch: int = 1,
    seconds: float = 0.3,
    progress: Progress | None = None,
) -> LatencyRecord:
    """Compare two `.tflite` files: latency, time to load, memory and bytes.

    Both run in LiteRT with its default delegate on seeded random inputs, each time in a fresh process, in pairs whose
    order is random. What counts is the ratio within a pair: the median over the pairs, and an interval for it.
    With the defaults this takes about 40 seconds. Nothing else should run meanwhile; what does, widens the interval.

    Args:
        baseline: the file to compare with.
        candidate: the file to compare.
        threads: the numbers of threads to try, each on its own.
        pairs: how often both files run; with fewer than 5 the interval says little.
        batch: examples per run, for files whose batch is free; of others it must be the batch they have.
        seconds: for how long each process runs its file, beside the warm-up.
        progress: called after each process with the number of those done and of all.

    Returns:
        A `LatencyRecord`.

    Raises:
        ArgumentError: if an argument is not allowed.
        DataError: if a file cannot be read.
        ExportError: if a file does not load, crashes or takes too long, naming the file.

    Example:

    >>> import os, tempfile
    >>> import keras
    >>> from keras_sensprune import benchmark_tflite, export_tflite
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "model.tflite")
    ...     written = export_tflite(model, file)
    ...     record = benchmark_tflite(file, file, threads=(1,), pairs=2, seconds=0.05)
    >>> record.results[0].threads, len(record.results[0].ratios)
    (1, 2)
    """
    paths = [baseline, candidate]
    return benchmark_files(paths, threads=threads, pairs=pairs, batch=batch, seconds=seconds, progress=progress)[0]


def benchmark_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    threads: Sequence[int] = (1, 2),
    pairs: int = 9,
    batch: int = 1,
    seconds: float = 0.3,
    progress: Progress | None = None,
) -> tuple[LatencyRecord, ...]:
    """As `benchmark_tflite`, of every further file against the first, which then runs only once per round."""
    threads, pairs, batch = _checked(threads, pairs, batch)
    seconds = number_argument("seconds", seconds, "a number of seconds, at least 0.01", 0.01)
    files = [_checked_file(path) for path in paths]
    if len(files) < 2:
        raise argument_error("paths", "two or more files, the first of which is the baseline", list(paths))
    sizes = {file: _sizes(file) for file in dict.fromkeys(files)}
    generator = np.random.default_rng(0)
    samples: dict[int, list[list[Sample]]] = {count: [[] for _ in files] for count in threads}
    done, total = 0, len(threads) * pairs * len(files)
    for _ in range(pairs):
        for count in threads:
            for i in generator.permutation(len(files)):
                samples[count][i].append(_run(files[i], count, batch, seconds))
                done += 1
                if progress is not None:
                    progress(done, total)
    runtime = f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"
    return tuple(
        LatencyRecord(
            baseline=files[0],
            candidate=files[i],
            baseline_bytes=sizes[files[0]][0],
            candidate_bytes=sizes[files[i]][0],
            baseline_gzip_bytes=sizes[files[0]][1],
            candidate_gzip_bytes=sizes[files[i]][1],
            batch=batch,
            pairs=pairs,
            seconds=seconds,
            runtime=runtime,
            results=tuple(compare(count, samples[count][0], samples[count][i]) for count in threads),
        )
        for i in range(1, len(files))
    )


def compare(threads: int, baseline: Sequence[Sample], candidate: Sequence[Sample]) -> ThreadLatency:
    """The samples of two files, taken round by round, as medians, quartiles and an interval of the ratio.

    Args:
        threads: how many threads they had.
        baseline: per round (microseconds, milliseconds to load, bytes of memory).
        candidate: the same of the other file.
    """
    ratios = np.array([c[0] / b[0] for b, c in zip(baseline, candidate, strict=True)])
    resampled = np.random.default_rng(0).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return ThreadLatency(
        threads=threads,
        baseline=_timing(baseline),
        candidate=_timing(candidate),
        ratio=float(np.median(ratios)),
        ratio_low=float(low),
        ratio_high=float(high),
        ratios=tuple(ratios.tolist()),
    )


def _timing(samples: Sequence[Sample]) -> FileTiming:
    times, loads, memory = np.array(samples, float).T
    low, middle, high = np.percentile(times, [25, 50, 75])
    load, growth = float(np.median(loads)), int(np.median(memory))
    return FileTiming(float(middle), float(low), float(high), load, growth, tuple(times.tolist()))


def _checked(threads: Sequence[int], pairs: int, batch: int) -> tuple[tuple[int, ...], int, int]:
    for name, value in (("pairs", pairs), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise argument_error(name, "a whole number of at least 1", value)
    counts = tuple(threads) if isinstance(threads, (list, tuple)) else ()
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in counts)
    if not counts or not whole or len(set(counts)) != len(counts):
        raise argument_error("threads", "a tuple of different whole numbers of at least 1, such as (1, 2)", threads)
    return counts, pairs, batch


def _checked_file(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise argument_error("path", "the name of a .tflite file", path)
    if not pathlib.Path(path).is_file():
        raise DataError(f"Cannot read {os.fspath(path)!r}: there is no such file.")
    return os.fspath(path)


def _sizes(file: str) -> tuple[int, int]:
    try:
        content = pathlib.Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {file!r}: {error.strerror}.") from None
    return len(content), len(gzip.compress(content, 9, mtime=0))


def _run(file: str, threads: int, batch: int, seconds: float) -> Sample:
    """One fresh process; whatever goes wrong in it is an `ExportError` that names the file."""
    options = json.dumps({"file": file, "threads": threads, "batch": batch, "seconds": seconds})
    command = [sys.executable, "-W", "ignore", "-m", "keras_sensprune.export.latency_child", options]
    environment = child_environment()
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT + seconds
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"{file!r} did not finish within {TIMEOUT + seconds:g} seconds.") from None
    if child.returncode < 0:
        raise ExportError(f"{file!r} crashes LiteRT: the process was ended by {signal_name(child.returncode)}.")
    lines = (child.stdout if child.returncode == 0 else child.stderr).decode(errors="replace").strip().splitlines()
    if child.returncode or not lines:
        reason = lines[-1].strip() if lines else f"exit code {child.returncode}"
        raise ExportError(f"LiteRT cannot run {file!r}: {reason}")
    answer = json.loads(lines[-1])
    return answer["microseconds"], answer["load_milliseconds"], answer["memory_bytes"]
