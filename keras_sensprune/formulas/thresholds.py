"""From a threshold on |w| to a mask that never empties a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sensprune.errors import argument_error, number_argument


def threshold_mask(weight: Any, threshold: float, alive: Any) -> tuple[np.ndarray, bool]:
    r"""Mask of the living weights that reach the threshold.

    $$m_i = \mathrm{alive}_i \wedge \neg\,(|w_i| < T),$$ with $w$ the weight and $T$ the threshold: strictly smaller
    ones go, equal ones stay. If nothing would be left, the largest living $|w_i|$ is kept (the floor; among equals
    the one with the lowest flat index). The comparison is made in the dtype of the weight.

    Args:
        weight: real array of any shape. NaN stays: stopping a diverged training is not this function's business.
        threshold: $T \ge 0$, finite, in units of the weight.
        alive: boolean or 0/1 array of the shape of `weight`; what is dead stays dead.

    Returns:
        The mask, a boolean array of the shape of `weight`, and whether the floor was needed.

    Raises:
        ArgumentError: if `threshold` is no finite number of at least 0, or `alive` has another shape or no living
            entry.

    Example:
        >>> from keras_sensprune.formulas.thresholds import threshold_mask
        >>> mask, floored = threshold_mask([0.3, -0.01, 0.1], 0.1, [True, True, True])
        >>> mask.tolist(), floored
        ([True, False, True], False)
        >>> mask, floored = threshold_mask([0.3, -0.4, 0.1], 1.0, [True, True, True])
        >>> mask.tolist(), floored
        ([False, True, False], True)
    """
    limit = number_argument("threshold", threshold, "a finite number of at least 0")
    size, living = np.abs(np.asarray(weight)), np.asarray(alive, bool)
    if living.shape != size.shape:
        raise argument_error("alive", f"of the weight's shape {size.shape}", living.shape)
    if not living.any():
        raise argument_error("alive", "true for at least one entry", living)
    mask = living & ~(size < limit)
    if mask.any():
        return mask, False
    mask.flat[np.argmax(np.where(living, size, -1.0))] = True  # argmax takes the first among equals
    return mask, True
