"""What brings pruned weights back: weights that are restored at the end of training, and what optimizers keep."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from keras_sensprune.records import PruneRecord
from keras_sensprune.training.state import PrunedWeight, assign_masked

# Lists of the optimizers of Keras with one variable per weight that is added to the weight or takes its place: averages
# of weights, sums of gradients, momenta. Mean squares only scale an update; zero there would make the next one too
# large (Adam) or 0/0 (Ftrl).
_SLOTS = ("_model_variables_moving_average", "_accumulated_gradients", "momentums", "_momentums", "_m", "_linears")


def clear_slots(optimizer: Any, masks: Iterable[tuple[Any, Any]]) -> None:
    """Sets what an optimizer keeps of pruned entries to zero.

    Args:
        optimizer: of the model; wrappers for loss scaling and for several optimizers are looked into. Anything that
            is no Keras optimizer is left alone.
        masks: pairs (variable of the model, its mask).
    """
    alive = {id(variable): mask.numpy() != 0 for variable, mask in masks}
    for leaf in _leaves(optimizer):
        variables = getattr(leaf, "_trainable_variables", [])
        for slots in (getattr(leaf, name, None) for name in _SLOTS):
            if not isinstance(slots, list) or len(slots) != len(variables):  # empty, or of an optimizer unknown to us
                continue
            for variable, slot in zip(variables, slots, strict=True):
                if slot is not None and id(variable) in alive:
                    assign_masked(slot, alive[id(variable)])


def _leaves(optimizer: Any) -> Iterator[Any]:
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # LossScaleOptimizer
    yield from getattr(inner, "optimizers", (inner,))  # MultiOptimizer


class EpochPatterns:
    """Where the zeros were after each epoch, so that the weights of an epoch are recognized when they come back."""

    def __init__(self) -> None:
        self._records: dict[bytes, PruneRecord] = {}

    def note(self, record: PruneRecord, weights: list[PrunedWeight]) -> None:
        """The weights are as they are after the epoch of this record."""
        self._records[_pattern(weights)] = record  # the last of several epochs with the same zeros

    def find(self, weights: list[PrunedWeight]) -> PruneRecord | None:
        """The record of the epoch after which the zeros were just where they are now, or None."""
        return self._records.get(_pattern(weights))


def _pattern(weights: list[PrunedWeight]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for weight in weights:
        digest.update(np.packbits(weight.variable.numpy() != 0).tobytes())
    return digest.digest()
