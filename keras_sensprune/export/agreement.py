"""How far two answers may lie apart: the tolerances, where they come from, and what is said when they are exceeded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from keras_sensprune.errors import ExportError

# Rounding in float32: the unit roundoff is u = 2**-24, about 6e-8, and a sum of n terms, taken in another order,
# moves by at most n * u of the sum of the absolute terms. 1e-4 is u times 1700: the fan-in of a wide layer in the
# worst case, and far above what layers add up to when errors have random signs. An output that cancels to about 0
# still carries the rounding of the activations of order 1 it came from: 1e-5 is u times 170. Wrong encodings seen
# so far were off by 5 % of the largest output and more, so 1e-5 is cut to 2 % of the largest output where that is
# less (outputs below 5e-4): otherwise small outputs would not be checked at all. TINY is for outputs that are 0 or
# denormal, which some kernels flush to 0.
RELATIVE, ABSOLUTE, NEAR_ZERO, TINY = 1e-4, 1e-5, 0.02, 1e-37

# Root mean square of the difference as a share of that of the outputs, against Keras. Rounding to b bits moves a value
# by at most 2**-b of the largest one, on average by 0.29 of that; for 8 bits about 0.1 % of the largest, so 0.5 % of a
# typical value, in every weight and every activation of every layer. A share of 10 % is then 20 layers deep if errors
# add up, 400 if they have random signs; full int8 rounds the activations of all examples alike, hence twice as much.
# Garbage (a buffer that was read wrongly) has a share of about 1. float16 keeps 11 bits.
ROUNDING = {"float16": 0.01, "dynamic": 0.1, "int8": 0.2}
# The sparse file against its dense twin: the same weights, so only the rounding of activations may differ (of dynamic
# ones the kernels differ in how they do it; those of int8 are fixed in the file).
TWIN_ROUNDING = {"dynamic": 0.05, "int8": 0.02}
# Beside it, for quantized twins, the largest single difference as a share of the largest output: one wrong unit among
# thousands hardly moves the root mean square. Largest outputs are 3 to 5 times the root mean square, so this is 3 to 5
# times what rounding may amount to, and a unit that misses a weight's worth of its sum is far above it.
TWIN_PEAK = 0.05


@dataclasses.dataclass(frozen=True)
class Limits:
    """What may differ.

    Attributes:
        tolerance: largest absolute difference allowed for every output; None for what rounding warrants: 1e-4 of the
            largest absolute value of that output plus 1e-5 (or 2 % of it, if that is less), and 0 for integers.
        rounding: in place of the default of `tolerance`: the root mean square of the difference that is allowed, as a
            share of the root mean square of that output.
        peak: beside `rounding`: the largest difference, as a share of the largest absolute output.
        reference: what an error calls the other side.
    """

    tolerance: float | None = None
    rounding: float | None = None
    peak: float | None = None
    reference: str = "the Keras model"

    def by_rms(self, value: np.ndarray) -> bool:
        """Whether this output is judged by root mean squares."""
        return self.tolerance is None and self.rounding is not None and value.dtype.kind == "f"

    def limit(self, value: np.ndarray) -> float:
        """What is allowed for an output that should be `value`."""
        if self.tolerance is not None:
            return self.tolerance
        if value.dtype.kind != "f":
            return 0.0
        floor = TINY + min(ABSOLUTE, NEAR_ZERO * largest(value))
        return floor + (RELATIVE * largest(value) if self.rounding is None else self.rounding * rms(value))


def largest(value: np.ndarray) -> float:
    """The largest absolute value; 0 if there is none."""
    return float(np.max(np.abs(value.astype(np.float64)), initial=0.0))


def rms(value: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(value.astype(np.float64)), dtype=np.float64)))


def check_output(value: np.ndarray, output: np.ndarray, label: str, limits: Limits) -> float:
    """Compare one output with what it should be.

    Args:
        value: what is expected.
        output: what came.
        label: what an error calls it.
        limits: what may differ.

    Returns:
        The largest absolute difference.

    Raises:
        ExportError: if the shape is another one, a value is not finite, or the difference is too large.
    """
    other = limits.reference
    if output.shape != value.shape:
        raise ExportError(f"{label} has shape {output.shape}, {other} gives {value.shape}.")
    if not np.all(np.isfinite(output)):
        raise ExportError(f"{label} holds NaN or infinity, {other} does not.")
    gap = value.astype(np.float64) - output.astype(np.float64)
    worst, allowed = largest(gap), limits.limit(value)
    of_largest = f"(largest absolute output: {largest(value):.3g})"
    if limits.by_rms(value):
        if rms(gap) > allowed:
            scale = f"(root mean square output: {rms(value):.3g})"
            by = f"a root mean square of {rms(gap):.3g}"
            raise ExportError(f"{label} differs from {other} by {by}, more than the tolerance {allowed:.3g} {scale}.")
        if limits.peak is None:
            return worst
        allowed = TINY + limits.peak * largest(value)
    if worst > allowed:
        text = f"{label} differs from {other} by {worst:.3g}, more than the tolerance {allowed:.3g} {of_largest}."
        near = 0 < largest(value) < 10 * ABSOLUTE and limits.tolerance is None
        raise ExportError(text + " Outputs this small are hardly more than rounding: pass other `data`." * near)
    return worst


def check_outputs(
    expected: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], run: str, limits: Limits
) -> float:
    """All outputs of one run, see `check_output`; the largest difference of any.

    Raises:
        ExportError: also if the names are other ones.
    """
    if set(outputs) != set(expected):
        raise ExportError(f"The file has the outputs {sorted(outputs)}, {limits.reference} {sorted(expected)}.")
    return max(
        check_output(value, outputs[name], f"Output {name!r} of the file ({run})", limits)
        for name, value in expected.items()
    )
