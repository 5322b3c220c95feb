"""Few values for many weights: the nonzero entries of a tensor, each replaced by the nearest of k centers."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sensprune.errors import integer_argument

_ROUNDS = 100


def cluster_nonzeros(weight: Any, clusters: int) -> np.ndarray:
    r"""The tensor with its nonzero entries rounded to `clusters` values; zeros stay zero.

    Lloyd's k-means in one dimension: centers $c_j$ start at evenly spaced quantiles of the nonzero entries; in turn
    every entry goes to its nearest center and every center to the mean of its entries, until nothing moves. Each round
    can only lower $\sum_i (w_i - c_{j(i)})^2$. There is no random start, so the result is the same every time.

    Args:
        weight: real array of any shape, finite.
        clusters: number k of values, at least 2.

    Returns:
        An array of the shape and dtype of `weight` with at most k different nonzero values. An entry whose center is
        zero to rounding keeps its own value, so that zeros are exactly those of `weight`.

    Raises:
        ArgumentError: if `clusters` is no integer of at least 2.

    Example:
        >>> cluster_nonzeros([0.0, 1.0, 1.2, -3.0, 0.0], 2).round(3).tolist()
        [0.0, 1.1, 1.1, -3.0, 0.0]

    Reference: Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28(2), 1982.
    """
    integer_argument("clusters", clusters, 2)
    array = np.asarray(weight)
    entries = array[array != 0]
    unique = np.unique(entries)
    if len(unique) <= clusters:
        return array.copy()
    ordered = np.sort(entries.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centers = np.quantile(ordered, (np.arange(clusters) + 0.5) / clusters)
    for _ in range(_ROUNDS):
        bounds = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        edges = np.concatenate([[0], bounds, [len(ordered)]])
        counts = np.diff(edges)
        means = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centers)
        if np.array_equal(means, centers):
            break
        centers = means
    nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, entries.astype(np.float64))
    rounded = centers[nearest].astype(array.dtype)
    result = array.copy()
    result[array != 0] = np.where(rounded == 0, entries, rounded)
    return result
