"""When sensitivities are refreshed, and how many shrinkages are due then: counters on the device."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def counter(start: int) -> Any:
    """An integer variable that is equal on all replicas."""
    return keras.Variable(
        initializer=lambda shape, dtype: ops.full(shape, start, dtype),
        shape=(),
        dtype="int64",
        trainable=False,
        aggregation="only_first_replica",
    )


class Pace:
    """Every how many updates the sensitivities are refreshed and the shrinkage is applied.

    Args:
        every: n of `Sensitivity(every=n)`.

    Attributes:
        refreshes: how many refreshes there have been, a variable.
    """

    def __init__(self, every: int):
        self.every = every
        self.refreshes = counter(0)
        self._wait = counter(0)  # updates until the next refresh
        self._pending = counter(0)  # updates whose shrinkage has not been applied

    @property
    def counters(self) -> dict[str, Any]:
        """All that must be kept between two steps, by name."""
        return {"refreshes": self.refreshes, "wait": self._wait, "pending": self._pending}

    def due(self) -> Any:
        """Whether this step refreshes: a boolean tensor, or True if every step does."""
        return self.every == 1 or ops.equal(self._wait, 0)

    def steps(self) -> Any:
        """How many shrinkages a step applies when it is due, its own included: the integer 1 if every step does."""
        return 1 if self.every == 1 else ops.convert_to_tensor(self._pending) + 1

    def count_refresh(self, due: Any = True) -> None:
        """Notes that the sensitivities have been refreshed, where it was `due`."""
        one = 1 if due is True else ops.cast(due, "int64")
        self.refreshes.assign(ops.convert_to_tensor(self.refreshes) + one)

    def end(self, due: Any, real: Any | None) -> None:
        """Closes a step.

        Args:
            due: what `due` said at its beginning, or that as True or False.
            real: whether the optimizer has updated, a boolean tensor; None if it always does. A step that has not
                counts for nothing, and a refresh that was due stays due.
        """
        if self.every == 1:
            return
        wait, pending = ops.convert_to_tensor(self._wait), ops.convert_to_tensor(self._pending)
        after = ops.where(due, self.every - 1, wait - 1), ops.where(due, 0, pending + 1)
        for variable, old, new in zip((self._wait, self._pending), (wait, pending), after, strict=True):
            variable.assign(ops.cast(new if real is None else ops.where(real, new, old), "int64"))

    def take_pending(self) -> int:
        """How many updates have not been shrunk for, which the caller does now; between steps only."""
        pending = int(self._pending.numpy())
        if pending:
            self._pending.assign(0)
        return pending
