"""When a pruning happens, and after which epochs of a training others are due."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a pruning happens.

    Attributes:
        epoch: number of the epoch that is complete now, from 0.
        epochs: of the whole training; None outside of `fit`.
        steps: per epoch; None where it is not known.
        due: the epochs after which the training prunes, those before a resumption included; None: after every one.
        resumed: whether the training goes on from a state file.
    """

    epoch: int
    epochs: int | None = None
    steps: int | None = None
    due: tuple[int, ...] | None = None
    resumed: bool = False
