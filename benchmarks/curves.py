"""Error-compression curves: how many times fewer weights one keeps than another at equal error."""

import math
from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]  # (compression, error in percent)


def frontier(curve: Curve) -> list[tuple[float, float]]:
    """The points for which no other is as sparse or sparser with at most the same error, from the densest on.

    Args:
        curve: (compression, error) in any order.

    Returns:
        Points of rising compression and rising error.
    """
    best: list[tuple[float, float]] = []
    for compression, error in sorted(curve, key=lambda point: (-point[0], point[1])):
        if not best or error < best[-1][1]:
            best.append((compression, error))
    return best[::-1]


def compression_at(curve: Curve, error: float) -> float:
    """The compression that a curve reaches at an error.

    The logarithm of the compression is interpolated between the points of the frontier, linearly in the error. An
    error outside of their range counts as the nearest one, so nothing is extrapolated.

    Args:
        curve: (compression, error).
        error: percent.

    Returns:
        Weights / nonzero weights.
    """
    compressions, errors = zip(*frontier(curve), strict=True)
    return math.exp(float(np.interp(error, errors, np.log(compressions))))


def gain(curve: Curve, control: Curve, error: float) -> float:
    """How many times fewer weights a curve keeps than the control at an error.

    Args:
        curve: (compression, error).
        control: the same.
        error: percent.

    Returns:
        C_curve(error) / C_control(error).
    """
    return compression_at(curve, error) / compression_at(control, error)


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(sum(map(math.log, values)) / len(values))
