r"""How many weights each tensor keeps, and which ones go, when a total is asked for.

Tensors have $n_l$ entries, keep $k_l$ and have $z_l = n_l - k_l$ zeros. Everything here is exact: the numbers of
zeros add up to what was asked, ties and zeros that exist already included.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keras_sensprune.errors import argument_error


def erdos_renyi_shares(shapes: list[tuple[int, ...]]) -> np.ndarray:
    r"""What each tensor keeps relative to the others, by the sizes of its axes.

    $$u_l = \sum_a d_{l,a}$$ with $d_{l,a}$ the length of axis $a$ of tensor $l$. The density $u_l / n_l$ is that of
    the Erdos-Renyi-kernel rule, $(\text{inputs} + \text{outputs} + \text{kernel sizes})$ over their product, up to
    the common factor that `kept_counts` finds: small tensors stay denser than large ones.

    Args:
        shapes: of the tensors.

    Returns:
        float64 array, one positive share per tensor.

    Example:
        >>> from keras_sensprune.formulas.allocation import erdos_renyi_shares
        >>> erdos_renyi_shares([(784, 300), (3, 3, 16, 32)]).tolist()
        [1084.0, 54.0]

    Reference: Mocanu et al., Nature Communications 2018; Evci et al., "Rigging the Lottery", 2020, for kernels.
    """
    return np.array([float(sum(shape)) for shape in shapes])


def kept_counts(shares: Any, kept: int, low: Any, high: Any) -> np.ndarray:
    r"""Splits a total among tensors in proportion to their shares, within bounds.

    $$k_l = \min(h_l, \max(b_l, c\,u_l)), \qquad \sum_l k_l = K,$$ with $u_l \ge 0$ the shares, $b_l$ and $h_l$ the
    bounds, $K$ the total, and $c$ the one factor that meets it. Fractions are rounded down, and what is then missing
    goes, one each, to the tensors with the largest fractions (among equals to the first).

    Args:
        shares: $u_l$, one per tensor.
        kept: $K$.
        low: $b_l$, integers.
        high: $h_l \ge b_l$, integers.

    Returns:
        int64 array whose sum is `kept`.

    Raises:
        ArgumentError: if the bounds cannot hold the total.

    Example:
        >>> from keras_sensprune.formulas.allocation import kept_counts
        >>> kept_counts([3.0, 1.0, 1.0], 10, [1, 1, 1], [100, 100, 1]).tolist()
        [7, 2, 1]
    """
    u, lo, hi = np.asarray(shares, float), np.asarray(low, np.int64), np.asarray(high, np.int64)
    if not lo.sum() <= kept <= hi.sum():
        raise argument_error("kept", f"between {lo.sum()} and {hi.sum()}, which the bounds allow", kept)
    u = u / max(u.max(), np.finfo(float).tiny)
    u = np.where(u > 1e-12, u, 0.0)  # a share of less than 1e-12 of the largest one is none
    if kept > np.where(u > 0, hi, lo).sum():  # tensors without a share must take part
        u = np.maximum(u, (u[u > 0].min() if (u > 0).any() else 1.0) * 1e-9)
    exact = np.clip(_factor(u, kept, lo, hi) * u, lo, hi)
    whole = np.clip(np.floor(exact + 1e-9).astype(np.int64), lo, hi)
    missing = int(kept - whole.sum())
    sign = 1 if missing > 0 else -1
    order = np.argsort(-sign * (exact - whole), kind="stable")
    while missing:  # at most one turn per tensor for the fractions; more only where rounding met a bound
        for number in order:
            if missing and lo[number] <= whole[number] + sign <= hi[number]:
                whole[number] += sign
                missing -= sign
    return whole


def _factor(u: np.ndarray, kept: int, low: np.ndarray, high: np.ndarray) -> float:
    """c by bisection: the sum is a continuous, growing function of it."""
    positive = u[u > 0]
    if positive.size == 0:
        return 0.0
    below, above = 0.0, float(high.max() / positive.min()) + 1.0
    for _ in range(200):
        middle = (below + above) / 2.0
        if np.clip(middle * u, low, high).sum() < kept:
            below = middle
        else:
            above = middle
    return above


def lowest_first(
    scores: list[Any], zeros: int, low: Any, high: Any, sizes: list[Any] | None = None
) -> list[np.ndarray]:
    """Masks that remove exactly so many entries over all tensors, lowest scores first, within bounds for each.

    Args:
        scores: one array per tensor; high = keep. Entries that are zero already have a score of -inf and go first.
        zeros: how many entries go, over all tensors.
        low: per tensor, how many go at least.
        high: per tensor, how many go at most.
        sizes: where the entries are groups, arrays of how many weights each holds. Then `zeros`, `low` and `high`
            count weights, and are met from below: the next group would have been too many.

    Returns:
        Boolean masks of the shapes of the scores: True = keep. Among equal scores the earlier tensor goes first, and
        in it the lower flat index.

    Raises:
        ArgumentError: if the bounds cannot hold the number, or a score is NaN.

    Example:
        >>> from keras_sensprune.formulas.allocation import lowest_first
        >>> masks = lowest_first([[1.0, 2.0, 3.0], [2.0, 2.0]], 3, [0, 0], [3, 1])
        >>> [mask.tolist() for mask in masks]
        [[False, False, True], [False, True]]
    """
    arrays = [np.asarray(score) for score in scores]
    if any(np.isnan(array).any() for array in arrays):
        raise argument_error("scores", "free of NaN", "NaN", "Check the weights: training may have diverged.")
    if not sum(low) <= zeros <= sum(high):
        raise argument_error("zeros", f"between {sum(low)} and {sum(high)}, which the bounds allow", zeros)
    orders = [np.argsort(array, axis=None, kind="stable") for array in arrays]
    sizes = [np.ones(array.size, np.int64) for array in arrays] if sizes is None else sizes
    weighed = [np.asarray(size).ravel()[order] for size, order in zip(sizes, orders, strict=True)]
    # how many of the lowest entries of each tensor go at least, and at most
    least = [np.searchsorted(np.cumsum(size), count, "right") for size, count in zip(weighed, low, strict=True)]
    most = [np.searchsorted(np.cumsum(size), count, "right") for size, count in zip(weighed, high, strict=True)]
    ranked = np.concatenate([v.ravel()[o][a:b] for v, o, a, b in zip(arrays, orders, least, most, strict=True)])
    taken = np.concatenate([size[a:b] for size, a, b in zip(weighed, least, most, strict=True)])
    tensor = np.repeat(np.arange(len(arrays)), np.subtract(most, least))
    first = np.argsort(ranked, kind="stable")
    rest = zeros - sum(int(size[:a].sum()) for size, a in zip(weighed, least, strict=True))
    gone = first[: np.searchsorted(np.cumsum(taken[first]), rest, "right")]
    counts = np.asarray(least) + np.bincount(tensor[gone], minlength=len(arrays))
    masks = []
    for array, order, count in zip(arrays, orders, counts, strict=True):
        mask = np.ones(array.size, bool)
        mask[order[:count]] = False
        masks.append(mask.reshape(array.shape))
    return masks


def zeros_asked(sparsity: float, entries: int) -> int:
    """round(s n), halves up, as in `exact_count_mask`."""
    return math.floor(sparsity * entries + 0.5)
