"""The child process of `latency.py`: load one `.tflite` file, run it for a while, print what that took as JSON.

`python -m keras_sensprune.export.latency_child OPTIONS`. It imports NumPy and LiteRT only.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import statistics
import sys
import time
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

WARM_UP_RUNS, WARM_UP_SHARE = 3, 0.3  # at least so many runs, and so much of the time that is measured
FEWEST_RUNS = 5


def main(options: dict[str, Any]) -> dict[str, float]:
    """Median microseconds of a run, milliseconds to load, and the largest growth of the process in bytes."""
    with contextlib.suppress(OSError):  # from here on the peak is ours, not that of the imports
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    start = time.perf_counter()
    interpreter = Interpreter(options["file"], num_threads=options["threads"])
    _resize(interpreter, options["batch"])
    interpreter.allocate_tensors()
    load = time.perf_counter() - start
    _fill(interpreter)
    _time(interpreter, options["seconds"] * WARM_UP_SHARE, WARM_UP_RUNS)
    times = _time(interpreter, options["seconds"], FEWEST_RUNS)
    growth = max(0, memory("VmHWM") - before)
    return {"microseconds": statistics.median(times) * 1e6, "load_milliseconds": load * 1e3, "memory_bytes": growth}


def _resize(interpreter: Interpreter, batch: int) -> None:
    """Give free sizes a value: `batch` for the first axis, 1 for others."""
    for detail in interpreter.get_input_details():
        shape, signature = list(detail["shape"]), list(detail["shape_signature"])
        wanted = [(batch if axis == 0 else 1) if size < 0 else int(size) for axis, size in enumerate(signature)]
        if not signature:
            continue
        if wanted[0] != batch:
            raise SystemExit(f"input {detail['name']!r} has a fixed batch of {wanted[0]}, {batch} was asked for")
        if wanted != shape:
            interpreter.resize_tensor_input(detail["index"], wanted)


def _fill(interpreter: Interpreter) -> None:
    """Seeded inputs: normal for floats, all values for 8-bit integers, 0 and 1 for others (they may be indices)."""
    generator = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        kind, shape = np.dtype(detail["dtype"]), detail["shape"]
        if kind.kind not in "fiub":
            raise SystemExit(f"input {detail['name']!r} has the type {kind}; only numbers can be made up")
        if kind.kind == "f":
            values = generator.normal(size=shape)
        elif kind.itemsize == 1 and kind.kind in "iu":
            limits = np.iinfo(kind)
            values = generator.integers(limits.min, limits.max, shape, endpoint=True)
        else:
            values = generator.integers(0, 2, shape)
        interpreter.set_tensor(detail["index"], np.asarray(values).astype(kind))


def _time(interpreter: Interpreter, seconds: float, fewest: int) -> list[float]:
    """Seconds of each run, for so long and at least so often."""
    clock = time.perf_counter
    times: list[float] = []
    end = clock() + seconds
    while len(times) < fewest or clock() < end:
        start = clock()
        interpreter.invoke()
        times.append(clock() - start)
    return times


def memory(field: str) -> int:
    """VmRSS or VmHWM (the peak) of this process in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        found = re.search(rf"{field}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
        return 1024 * int(found[1]) if found else 0
    return 0


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
