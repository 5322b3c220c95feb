"""When a pruning happens, and after which epochs of a training others are due."""

from __future__ import annotations

import dataclasses

from keras_sensprune.errors import argument_error


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


def known(value: int | None, what: str, argument: str = "threshold") -> int:
    """A number of a moment that a rule cannot do without.

    Args:
        value: the number, or None.
        what: is counted.
        argument: the one that holds the rule.

    Returns:
        The number.

    Raises:
        ArgumentError: if it is None.
    """
    if value is None:
        allowed = f"a rule that does not need the number of {what}, which is not known"
        remedy = "Pass `moment=Moment(epoch, epochs, steps)`, or `epochs=` and `steps=` to a CallbackList of your own."
        raise argument_error(argument, allowed, value, remedy)
    return value
