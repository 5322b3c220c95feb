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

# Each with the default delegate (XNNPACK) and with the built-in kernels alone: they share hardly any code.
RUNTIMES = {"litert": "LiteRT", "tflite": "tf.lite"}
DELEGATES = ("default delegate", "no delegate")
CHUNK = 64

# Rounding in float32: the unit roundoff is u = 2**-24, about 6e-8, and a sum of n terms, taken in another order,
# moves by at most n * u of the sum of the absolute terms. 1e-4 is u times 1700: the fan-in of a wide layer in the
# worst case, and far above what layers add up to when errors have random signs. An output that cancels to about 0
# still carries the rounding of the activations of order 1 it came from: 1e-5 is u times 170. Wrong encodings seen
# so far were off by 5 % of the largest output and more.
RELATIVE, ABSOLUTE = 1e-4, 1e-5

# Root mean square of the difference as a share of that of the outputs, against Keras. Rounding to b bits moves a value
# by at most 2**-b of the largest one, on average by 0.29 of that; for 8 bits about 0.1 % of the largest, so 0.5 % of a
# typical value, in every weight and every activation of every layer. A share of 10 % is then 20 layers deep if errors
# add up, 400 if they have random signs; full int8 rounds the activations of all examples alike, hence twice as much.
# Garbage (a buffer that was read wrongly) has a share of about 1. float16 keeps 11 bits.
ROUNDING = {"float16": 0.01, "clustered": 0.2, "dynamic": 0.1, "int8": 0.2}
# The sparse file against its dense twin: the same weights, so only the rounding of activations may differ (of dynamic
# ones the kernels differ in how they do it; those of int8 are fixed in the file).
TWIN_ROUNDING = {"dynamic": 0.05, "int8": 0.02}


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
    tolerance: float | None = None,
    rounding: float | None = None,
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
        tolerance: largest absolute difference allowed for every output; by default 1e-5 plus 1e-4 of the largest
            absolute value of that output, and 0 for integers.
        rounding: for quantized files, in place of the default of `tolerance`: the root mean square of the difference
            that is allowed, as a share of the root mean square of that output.
        runtimes: "litert", "tflite", or both; each runs in its own process, at the same time.
        timeout: seconds after which a child is ended.

    Returns:
        The `Comparison`.

    Raises:
        ExportError: if Keras' own outputs are not finite, or the file does not load, crashes, answers NaN, or
            differs by more than the tolerance.
    """
    examples = len(next(iter(inputs.values())))
    starts = range(0, examples, batch or CHUNK)
    slices = [(start, min(start + (batch or CHUNK), examples)) for start in starts]
    if batch is None:
        slices.insert(0, (0, 1))
    for name, value in expected.items():
        if not np.all(np.isfinite(value)):
            raise ExportError(f"Output {name!r} of the Keras model holds NaN or infinity for the example inputs.")
    limits = {name: _limit(value, tolerance, rounding) for name, value in expected.items()}
    reference = {name: np.concatenate([value[a:b] for a, b in slices]) for name, value in expected.items()}
    worst, answers = 0.0, {}
    for run, outputs in _run_in_children(path, inputs, slices, runtimes, timeout).items():
        if set(outputs) != set(reference):
            raise ExportError(f"The file has the outputs {sorted(outputs)}, the Keras model {sorted(reference)}.")
        for name, value in reference.items():
            label = f"Output {name!r} of the file ({run})"
            use_rms = tolerance is None and rounding is not None and value.dtype.kind == "f"
            worst = max(worst, _difference(value, outputs[name], limits[name], label, use_rms))
        answers[run] = {name: value[-examples:] for name, value in outputs.items()}
    largest = max(_largest(value) for value in expected.values())
    return Comparison(worst, largest, max(limits.values()), tuple(answers), examples, answers)


def _largest(value: np.ndarray) -> float:
    return float(np.max(np.abs(value.astype(np.float64)), initial=0.0))


def _rms(value: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(value.astype(np.float64)), dtype=np.float64)))


def _limit(value: np.ndarray, tolerance: float | None, rounding: float | None) -> float:
    if tolerance is not None:
        return tolerance
    if value.dtype.kind != "f":
        return 0.0
    return ABSOLUTE + (RELATIVE * _largest(value) if rounding is None else rounding * _rms(value))


def _difference(value: np.ndarray, output: np.ndarray, limit: float, label: str, use_rms: bool) -> float:
    """The largest absolute difference, or an `ExportError` that says what is wrong."""
    if output.shape != value.shape:
        raise ExportError(f"{label} has shape {output.shape}, the Keras model gives {value.shape}.")
    if not np.all(np.isfinite(output)):
        raise ExportError(f"{label} holds NaN or infinity, the Keras model does not.")
    gap = value.astype(np.float64) - output.astype(np.float64)
    size, kind = (_rms(gap), "root mean square ") if use_rms else (_largest(gap), "")
    if size > limit:
        scale = f"{kind}output: {_rms(value):.3g}" if use_rms else f"largest absolute output: {_largest(value):.3g}"
        by = f"a {kind}of {size:.3g}" if use_rms else f"{size:.3g}"
        raise ExportError(
            f"{label} differs from the Keras model by {by}, more than the tolerance {limit:.3g} ({scale})."
        )
    return _largest(gap)


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
