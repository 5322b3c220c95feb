"""How many weights a budget leaves, and whether a model can get there at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_sensprune.errors import argument_error
from keras_sensprune.formulas.allocation import zeros_asked
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.records.planning import Budget
from keras_sensprune.training.size import SizeTarget
from keras_sensprune.training.step import PruningSession

SizeOf = Callable[[Any], int]


def check_size_of(budget: Budget, size_of: SizeOf | None) -> None:
    """`bytes` and the function that counts them belong together.

    Raises:
        ArgumentError: if there is one of them alone, or it is no function.
    """
    if (budget.bytes is None) != (size_of is None) or not (size_of is None or callable(size_of)):
        raise argument_error(
            "size_of", "a function model -> bytes if the budget has `bytes`, else None", size_of, "See SizeTarget."
        )


def weights_to_keep(
    model: Any, budget: Budget, size_of: SizeOf | None, sensitivity: Sensitivity
) -> tuple[int | None, int]:
    """The largest number of nonzero prunable weights that is small enough, and the smallest number that can be left.

    Args:
        model: a compiled model with its weights as they are now; for `bytes` they matter.
        budget: what is asked for.
        size_of: counts the bytes.
        sensitivity: of the rule; one that cannot be had from this model is refused here.

    Returns:
        (target, least); the target is None where the budget has no size.

    Raises:
        ArgumentError, ModelError: if the model cannot become that small.
    """
    session = PruningSession(model, sensitivity)
    total, least = sum(items.total for items in session.items()), len(session.families)
    if budget.sparsity is not None:
        target = total - zeros_asked(budget.sparsity, total)
        if target < least:
            allowed = f"at most {1 - least / total:.6g} for this model, whose {least} tensors keep one weight each"
            raise argument_error("sparsity", allowed, budget.sparsity)
        return target, least
    if budget.parameters is None and budget.bytes is None:
        return None, least
    needed = SizeTarget(parameters=budget.parameters, bytes=budget.bytes, size_of=size_of).needed(session)
    return total - zeros_asked(needed, total), least
