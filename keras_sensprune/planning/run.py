"""The phases of one `sparsify`, one after the other: dense, rounds, fine-tuning."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from keras_sensprune.errors import TrainingError
from keras_sensprune.formulas.schedules import SparsitySchedule
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.planning.phases import NeedsTwoEpochs, Trainer
from keras_sensprune.planning.progress import DENSE, End, Progress, ProgressFile
from keras_sensprune.planning.rounds import REACHED, Course, Round, Step, is_good, next_step
from keras_sensprune.planning.target import SizeOf, weights_to_keep
from keras_sensprune.records.planning import Budget, PhaseRecord
from keras_sensprune.training.callback import PruneAtEpochEnd
from keras_sensprune.training.rules import SparsityTarget
from keras_sensprune.training.size import size_in_bytes

FINE = "fine-tune"
DENSE_SHARE = 0.25  # of the minutes: the dense phase takes no more


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a user may choose about the phases.

    Attributes:
        dense_epochs, round_epochs, fine_epochs: most epochs of the dense phase, of a round, of the fine-tuning.
        keep: share of the weights that a round leaves.
        sensitivity: of the rounds.
    """

    dense_epochs: int
    round_epochs: int
    fine_epochs: int
    keep: float
    sensitivity: Sensitivity


class Run:
    """One run on one model.

    Args:
        trainer: trains a phase.
        budget: what is asked for.
        plan: the settings of the phases.
        size_of: counts the bytes of the file.
        file: keeps the progress, or None.
        say: receives one line per phase, or None.
    """

    def __init__(
        self,
        trainer: Trainer,
        budget: Budget,
        plan: Plan,
        *,
        size_of: SizeOf | None,
        file: ProgressFile | None,
        say: Callable[[str], None] | None,
    ):
        self.trainer, self.budget, self.plan = trainer, budget, plan
        self.size_of, self.file, self.say = size_of, file, say
        self.model = trainer.model
        self.seconds = math.inf if budget.minutes is None else 60.0 * budget.minutes
        self.phases: list[PhaseRecord] = []
        self.good: list[Any] | None = None
        self.target: int | None = None

    def go(self) -> tuple[tuple[PhaseRecord, ...], str, tuple[str, ...]]:
        """Runs all phases that are not done yet; the model then has the last good weights, also after an error.

        Returns:
            The phases, why there was no further round, and the names of the budgets that were not met.
        """
        self.begun = time.perf_counter()
        end = self._resume()
        if end is not None:
            return tuple(self.phases), end.why, end.unmet
        target, self.least = self._asked()  # refuses before training
        try:
            if not self.phases:
                self._dense(target)
            course, step = self._rounds()
            if not any(phase.name == FINE for phase in self.phases):
                self._fine_tune(step)
        finally:
            if self.good is not None:
                self.model.set_weights(self.good)
        end = End(step.why, self._unmet(course))
        self._keep(end)
        return tuple(self.phases), end.why, end.unmet

    def _resume(self) -> End | None:
        """Takes up what the file has; how it ended, if it did."""
        before = None if self.file is None else self.file.load(self.model)
        if before is None:
            return None
        self.phases, self.good, self.target = list(before.phases), before.weights, before.target
        self.begun -= sum(phase.seconds for phase in self.phases)
        self.model.set_weights(self.good)
        self._tell(f"going on after {self.phases[-1].name}" if before.end is None else "all phases are done already")
        return before.end

    def _keep(self, end: End | None = None) -> None:
        """Writes the progress."""
        if self.file is not None and self.good is not None:
            self.file.save(Progress(tuple(self.phases), self.good, self.target, end))

    def _dense(self, target: int | None) -> None:
        """Trains without shrinkage; zeros that the model has already stay. Without epochs the target is that of now.

        A training that diverges leaves the weights as they were.
        """
        if not self.plan.dense_epochs:
            self.target = target
            self._done(self.trainer.measured(DENSE))
            return
        extra = self._clock()
        if self.trainer.nonzero() < self.trainer.total:
            extra.append(_frozen())
        seconds, before = DENSE_SHARE * self.seconds, self.model.get_weights()
        try:
            record = self.trainer.phase(DENSE, self.plan.dense_epochs, seconds, first=0, extra=extra)
        except TrainingError:
            self.model.set_weights(before)
            raise
        self._done(record)

    def _asked(self) -> tuple[int | None, int]:
        """(largest number of weights that is small enough, smallest one that can be left), as the weights are now."""
        return weights_to_keep(self.model, self.budget, self.size_of, self.plan.sensitivity)

    def _clock(self, trained: int = 0) -> list[Any]:
        """Looks at the first epoch of a run whose time is limited; `trained` are epochs that are not recorded yet."""
        trained += self._epochs
        return [] if self.budget.minutes is None or trained else [NeedsTwoEpochs(self.budget.minutes, self.seconds)]

    def _course(self) -> Course:
        dense, error = self.phases[0], self.budget.error
        if self.target is None:
            self.target, _ = self._asked()  # for bytes it depends on the weights, which are the dense ones here
        return Course(
            start=dense.nonzero,
            least=self.least,
            target=self.target,
            allowed=math.inf if error is None else self.trainer.monitor.rounded(error_of(dense) + error),
            keep=self.plan.keep,
            fine_share=self.plan.fine_epochs / self.plan.round_epochs,
        )

    def _rounds(self) -> tuple[Course, Step]:
        """All rounds; what was asked for, and the end."""
        course = self._course()
        while True:
            rounds = [
                Round(phase.nonzero, error_of(phase), phase.epochs, phase.seconds)
                for phase in self.phases[1:]
                if phase.name != FINE
            ]
            beside = self._elapsed - sum(done.seconds for done in rounds)  # the dense phase, and all asking for bytes
            course = dataclasses.replace(course, seconds=self.seconds - beside)
            step = next_step(course, rounds)
            if step.kept is not None:
                self._round(course, step)
            elif step.why == REACHED and self._too_large() and self.phases[-1].name != FINE:
                target, _ = self._asked()
                course = dataclasses.replace(course, target=min(target or 0, self._last_good.nonzero - 1))
            else:
                return course, step

    def _round(self, course: Course, step: Step) -> None:
        """Shrinks and prunes at the full learning rate, then trains what is left while the rate falls."""
        assert step.kept is not None
        name, begun = f"round {len(self.phases)}", time.perf_counter()
        sparsity, epochs = 1.0 - step.kept / self.trainer.total, 0
        record = self._shrink(name, sparsity, step.seconds) if self.plan.round_epochs > 1 else None
        if record is None or record.error is not None:
            epochs = record.epochs if record else 0
            record = self._settle(name, sparsity, step.seconds - (time.perf_counter() - begun), epochs)
        good = is_good(course, Round(record.nonzero, error_of(record)))
        if record.error is None:  # the next round shall not try as few weights again, however far this one came
            record = dataclasses.replace(record, nonzero=step.kept)
        seconds = time.perf_counter() - begun
        self._done(dataclasses.replace(record, epochs=epochs + record.epochs, seconds=seconds, accepted=good))

    def _settle(self, name: str, sparsity: float, seconds: float, shrunk: int) -> PhaseRecord:
        """The second half of a round, after so many epochs of the first one.

        Where the time was too short for all shrinking epochs, or there are none, this prunes the rest.
        """
        rest = SparsityTarget(SparsitySchedule(sparsity, "constant"))
        prune = PruneAtEpochEnd(rest, Sensitivity("none") if shrunk else self.plan.sensitivity)
        return self.trainer.phase(
            name,
            self.plan.round_epochs - self.plan.round_epochs // 2,
            seconds,
            first=self._epochs + shrunk,
            strength=0.0 if shrunk else None,
            extra=[prune, *self._clock(shrunk)],
            may_diverge=True,
        )

    def _shrink(self, name: str, sparsity: float, seconds: float) -> PhaseRecord:
        """The first half of a round."""
        epochs, first = self.plan.round_epochs // 2, self._epochs
        now = 1.0 - self.trainer.nonzero() / self.trainer.total
        schedule = SparsitySchedule(sparsity, "linear", initial=now, begin=first, end=first + epochs)
        return self.trainer.phase(
            name,
            epochs,
            seconds * epochs / self.plan.round_epochs,
            first=first,
            strength=None,
            last=1.0,
            extra=[PruneAtEpochEnd(SparsityTarget(schedule), self.plan.sensitivity), *self._clock()],
            may_diverge=True,
        )

    def _fine_tune(self, end: Step) -> None:
        """Trains what is left with the zeros kept, if anything was pruned and there is time for an epoch."""
        last = self.phases[-1]
        if not self.plan.fine_epochs or len(self.phases) == 1 or not self._last_good.name.startswith("round"):
            return
        if end.seconds < last.seconds / last.epochs:
            return
        large = self._too_large()  # then no byte is left to be lost
        record = self.trainer.phase(
            FINE, self.plan.fine_epochs, end.seconds, first=self._epochs, extra=[_frozen()], may_diverge=True
        )
        better = error_of(record) <= error_of(self._last_good) and (large or not self._too_large())
        self._done(dataclasses.replace(record, accepted=better))

    def _done(self, record: PhaseRecord) -> None:
        """Keeps the weights, or goes back to the last good ones; writes the progress."""
        if record.accepted:
            self.good = self.model.get_weights()
        elif self.good is not None:
            self.model.set_weights(self.good)
        self.phases.append(record)
        self._keep()
        unit = " %" if self.trainer.monitor.percent else ""
        found = "diverged" if record.error is None else f"validation error {record.error:.4g}{unit}"
        self._tell(
            f"{record.name}: {record.nonzero:,} of {record.total:,} weights ({record.compression:.1f}x), "
            f"{record.epochs} epochs in {record.seconds:.0f} s, {found}" + ("" if record.accepted else ", not kept")
        )

    @property
    def _last_good(self) -> PhaseRecord:
        return [phase for phase in self.phases if phase.accepted][-1]

    @property
    def _elapsed(self) -> float:
        """Seconds since the beginning, those before a resumed run was killed included."""
        return time.perf_counter() - self.begun

    @property
    def _epochs(self) -> int:
        """Epochs of all phases so far."""
        return sum(phase.epochs for phase in self.phases)

    def _too_large(self) -> bool:
        """Whether the file of the model as it is now is larger than it may be."""
        return self.size_of is not None and size_in_bytes(self.size_of, self.model) > (self.budget.bytes or 0)

    def _unmet(self, course: Course) -> tuple[str, ...]:
        names = []
        if self._too_large():
            names.append("bytes")
        for name in ("parameters", "sparsity"):
            if getattr(self.budget, name) is not None and self._last_good.nonzero > (course.target or 0):
                names.append(name)
        if self._elapsed > self.seconds:
            names.append("minutes")
        return tuple(names)

    def _tell(self, text: str) -> None:
        if self.say is not None:
            self.say(text)


def error_of(record: PhaseRecord) -> float:
    """The error of a phase; one that diverged has none, which is too large for any budget."""
    return math.nan if record.error is None else record.error


def _frozen() -> PruneAtEpochEnd:
    """Keeps today's zeros, and does nothing else."""
    return PruneAtEpochEnd(0.0, Sensitivity("none"))
