"""One phase of training: a `fit` whose learning rate falls, which ends in time, and which is measured."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sensprune.errors import TrainingError, argument_error
from keras_sensprune.formulas.schedules import half_cosine
from keras_sensprune.planning.borrowing import put_back, strength_of
from keras_sensprune.planning.feed import Feed
from keras_sensprune.records.planning import PhaseRecord
from keras_sensprune.training.budget import direction, names_accuracy
from keras_sensprune.training.targets import Target

LAST_RATE = 0.01  # of the learning rate with which a phase begins


class PhasePace(keras.callbacks.Callback):
    """Lets the learning rate fall along a half cosine, over as many epochs as there is time for, or keeps it.

    An epoch has the rate of its middle: to set one in every step would take a call from the host per step.

    Args:
        epochs: most epochs.
        seconds: for all of them. After each one it is estimated how many more fit; the first one is always finished.
        first: number of the first epoch.
        last: the rate at the end as a share of that at the beginning; 1 keeps it.
    """

    def __init__(self, epochs: int, seconds: float, first: int, *, last: float = LAST_RATE):
        super().__init__()
        self.most = self.epochs = epochs
        self.seconds, self.first, self.last = seconds, first, last
        self.done = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """The rate and the time from which everything is counted."""
        self._rate = float(self.model.optimizer.learning_rate.numpy())
        self._begun = self._last = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """The rate of this epoch."""
        factor = half_cosine((self.done + 0.5) / self.epochs, self.last)
        self.model.optimizer.learning_rate.assign(self._rate * factor)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Plans the rest, and ends the phase when it is done."""
        now = time.perf_counter()
        took, self._last = now - self._last, now
        self.done = epoch + 1 - self.first
        left = self.seconds - (now - self._begun)
        if math.isfinite(left):
            self.epochs = max(self.done, min(self.most, self.done + math.floor(left / took)))
        if self.done >= self.epochs:
            self.model.stop_training = True


class NeedsTwoEpochs(keras.callbacks.Callback):
    """Refuses a time in which not even a second epoch fits, when the first one has been measured.

    Args:
        minutes: of the budget.
        left: seconds of them that are left when the phase begins.
    """

    def __init__(self, minutes: float, left: float):
        super().__init__()
        self.minutes, self.left = minutes, left

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts the clock."""
        self._begun: float | None = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks at the clock once."""
        if self._begun is None:
            return
        took, self._begun = time.perf_counter() - self._begun, None
        if 2 * took > self.left:
            least = math.ceil(10 * 3 * took / 60) / 10
            raise argument_error(
                "minutes", f"time for a few epochs: one takes {took:.3g} s", self.minutes, f"Allow {least:g} or more."
            )


@dataclasses.dataclass(frozen=True)
class Monitor:
    """The quantity that is watched on validation data.

    Attributes:
        name: as `evaluate` calls it.
        percent: whether its error is 100 * (1 - value), as for an accuracy; else the error is the value.
    """

    name: str
    percent: bool

    def error(self, found: dict[str, float]) -> float:
        """The error: less is better."""
        value = float(found[self.name])
        return self.rounded(100.0 * (1.0 - value)) if self.percent else value

    def rounded(self, error: float) -> float:
        """Percent without what float32 puts behind the fourth digit; any other error is as small as it may be."""
        return round(error, 4) if self.percent else error


def choose_monitor(
    found: dict[str, float], metric: str | None, mode: str = "auto", model: keras.Model | None = None
) -> Monitor:
    """The named quantity; without a name the model's accuracy, or else the loss.

    Args:
        found: what `evaluate` returned.
        metric: a name in it, or None.
        mode: `"min"`, `"max"` or `"auto"`, see `direction`.
        model: the model, whose metrics say what is better.

    Returns:
        A `Monitor`.

    Raises:
        ArgumentError: if there is no such quantity, nothing tells whether more of it is better, or None leaves a choice
            between several accuracies.
    """
    names = ", ".join(map(repr, found))
    if metric is None:
        exact = [name for name in found if name in ("accuracy", "acc")]
        accuracies = exact or [name for name in found if names_accuracy(name)]
        if len(accuracies) > 1:
            raise argument_error("metric", f"one of {names}", metric, "The model has several accuracies.")
        metric = accuracies[0] if accuracies else "loss"
    elif metric not in found:
        raise argument_error("metric", f"one of {names}", metric)
    more_is_better = direction(metric, mode, model) == "max"
    return Monitor(metric, more_is_better)


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """Trains one model in phases.

    Attributes:
        model: the model.
        targets: its prunable weights.
        feed: the data.
        monitor: what is watched.
        start: (variable, value) of the optimizer's state with which every phase begins.
        callbacks: of the user, for every phase.
        patience: a phase ends when the watched error has not become better for so many epochs of its second half.
    """

    model: Any
    targets: Sequence[Target]
    feed: Feed
    monitor: Monitor
    start: Sequence[tuple[Any, Any]]
    callbacks: Sequence[Any]
    patience: int

    def phase(
        self,
        name: str,
        epochs: int,
        seconds: float = math.inf,
        *,
        first: int,
        strength: float | None = 0.0,
        last: float = LAST_RATE,
        extra: Sequence[Any] = (),
        may_diverge: bool = False,
    ) -> PhaseRecord:
        """Trains for some epochs from the optimizer's first state, and measures.

        It ends early when the watched error does not become better any more, unless the rate is kept: that is the half
        of a round in which weights go and the error is meant to grow.

        Args:
            name: of the phase.
            epochs: most epochs.
            seconds: for them.
            first: number of the first epoch, so that epochs are counted through all phases.
            strength: of all prunable weights in this phase; None leaves each its own.
            last: see `PhasePace`.
            extra: callbacks of this phase.
            may_diverge: whether a training that diverges has a record, with the error None.

        Returns:
            What was measured; as accepted unless it diverged.

        Raises:
            TrainingError: if the error is not finite afterwards, or the pruning met weights that are not.
        """
        begun = time.perf_counter()
        pace = PhasePace(epochs, seconds, first, last=last)
        mode = "max" if self.monitor.percent else "min"
        plateau = keras.callbacks.EarlyStopping(
            f"val_{self.monitor.name}", patience=self.patience, mode=mode, start_from_epoch=first + epochs // 2
        )
        callbacks = [*extra, pace, *([plateau] if last < 1 else []), *self.callbacks]
        put_back(self.start)
        try:
            with strength_of(self.model, self.targets, strength):
                self.feed.fit(self.model, epochs=first + epochs, initial_epoch=first, callbacks=callbacks)
            record = self.measured(name)
        except TrainingError:
            if not may_diverge:
                raise
            record = PhaseRecord(name, 0, 0.0, None, self.nonzero(), self.total, accepted=False)
        return dataclasses.replace(record, epochs=max(1, pace.done), seconds=time.perf_counter() - begun)

    def measured(self, name: str) -> PhaseRecord:
        """The model as it is now, as a phase without epochs.

        Raises:
            TrainingError: if the error, the loss or a weight is not finite.
        """
        begun = time.perf_counter()
        with strength_of(self.model, self.targets, 0.0):  # the penalty is no error
            found = self.feed.evaluate(self.model)
        error = self.monitor.error(found)
        remedy = "Training has diverged: lower the learning rate with which the model is compiled."
        for what, value in ((self.monitor.name, error), ("loss", found["loss"])):
            if not math.isfinite(value):
                raise TrainingError(f"After the phase {name!r} the validation {what} is {value}. {remedy}")
        for weight in self.model.trainable_variables:  # an accuracy is finite also where the answers are not
            if not np.all(np.isfinite(np.asarray(weight.numpy(), "float64"))):
                raise TrainingError(f"After the phase {name!r} the weight {weight.path!r} is not finite. {remedy}")
        return PhaseRecord(name, 0, time.perf_counter() - begun, error, self.nonzero(), self.total, accepted=True)

    def nonzero(self) -> int:
        """Prunable weights that are not zero."""
        return sum(int(np.count_nonzero(target.variable.numpy())) for target in self.targets)

    @property
    def total(self) -> int:
        """Prunable weights."""
        return sum(math.prod(target.variable.shape) for target in self.targets)
