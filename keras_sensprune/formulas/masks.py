"""From scores to a mask with an exact number of zeros."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sensprune.errors import argument_error, fraction_argument
from keras_sensprune.formulas.allocation import zeros_asked


def exact_count_mask(score: Any, sparsity: float) -> np.ndarray:
    r"""Mask that removes exactly the asked fraction of the entries, lowest scores first.

    The number of zeros is $\min(\lfloor s n + 1/2 \rfloor,\, n - 1)$, with $s$ the sparsity and $n$ the number of
    entries: at least one entry is kept. Among equal scores the lower flat index (row-major) goes first, so the count
    is met also when scores tie or all are equal, and a higher sparsity only ever removes more.

    Args:
        score: real array of any shape with at least one entry; high = keep. Infinities are allowed.
        sparsity: fraction of zeros, in [0, 1); not percent.

    Returns:
        float32 array of the shape of `score`: 1 = keep, 0 = remove.

    Raises:
        ArgumentError: if `sparsity` is not in [0, 1), or `score` is empty or holds NaN.

    Example:
        >>> from keras_sensprune import exact_count_mask
        >>> exact_count_mask([[3.0, 1.0], [2.0, 4.0]], 0.5).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        >>> exact_count_mask([7.0, 7.0, 7.0, 7.0], 0.5).tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    fraction = fraction_argument("sparsity", sparsity)
    score = np.asarray(score)
    flat = score.reshape(-1)
    if flat.size == 0:
        raise argument_error("score", "an array with at least one entry", score)
    if np.isnan(flat).any():
        raise argument_error("score", "free of NaN", score, "Check the weights: training may have diverged.")
    mask = np.ones(flat.size, np.float32)
    zeros = min(zeros_asked(fraction, flat.size), flat.size - 1)
    if zeros:
        cut = np.partition(flat, zeros - 1)[zeros - 1]  # the highest score that goes; linear time, unlike a sort
        below = flat < cut
        ties = np.flatnonzero(flat == cut)  # in index order
        mask[below] = 0.0
        mask[ties[: zeros - np.count_nonzero(below)]] = 0.0
    return mask.reshape(score.shape)
