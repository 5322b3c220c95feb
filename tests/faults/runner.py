"""Hostile files in a child process that is started again when one of them ends it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from keras_sensprune.export.verify import child_environment, signal_name
from tests.faults.formats import FORMATS

START = 300.0  # seconds for the imports and the seeds of a child on a busy machine
CRASH = "crash: "


@dataclasses.dataclass(frozen=True)
class Result:
    """What opening input `number` did: the outcome, seconds, and megabytes by which the process grew at most."""

    number: int
    seconds: float
    megabytes: float
    outcome: str


def run(name: str, start: int, end: int) -> Iterator[Result]:
    """Opens inputs `start` to `end` of a format, in order."""
    while start < end:
        for result in _one_child(name, start, end):
            yield result
            start = result.number + 1


def command(name: str, start: int, end: int) -> list[str]:
    """What runs the worker."""
    return [sys.executable, "-m", "tests.faults.worker", name, str(start), str(end)]


def _one_child(name: str, start: int, end: int) -> Iterator[Result]:
    root, number, limit, late = Path(__file__).parents[2], start - 1, START, threading.Event()
    pipe, line = subprocess.PIPE, command(name, start, end)
    child = subprocess.Popen(line, cwd=root, env=child_environment(), stdout=pipe, stderr=pipe, text=True)
    assert child.stdout is not None
    assert child.stderr is not None
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(child.stderr.read()[-2000:].splitlines()))
    drain.start()

    def too_late() -> None:
        late.set()
        child.kill()

    try:
        while True:
            timer = threading.Timer(limit, too_late)
            timer.start()
            line = child.stdout.readline()
            timer.cancel()
            if not line:
                break
            number, seconds, megabytes, outcome = _fields(line)
            yield judged(name, Result(number, seconds, megabytes, outcome))
            limit = 10 * FORMATS[name].seconds
        code = child.wait()
    finally:
        child.kill()
        child.wait()
        drain.join()
        child.stdout.close()
        child.stderr.close()
    if number + 1 < end:
        if code >= 0:
            raise RuntimeError(f"the worker of {name} failed before input {number + 1}: {errors[-1:]}")
        reason = f"no end within {limit:g} seconds" if late.is_set() else CRASH + signal_name(code)
        yield Result(number + 1, limit if late.is_set() else 0.0, 0.0, reason)


def _fields(line: str) -> tuple[int, float, float, str]:
    number, seconds, megabytes, outcome = line.rstrip("\n").split(" ", 3)
    return int(number), float(seconds), float(megabytes), outcome


def judged(name: str, result: Result) -> Result:
    """The result; too much time or memory is an outcome of its own."""
    form = FORMATS[name]
    if result.seconds > form.seconds:
        return dataclasses.replace(result, outcome=f"{result.seconds:.1f} seconds ({result.outcome})")
    if result.megabytes > form.megabytes:
        return dataclasses.replace(result, outcome=f"{result.megabytes:.0f} MB ({result.outcome})")
    return result


def expected(name: str, result: Result) -> bool:
    """Whether this is what the package promises; native code may end the child, which `load_keras` has for that."""
    contained = FORMATS[name].native and result.outcome.startswith(CRASH)
    return contained or result.outcome in ("accepted", "refused")
