"""The shrinkage of a step: taken from the weights as they are before the update, and subtracted from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import ops

from keras_sensprune.training.state import PrunedWeight

Shrinkage = tuple[PrunedWeight, Any]  # a weight, and d: what is to be subtracted from it


def shrink_in_place(weights: Sequence[PrunedWeight], steps: Any) -> None:
    """w <- w - d, before the update.

    Args:
        weights: all that are pruned.
        steps: how many shrinkages are due, see `Pace.steps`.
    """
    shrinking = [w for w in weights if w.shrinks]
    for weight, value in zip(shrinking, [w.shrinkage(steps) for w in shrinking], strict=True):
        weight.variable.value.assign_sub(value)


def shrinkages(weights: Sequence[PrunedWeight], steps: Any, due: Any) -> list[Shrinkage]:
    """d of each weight that shrinks, to be subtracted after the update.

    Args:
        weights: all that are pruned.
        steps: how many shrinkages are due, see `Pace.steps`.
        due: whether any is due: a boolean tensor, True or False.

    Returns:
        Where none is due: zeros for a tensor `due`, nothing at all for False.
    """
    shrinking = [w for w in weights if w.shrinks]

    def taken() -> list[Any]:
        return [w.shrinkage(steps) for w in shrinking]

    def nothing() -> list[Any]:
        return [ops.zeros(w.variable.shape, w.variable.dtype) for w in shrinking]

    if due is False or not shrinking:
        return []
    values = taken() if due is True else tf.cond(due, taken, nothing)
    return list(zip(shrinking, values, strict=True))


def subtract(strategy: Any, taken: list[Shrinkage], real: Any | None) -> None:
    """w <- w - d after the update, where there was one.

    Args:
        strategy: of the model.
        taken: from `shrinkages`.
        real: whether the optimizer has updated, a boolean tensor; None if it always does.
    """
    if not taken:
        return
    values = [d if real is None else ops.where(real, d, ops.zeros_like(d)) for _, d in taken]

    def work(_: Any, *values: Any) -> None:
        for (weight, _d), value in zip(taken, values, strict=True):
            weight.variable.value.assign_sub(value)
            weight.keep_constraint()

    tf.__internal__.distribute.interim.maybe_merge_call(work, strategy, *values)
