"""Counts: zeros, dead units, magnitudes per bin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sensprune.errors import argument_error


def sparsity(nonzero: int, total: int) -> float:
    """Fraction of zeros, 1 - nonzero / total.

    Args:
        nonzero: entries that are not zero.
        total: all entries.

    Returns:
        A number in [0, 1]; 0 if there are no entries.

    Example:
        >>> sparsity(25, 100)
        0.75
    """
    return 1.0 - nonzero / total if total else 0.0


def compression_ratio(total: int, nonzero: int) -> float:
    """Entries per entry that is not zero, total / nonzero.

    Args:
        total: all entries.
        nonzero: those that are not zero.

    Returns:
        A number of at least 1; infinity if nothing is left.

    Example:
        >>> compression_ratio(100, 25), compression_ratio(100, 0)
        (4.0, inf)
    """
    return total / nonzero if nonzero else float("inf")


def dead_units(kernel: Any, units_axis: int = -1) -> int:
    """Number of units all of whose incoming weights are zero.

    Args:
        kernel: array with one axis of units: Dense (in, units), Conv2D (height, width, in, units).
        units_axis: that axis.

    Returns:
        How many slices along the axis hold nothing but zeros. NaN is not zero.

    Example:
        >>> dead_units([[1.0, 0.0, 0.0], [2.0, 0.0, 3.0]])
        1
    """
    slices = np.moveaxis(np.asarray(kernel), units_axis, 0)
    return int(np.count_nonzero(~_any_nonzero(slices)))


def dead_recurrent_units(kernel: Any, recurrent_kernel: Any, units: int, gates: int) -> int:
    """Number of recurrent units all of whose incoming weights are zero, in all gates.

    Args:
        kernel: array (in, gates * units), gate-major as Keras stores it: all units of gate 0, then of gate 1, ...
        recurrent_kernel: array (units, gates * units), in the same order.
        units: number of units.
        gates: SimpleRNN 1, GRU 3, LSTM 4.

    Returns:
        How many units have no nonzero entry in any gate of either kernel.

    Raises:
        ArgumentError: if the last axis of a kernel is not gates * units long.

    Example:
        >>> dead_recurrent_units([[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]], 2, 2)
        1
    """
    living = np.zeros(units, bool)
    for name, values in (("kernel", np.asarray(kernel)), ("recurrent_kernel", np.asarray(recurrent_kernel))):
        if values.shape[-1] != gates * units:
            raise argument_error(name, f"of shape (..., {gates * units}), gates * units", values.shape)
        by_unit = np.moveaxis(values.reshape(-1, gates, units), -1, 0)  # (units, in, gates)
        living |= _any_nonzero(by_unit)
    return int(np.count_nonzero(~living))


def magnitude_histogram(values: Any, edges: Sequence[float]) -> tuple[int, ...]:
    """Counts of nonzero absolute values per bin.

    Bin i holds 10**edges[i] <= |v| < 10**edges[i + 1]. What is smaller falls into the first bin, what is larger
    (and NaN) into the last, so the counts add up to the number of nonzero values.

    Args:
        values: real array of any shape.
        edges: increasing exponents of ten, at least two.

    Returns:
        One count per bin, len(edges) - 1 of them.

    Example:
        >>> magnitude_histogram([0.0, -0.5, 2.0, 3.0, 1e9], (-1.0, 0.0, 1.0))
        (1, 3)
    """
    flat = np.asarray(values).reshape(-1)
    size = np.abs(flat[flat != 0]).astype(np.float64)
    inner = 10.0 ** np.asarray(edges[1:-1], np.float64)
    counts = np.bincount(np.searchsorted(inner, size, side="right"), minlength=len(edges) - 1)
    return tuple(int(count) for count in counts)


def information_bits(total: int, nonzero: int, value_bits: float) -> float:
    r"""The least that a sparse tensor needs: its nonzero values, and which entries they are.

    $$B = k\,b + \log_2 \binom{n}{k},$$ with $n$ entries of which $k$ are not zero and $b$ bits per value. The second
    term is the entropy of the positions if all $\binom{n}{k}$ patterns are equally likely; a pattern with more order
    (whole rows of zeros) may take less, and values that repeat take fewer than $b$ bits.

    Args:
        total: entries n.
        nonzero: entries k that are not zero.
        value_bits: bits b per nonzero value, for example 32.

    Returns:
        B, in bits.

    Example:
        >>> information_bits(4, 2, 8.0) == 16.0 + math.log2(6)
        True
    """
    positions = math.lgamma(total + 1) - math.lgamma(nonzero + 1) - math.lgamma(total - nonzero + 1)
    return nonzero * value_bits + positions / math.log(2.0)


def _any_nonzero(slices: np.ndarray) -> np.ndarray:
    # (units, ...) -> (units,)
    return np.any(slices != 0, axis=tuple(range(1, slices.ndim)))
