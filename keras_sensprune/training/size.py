"""The rule that prunes until the model is small enough: in parameters, or in bytes of its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_sensprune.errors import ModelError, argument_error, integer_argument, number_argument
from keras_sensprune.formulas.items import Items
from keras_sensprune.formulas.schedules import SparsitySchedule
from keras_sensprune.training.moment import Moment
from keras_sensprune.training.rules import Choice, Limits, PruningRule, SparsityTarget, trials
from keras_sensprune.training.targets import parameters

_PRECISION = 1 / 256  # of all weights: a search among sizes of files ends there, after 8 of them


@dataclasses.dataclass(frozen=True)
class SizeTarget(PruningRule):
    r"""Rule: prune until the model is small enough.

    For `parameters` the sparsity that is needed is $1 - (P - F) / n$ with $P$ the target, $n$ the prunable weights and
    $F$ all others, which stay. For `bytes` it is found by bisection: `size_of(model)` is asked for the size of the
    file, with the weights as they would be; about 8 times when `fit` begins, and again whenever the size that
    was reached at the end of the schedule is too large. On the way the sparsity follows a schedule.

    Args:
        parameters: the largest number of nonzero parameters of the whole model, biases, frozen layers and the
            like included, moving statistics not.
        bytes: the largest size of the file, in the unit of `size_of`.
        size_of: function model -> size, which falls as weights become zero; for example the size in bytes of a
            compressed file. It must leave the model as it is.
        schedule: its shape, begin and end are those of the way, its sparsities are not used; None means that of
            `SparsitySchedule` by default.
        allocation: see `SparsityTarget`.
        limits: see `SparsityTarget`.

    Returns:
        A frozen configuration object, for `PruneAtEpochEnd(threshold=...)`.

    Raises:
        ArgumentError: unless exactly one of `parameters` and `bytes` is given, the latter with `size_of`; at the start
            of `fit` also for the reasons of `SparsityTarget`.
        ModelError: at the start of `fit`, if the target cannot be reached even with all prunable weights gone but one
            per tensor.

    Example:
        >>> from keras_sensprune import SizeTarget
        >>> SizeTarget(parameters=10_000).parameters
        10000
    """

    parameters: int | None = None
    bytes: int | None = None
    size_of: Callable[[Any], int] | None = None
    schedule: SparsitySchedule | None = None
    allocation: str = "global"
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if (self.parameters is None) == (self.bytes is None):
            raise argument_error("parameters", "given, or `bytes`, but not both", self.parameters)
        name = "parameters" if self.bytes is None else "bytes"
        integer_argument(name, getattr(self, name), 1)
        if (self.bytes is None) != (self.size_of is None) or not (self.size_of is None or callable(self.size_of)):
            raise argument_error("size_of", "a function model -> bytes if `bytes` is given, else None", self.size_of)
        if self.schedule is None:
            object.__setattr__(self, "schedule", SparsitySchedule(0.0))
        elif not isinstance(self.schedule, SparsitySchedule):
            raise argument_error("schedule", "a SparsitySchedule or None", self.schedule)
        self._target(0.0)

    def _target(self, sparsity: float) -> SparsityTarget:
        schedule = dataclasses.replace(self._way, final=sparsity, initial=0.0)
        return SparsityTarget(schedule, self.allocation, self.limits)

    def needed(self, session: Any) -> float:
        """The sparsity that the target needs, with the weights as they are now.

        Raises:
            ModelError: if the target cannot be reached.
        """
        return self._needed(session, session.items())

    def check(self, session: Any, moment: Moment) -> None:
        """Finds the sparsity that is needed; a resumed training with the same target knows it."""
        if self._name not in session.memory:
            session.memory[self._name] = self.needed(session)
        if session.memory[self._name] > 0:
            self._target(session.memory[self._name]).check(session, moment)

    def choose(self, session: Any, families: list[Items], moment: Moment) -> Choice:
        """Follows the schedule, and looks at its end whether the file is small enough."""
        sparsity = session.memory[self._name]
        choice = self._target(sparsity).choose(session, families, moment)
        _, end = self._way.moments(moment.epochs or 1)
        if self.size_of is None or moment.epoch + 1 < end:
            return choice
        with trials(session, families) as install:
            install(choice.masks)
            small_enough = size_in_bytes(self.size_of, session.model) <= self._limit
        if not small_enough:
            sparsity = session.memory[self._name] = self._needed(session, families, sparsity)
            choice = self._target(0.0).at_sparsity(session, families, sparsity)
        return choice

    @property
    def _name(self) -> str:
        """Where the memory has the sparsity that is needed: another target is another memory."""
        return f"sparsity for {'parameters' if self.bytes is None else 'bytes'} {self._limit}"

    @property
    def _way(self) -> SparsitySchedule:
        assert self.schedule is not None  # set when the object was made
        return self.schedule

    @property
    def _limit(self) -> int:
        return int(self.parameters if self.bytes is None else self.bytes)  # type: ignore[arg-type]

    def _needed(self, session: Any, families: list[Items], least: float = 0.0) -> float:
        """The lowest sparsity that is enough, from `least` on."""
        total = sum(items.total for items in families)
        most = 1.0 - len(families) / total
        if self.size_of is None:
            others = parameters(session.model) - total
            needed = max(0.0, 1.0 - (self._limit - others) / total)
            if needed > most:
                raise ModelError(
                    f"Model {session.model.name!r} has {others:,} parameters that are not pruned, and each of its "
                    f"{len(families)} prunable tensors keeps at least one. {self._limit:,} parameters cannot be "
                    "reached: raise `parameters`, or put a SensitivityRegularizer on more weights."
                )
            return needed
        target = self._target(0.0)
        with trials(session, families) as install:

            def size(sparsity: float) -> float:
                install(target.at_sparsity(session, families, sparsity).masks)
                return size_in_bytes(self.size_of, session.model)

            if size(least) <= self._limit:
                return least
            smallest = size(most)
            if smallest > self._limit:
                raise ModelError(
                    f"`size_of` gives {smallest:,.0f} for model {session.model.name!r} with all prunable weights gone "
                    f"but one per tensor, so {self._limit:,} cannot be reached: raise `bytes`."
                )
            while most - least > _PRECISION:
                middle = (least + most) / 2
                least, most = (middle, most) if size(middle) > self._limit else (least, middle)
        return most


def size_in_bytes(size_of: Any, model: Any) -> float:
    """What the user's function says of a model.

    Raises:
        ArgumentError: if that is no finite number above 0.
    """
    size, allowed = size_of(model), "a function that returns a finite number above 0"
    if number_argument("size_of", size, allowed) == 0:
        raise argument_error("size_of", allowed, size)
    return float(size)
