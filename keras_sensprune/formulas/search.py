"""The largest threshold that an error still allows, by bisection over the sorted magnitudes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        threshold: the threshold; 0 if not even the smallest entry can go.
        removed: how many living entries are below it.
        refused: the smallest number of entries that is known to be too many; None if all can go.
        value: the metric there.
        evaluations: how often the metric was computed.
    """

    threshold: float
    removed: int
    refused: int | None
    value: float
    evaluations: int


def largest_threshold(
    scores: Any,
    metric: Callable[[float], float],
    allowed: float,
    start: int = 0,
    precision: float = 0.0,
    limit: float = math.inf,
) -> Found:
    r"""Largest threshold at which the metric is at most `allowed`.

    The candidates are the distinct scores $q_{(1)} < q_{(2)} < \dots$ of the living entries and one step above the
    largest; at $T = q_{(j)}$ every lower one goes. Bisection over $j$ finds a $j$ such that the metric is allowed at
    $q_{(j)}$ and not at the next candidate. If the metric grows with $T$ there is only one; else it is one of them.
    From a first guess the bracket is opened by doubling, so that a search near the last one is short.

    Args:
        scores: of the living entries, high = keep; at least one.
        metric: threshold -> value, lower is better. It is called with 0 first, where nothing goes; NaN is not
            allowed anywhere.
        allowed: the largest allowed value.
        start: first guess: how many entries go.
        precision: the search may stop when the numbers of entries below both ends of the bracket differ by at most
            this fraction of all living entries; 0 means exactly.
        limit: the search stops after so many thresholds above 0, with the best one of them: the largest that is
            allowed. Searches that follow each other, each with the result of the one before as its first guess, get
            there together.

    Returns:
        What was found. If the metric is not allowed at 0, the threshold is 0.

    Example:
        >>> from keras_sensprune.formulas.search import largest_threshold
        >>> found = largest_threshold([0.1, 0.2, 0.3, 0.4], lambda t: 0.0 if t <= 0.25 else 1.0, 0.5)
        >>> found.threshold, found.removed
        (0.2, 1)
    """
    values, counts = np.unique(np.asarray(scores), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])  # below[j] entries are smaller than candidate j
    candidates = [*values.tolist(), float(np.nextafter(values[-1], np.inf))]
    found: dict[int, float] = {}

    def allowed_at(j: int) -> bool:
        found[j] = metric(candidates[j] if j else 0.0)
        return found[j] <= allowed

    if not allowed_at(0):
        return Found(0.0, 0, 0, found[0], 1)
    good, bad = 0, len(candidates)  # the metric is allowed at good; at bad it is not, or there is no such candidate
    guess, step = int(np.searchsorted(below, start)), max(1, len(candidates) // 64)
    while good < guess < bad and len(found) <= limit:  # open the bracket around the guess
        if allowed_at(guess):
            good, guess, step = guess, guess + step, 2 * step
        else:
            bad, guess, step = guess, guess - step, 2 * step
    slack = precision * int(below[-1])
    while bad - good > 1 and below[min(bad, len(candidates) - 1)] - below[good] > slack and len(found) <= limit:
        middle = (good + bad) // 2
        if allowed_at(middle):
            good = middle
        else:
            bad = middle
    refused = int(below[bad]) if bad < len(candidates) else None
    return Found(candidates[good] if good else 0.0, int(below[good]), refused, found[good], len(found))
