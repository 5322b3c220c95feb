"""How fast `.tflite` files run beside each other."""

from __future__ import annotations

from keras_sensprune.records.codec import record


@record
class FileTiming:
    """How one file ran, over all its processes with one number of threads.

    Attributes:
        microseconds: of one run: median over the processes, each of which gives the median of its runs.
        microseconds_low, microseconds_high: quartiles over the processes.
        load_milliseconds: from the file's name to allocated tensors, median over the processes.
        memory_bytes: largest growth of the process's memory by loading and running, median over the processes.
        samples: microseconds of each process, in the order of the rounds.
    """

    microseconds: float
    microseconds_low: float
    microseconds_high: float
    load_milliseconds: float
    memory_bytes: int
    samples: tuple[float, ...]


@record
class ThreadLatency:
    """Two files beside each other with one number of threads.

    Attributes:
        threads: how many threads the interpreter had.
        baseline: how the first file ran.
        candidate: how the second file ran.
        ratio: median over the rounds of candidate / baseline; below 1 the candidate is faster.
        ratio_low, ratio_high: interval of the median, 95 % by a seeded bootstrap over the rounds.
        ratios: of each round.
    """

    threads: int
    baseline: FileTiming
    candidate: FileTiming
    ratio: float
    ratio_low: float
    ratio_high: float
    ratios: tuple[float, ...]


@record
class LatencyRecord:
    """Latency, memory and bytes of two `.tflite` files, see `benchmark_tflite`.

    Attributes:
        baseline, candidate: the files.
        baseline_bytes, candidate_bytes: their sizes.
        baseline_gzip_bytes, candidate_gzip_bytes: their sizes after gzip -9.
        batch: examples per run.
        pairs: rounds; each runs both files once, in fresh processes.
        seconds: for how long each process ran its file, beside the warm-up.
        runtime: the runtime and its version.
        results: one entry per number of threads.
    """

    baseline: str
    candidate: str
    baseline_bytes: int
    candidate_bytes: int
    baseline_gzip_bytes: int
    candidate_gzip_bytes: int
    batch: int
    pairs: int
    seconds: float
    runtime: str
    results: tuple[ThreadLatency, ...]
