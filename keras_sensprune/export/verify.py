"""Run a `.tflite` file in LiteRT, in a process of its own, and compare it with what Keras answers.

A bad file can end the process that runs it, so the interpreter lives in a child: `python -m
keras_sensprune.export.verify FILE FOLDER`. The child imports NumPy and LiteRT only and starts in half a second.
Arrays travel as `.npz` files in a temporary folder, never as pickles.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import numpy as np

from keras_sensprune.errors import ExportError

# With the default delegate (XNNPACK) and with the built-in kernels alone: they share hardly any code.
RUNS = ("default delegate", "no delegate")
CHUNK = 64

# Rounding in float32: the unit roundoff is u = 2**-24, about 6e-8, and a sum of n terms, taken in another order,
# moves by at most n * u of the sum of the absolute terms. 1e-4 is u times 1700: the fan-in of a wide layer in the
# worst case, and far above what layers add up to when errors have random signs. An output that cancels to about 0
# still carries the rounding of the activations of order 1 it came from: 1e-5 is u times 170. Wrong encodings seen
# so far were off by 5 % of the largest output and more.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A file that agrees with its Keras model.

    Attributes:
        max_difference: largest absolute difference over all runs and outputs.
        largest_output: largest absolute output of the Keras model.
        tolerance: what was allowed for max_difference (of several outputs, the widest).
        runs: the interpreters that ran the file.
        examples: how many examples were compared.
    """

    max_difference: float
    largest_output: float
    tolerance: float
    runs: tuple[str, ...]
    examples: int


def verify_file(
    path: str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    *,
    batch: int | None = None,
    tolerance: float | None = None,
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
        timeout: seconds after which the child is ended.

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
    allowed = {name: _tolerance(value) if tolerance is None else tolerance for name, value in expected.items()}
    answers = {name: np.concatenate([value[a:b] for a, b in slices]) for name, value in expected.items()}
    worst = 0.0
    for run, outputs in _run_in_child(path, inputs, slices, timeout).items():
        if set(outputs) != set(answers):
            raise ExportError(f"The file has the outputs {sorted(outputs)}, the Keras model {sorted(answers)}.")
        for name, value in answers.items():
            worst = max(worst, _difference(value, outputs[name], allowed[name], f"Output {name!r} of the file ({run})"))
    largest = max(_largest(value) for value in expected.values())
    return Comparison(worst, largest, max(allowed.values()), RUNS, examples)


def _largest(value: np.ndarray) -> float:
    return float(np.max(np.abs(value.astype(np.float64)), initial=0.0))


def _tolerance(value: np.ndarray) -> float:
    return ABSOLUTE + RELATIVE * _largest(value) if value.dtype.kind == "f" else 0.0


def _difference(value: np.ndarray, output: np.ndarray, tolerance: float, label: str) -> float:
    """The largest absolute difference, or an `ExportError` that says what is wrong."""
    if output.shape != value.shape:
        raise ExportError(f"{label} has shape {output.shape}, the Keras model gives {value.shape}.")
    if not np.all(np.isfinite(output)):
        raise ExportError(f"{label} holds NaN or infinity, the Keras model does not.")
    difference = _largest(value.astype(np.float64) - output.astype(np.float64))
    if difference > tolerance:
        raise ExportError(
            f"{label} differs from the Keras model by {difference:.3g}, more than the tolerance {tolerance:.3g} "
            f"(largest absolute output: {_largest(value):.3g})."
        )
    return difference


def _run_in_child(
    path: str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    slices: list[tuple[int, int]],
    timeout: float,
) -> dict[str, dict[str, np.ndarray]]:
    """Outputs by run and name, the slices one after the other."""
    with tempfile.TemporaryDirectory(prefix="sensprune-") as name:
        folder = pathlib.Path(name)
        np.savez(folder / "slices.npz", slices=np.array(slices))
        # the prefix keeps an input called "file" from becoming the first argument of savez
        np.savez(folder / "inputs.npz", **{f"input:{key}": value for key, value in inputs.items()})  # type: ignore[arg-type]
        command = [sys.executable, "-W", "ignore", "-m", "keras_sensprune.export.verify", os.fspath(path), name]
        search = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            child = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": search},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise ExportError(f"LiteRT did not finish with the file within {timeout:g} seconds.") from None
        missing = [run for run in RUNS if not _answer_file(folder, run).exists()]
        if child.returncode or missing:
            raise ExportError(_failure(child.returncode, child.stderr, missing[0] if missing else RUNS[-1]))
        return {run: _load(_answer_file(folder, run), "output:") for run in RUNS}


def _answer_file(folder: pathlib.Path, run: str) -> pathlib.Path:
    return folder / f"{run}.npz"


def _load(file: pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return {key.removeprefix(prefix): arrays[key] for key in arrays.files}


def _failure(code: int, stderr: str, run: str) -> str:
    """Why the child ended, in one sentence."""
    if code < 0:
        known = code in [-item for item in signal.Signals]
        name = signal.Signals(-code).name if known else f"signal {-code}"
        return f"The file crashes LiteRT ({run}): the process was ended by {name}."
    lines = [line for line in stderr.splitlines() if line.strip()]
    return f"LiteRT cannot run the file ({run}): {lines[-1].strip() if lines else f'exit code {code}'}"


def _child(path: str, folder: pathlib.Path) -> None:
    """Run the file on every slice, per resolver; an answer file is renamed into place when it is complete."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    inputs = _load(folder / "inputs.npz", "input:")
    slices = _load(folder / "slices.npz", "")["slices"]
    resolvers = (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    for run, resolver in zip(RUNS, resolvers, strict=True):
        runner = Interpreter(path, experimental_op_resolver_type=resolver).get_signature_runner()
        parts = [runner(**{name: value[a:b] for name, value in inputs.items()}) for a, b in slices]
        outputs = {f"output:{name}": np.concatenate([part[name] for part in parts]) for name in parts[0]}
        unfinished = folder / "unfinished.npz"
        np.savez(unfinished, **outputs)  # type: ignore[arg-type]
        unfinished.rename(_answer_file(folder, run))


if __name__ == "__main__":
    _child(sys.argv[1], pathlib.Path(sys.argv[2]))
