"""Run a `.tflite` file in its runtimes, each in a process of its own, and compare it with what Keras answers.

A bad file can end the process that runs it, so the interpreters live in children: `python -m
keras_sensprune.export.verify RUNTIME FILE FOLDER`. The child of LiteRT imports NumPy and LiteRT only and starts in half
a second; that of tf.lite imports TensorFlow. Arrays travel as `.npz` files in a temporary folder, never as pickles.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_sensprune.errors import ExportError
from keras_sensprune.export.agreement import ABSOLUTE as ABSOLUTE
from keras_sensprune.export.agreement import RELATIVE as RELATIVE
from keras_sensprune.export.agreement import Limits, check_outputs, largest

# Each with the default delegate (XNNPACK) and with the built-in kernels alone: they share hardly any code.
RUNTIMES = {"litert": "LiteRT", "tflite": "tf.lite"}
DELEGATES = ("default delegate", "no delegate")
CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A file that agrees with what was expected.

    Attributes:
        max_difference: largest absolute difference over all runs and outputs.
        largest_output: largest absolute output expected.
        tolerance: what was allowed (of several outputs, the widest): for float32 of max_difference, for quantized
            files of the root mean square of the differences.
        runs: the interpreters that ran the file.
        examples: how many examples were compared.
        answers: per run and output what the file answered, (examples, ...).
    """

    max_difference: float
    largest_output: float
    tolerance: float
    runs: tuple[str, ...]
    examples: int
    answers: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict, repr=False, compare=False)


def verify_file(
    path: str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    *,
    batch: int | None = None,
    limits: Limits | None = None,
    twin: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    runtimes: tuple[str, ...] = ("litert",),
    timeout: float = 600.0,
) -> Comparison:
    """Run `path` on `inputs` with and without the default delegate and compare the outputs with `expected`.

    Args:
        path: a `.tflite` file with one signature.
        inputs: arrays (examples, ...) by the names of the signature.
        expected: what the Keras model answers, (examples, ...) by the names of the signature.
        batch: the batch size that is fixed in the file, a divisor of the number of examples; None if it is free.
            With a free batch the first example is also run alone.
        limits: what may differ; None means what rounding in float32 warrants.
        twin: what another file answered in the same runs, by run and name: compared with in place of `expected`.
        runtimes: "litert", "tflite", or both; each runs in its own process, at the same time.
        timeout: seconds after which a child is ended.

    Returns:
        The `Comparison`.

    Raises:
        ExportError: if Keras' own outputs are not finite, or the file does not load, crashes, answers NaN, or
            differs by more than the tolerance.
    """
    limits = limits or Limits()
    examples = len(next(iter(inputs.values())))
    starts = range(0, examples, batch or CHUNK)
    slices = [(start, min(start + (batch or CHUNK), examples)) for start in starts]
    if batch is None:
        slices.insert(0, (0, 1))
    for name, value in expected.items():
        if not np.all(np.isfinite(value)):
            raise ExportError(f"Output {name!r} of the Keras model holds NaN or infinity for the example inputs.")
    worst, answers = 0.0, {}
    for run, outputs in _run_in_children(path, inputs, slices, runtimes, timeout).items():
        reference = expected if twin is None else twin[run]
        sliced = {name: np.concatenate([value[a:b] for a, b in slices]) for name, value in reference.items()}
        worst = max(worst, check_outputs(sliced, outputs, run, limits))
        answers[run] = {name: value[-examples:] for name, value in outputs.items()}
    top = max(largest(value) for value in expected.values())
    allowed = max(limits.limit(value) for value in expected.values())
    return Comparison(worst, top, allowed, tuple(answers), examples, answers)


def _run_in_children(
    path: str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    slices: list[tuple[int, int]],
    runtimes: tuple[str, ...],
    timeout: float,
) -> dict[str, dict[str, np.ndarray]]:
    """Outputs by run and name, the slices one after the other."""
    with tempfile.TemporaryDirectory(prefix="sensprune-") as name:
        folder = pathlib.Path(name)
        np.savez(folder / "slices.npz", slices=np.array(slices))
        # the prefix keeps an input called "file" from becoming the first argument of savez
        np.savez(folder / "inputs.npz", **{f"input:{key}": value for key, value in inputs.items()})  # type: ignore[arg-type]
        children = {runtime: _start(runtime, path, folder) for runtime in runtimes}
        deadline = time.monotonic() + timeout
        try:
            for runtime, child in children.items():
                try:
                    child.wait(timeout=max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    label = RUNTIMES[runtime]
                    raise ExportError(f"{label} did not finish with the file within {timeout:g} seconds.") from None
                missing = [run for run in _runs(runtime) if not _answer_file(folder, run).exists()]
                if child.returncode or missing:
                    errors = (folder / f"{runtime}.log").read_text(errors="replace")
                    run = missing[0] if missing else _runs(runtime)[-1]
                    raise ExportError(_failure(child.returncode, errors, RUNTIMES[runtime], run))
        finally:
            for child in children.values():
                child.kill()
                child.wait()
        return {run: _load(_answer_file(folder, run), "output:") for r in runtimes for run in _runs(r)}


def _start(runtime: str, path: str | os.PathLike[str], folder: pathlib.Path) -> subprocess.Popen[bytes]:
    module = "keras_sensprune.export.verify"
    command = [sys.executable, "-W", "ignore", "-m", module, runtime, os.fspath(path), str(folder)]
    with open(folder / f"{runtime}.log", "wb") as log:
        return subprocess.Popen(
            command, env=child_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
        )


def child_environment() -> dict[str, str]:
    """The environment of this process, with its search path for modules, and quiet logs."""
    search = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONPATH": search}


def _runs(runtime: str) -> list[str]:
    return [f"{RUNTIMES[runtime]}, {delegate}" for delegate in DELEGATES]


def _answer_file(folder: pathlib.Path, run: str) -> pathlib.Path:
    return folder / f"{run}.npz"


def _load(file: pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return {key.removeprefix(prefix): arrays[key] for key in arrays.files}


def _failure(code: int, stderr: str, runtime: str, run: str) -> str:
    """Why the child ended, in one sentence."""
    delegate = run.split(", ")[-1]
    if code < 0:
        return f"The file crashes {runtime} ({delegate}): the process was ended by {signal_name(code)}."
    lines = [line for line in stderr.splitlines() if line.strip()]
    return f"{runtime} cannot run the file ({delegate}): {lines[-1].strip() if lines else f'exit code {code}'}"


def signal_name(code: int) -> str:
    """The signal behind a negative exit code."""
    known = code in [-item for item in signal.Signals]
    return signal.Signals(-code).name if known else f"signal {-code}"


def _child(runtime: str, path: str, folder: pathlib.Path) -> None:
    """Run the file on every slice, per resolver; an answer file is renamed into place when it is complete."""
    name = "tensorflow.lite.python.interpreter" if runtime == "tflite" else "ai_edge_litert.interpreter"
    module: Any = importlib.import_module(name)
    kinds = module.OpResolverType
    inputs = _load(folder / "inputs.npz", "input:")
    slices = _load(folder / "slices.npz", "")["slices"]
    resolvers = (kinds.AUTO, kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    for run, resolver in zip(_runs(runtime), resolvers, strict=True):
        runner = module.Interpreter(path, experimental_op_resolver_type=resolver).get_signature_runner()
        parts = [runner(**{name: value[a:b] for name, value in inputs.items()}) for a, b in slices]
        outputs = {f"output:{name}": np.concatenate([part[name] for part in parts]) for name in parts[0]}
        unfinished = folder / f"unfinished-{runtime}.npz"
        np.savez(unfinished, **outputs)  # type: ignore[arg-type]
        unfinished.rename(_answer_file(folder, run))


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
