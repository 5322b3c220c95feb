"""Rules that decide after an epoch which weights go: a threshold, or a sparsity that is to be reached."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_sensprune.errors import argument_error, choice_argument, fraction_argument, number_argument
from keras_sensprune.formulas.allocation import erdos_renyi_shares, kept_counts, lowest_first, zeros_asked
from keras_sensprune.formulas.items import Items
from keras_sensprune.formulas.schedules import NOT_PERCENT, SparsitySchedule
from keras_sensprune.training.moment import Moment, known

Limits = Mapping[str, tuple[float, float]] | Callable[[str], tuple[float, float] | None]
ALLOCATIONS = ("global", "uniform", "erdos_renyi", "relevance")


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What goes: masks and whether the floor was needed, per family and tensor; and the threshold it amounts to."""

    masks: list[list[np.ndarray]]
    floored: list[list[bool]]
    threshold: float


class PruningRule:
    """What `PruneAtEpochEnd(threshold=...)` takes beside a number."""

    def check(self, session: Any, moment: Moment) -> None:
        """Called once, before training starts; raises what can be known then."""

    def choose(self, session: Any, families: list[Items], moment: Moment) -> Choice:
        """Decides, and changes nothing."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FixedThreshold(PruningRule):
    """What a number means: every |w| (or group) below it goes; a tensor is never emptied."""

    threshold: float

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "threshold", number_argument("threshold", self.threshold, "a finite number of at least 0")
        )

    def choose(self, session: Any, families: list[Items], moment: Moment) -> Choice:
        """See `Items.at_least`."""
        pruned = [items.at_least(self.threshold) for items in families]
        return Choice([masks for masks, _ in pruned], [floored for _, floored in pruned], self.threshold)


def rule_argument(threshold: object) -> PruningRule:
    """The rule meant by the argument `threshold`: itself, or a number."""
    return threshold if isinstance(threshold, PruningRule) else FixedThreshold(threshold)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class SparsityTarget(PruningRule):
    r"""Rule: after every epoch exactly so many weights are zero as a schedule says.

    Asked for sparsity $s$ of $n$ prunable weights, exactly $\mathrm{round}(s\,n)$ are zero afterwards, also with ties
    and with weights that are zero already (with a structure of whole groups: as many groups as fit into that number).
    Zeros never come back, so a schedule that falls changes nothing. The `allocation` says how they are shared among
    the tensors, with $k_l$ weights kept of $n_l$, before the lowest $|w|$ (or group scores) of each go:

    - `"global"`: all tensors together, the lowest scores first;
    - `"uniform"`: $k_l \propto n_l$, the same sparsity everywhere;
    - `"erdos_renyi"`: $k_l \propto \sum_a d_{l,a}$, the sum of the lengths of its axes;
    - `"relevance"`: $k_l \propto \sum_i |w_i| S_i$ over its living weights, with $S$ the sensitivity as stored.

    Args:
        schedule: a `SparsitySchedule`; a sparsity, which then is reached by Zhu and Gupta's polynomial at three
            quarters of the epochs; or a pruning schedule of TF-MOT (`tfmot.sparsity.keras.PolynomialDecay`...), which
            is asked at every step of the epoch for its boolean: the sparsity is that of the last step at which it was
            true (asked at epoch ends alone, it often never fires).
        allocation: `"global"`, `"uniform"`, `"erdos_renyi"` or `"relevance"`.
        limits: bounds of single tensors: `{pattern: (least, most)}`, where the pattern is a path or a shell-style
            pattern of paths (`"*/conv1/kernel"`; the first that matches counts) and least and most are sparsities; or
            a function path -> (least, most) or None. While the schedule rises, `least` rises in proportion. No tensor
            is ever emptied.

    Returns:
        A frozen configuration object, for `PruneAtEpochEnd(threshold=...)`.

    Raises:
        ArgumentError: if an argument is not allowed; at the start of `fit` also if the limits cannot hold the final
            sparsity, a pattern matches no weight, or the structure is `NofM`, which leaves no choice; and, unless the
            model is sparse enough already, if no pruning is due within the epochs of this `fit`, the last one that is
            due comes before the schedule is at its final sparsity, or the schedule has ended when the epoch of the
            first one begins (a jump is asked for by `"constant"`).

    Example:
        >>> from keras_sensprune import SparsitySchedule, SparsityTarget
        >>> rule = SparsityTarget(SparsitySchedule(0.9, "cosine", end=20), "erdos_renyi", {"*/head/*": (0.0, 0.5)})
        >>> rule.allocation
        'erdos_renyi'
    """

    schedule: Any
    allocation: str = "global"
    limits: Limits | None = None

    def __post_init__(self) -> None:
        choice_argument("allocation", self.allocation, ALLOCATIONS)
        schedule = self.schedule
        if not isinstance(schedule, SparsitySchedule) and not _of_tfmot(schedule):
            if callable(schedule):
                raise argument_error("schedule", "a sparsity, a SparsitySchedule or a schedule of TF-MOT", schedule)
            object.__setattr__(self, "schedule", SparsitySchedule(fraction_argument("schedule", schedule, NOT_PERCENT)))
        if isinstance(self.limits, Mapping):
            for pattern, bounds in self.limits.items():
                _check_bounds(pattern, bounds)
        elif self.limits is not None and not callable(self.limits):
            raise argument_error("limits", "a mapping {pattern: (least, most)}, a function or None", self.limits)

    def check(self, session: Any, moment: Moment) -> None:
        """Refuses what cannot work, before training starts."""
        families = session.items()
        refuse_fixed(families, self)
        labels = session.labels()
        if isinstance(self.limits, Mapping):
            for pattern in self.limits:
                if not any(fnmatch.fnmatchcase(label, pattern) for label in labels):
                    raise argument_error("limits", f"patterns that match a weight: {', '.join(labels)}", pattern)
        scores, sizes = [items.scores() for items in families], [items.sizes() for items in families]
        total = sum(items.total for items in families)
        dead = sum(int(size[np.isneginf(score)].sum()) for score, size in zip(scores, sizes, strict=True))
        final = session.memory["final"] = self._final(moment)
        asked = self._asked(moment, final)
        missing = max(int(size.max()) for size in sizes)  # fewer zeros than a whole group has may always be missing
        if not 0 < zeros_asked(asked, total) < dead + missing:  # else the model is sparse enough when `fit` begins
            self._check_course(moment, asked, final, total)
        zeros = max(zeros_asked(final, total), dead)
        low, high = self._bounds(scores, sizes, labels, 1.0)
        if not sum(low) <= zeros <= sum(high):
            raise argument_error("limits", f"wide enough for {zeros} zeros of {total} weights", (sum(low), sum(high)))

    def _check_course(self, moment: Moment, asked: float, final: float, total: int) -> None:
        """Refuses a schedule that the prunings that are due do not follow to its end."""
        epochs, due = moment.epochs, _due(moment)
        if not due:
            allowed = f"such that a pruning is due after one of the epochs {moment.epoch} to {(epochs or 0) - 1}"
            remedy = "Change it, or `frequency`, or train longer."
            raise argument_error("start_epoch", allowed, "none", remedy)
        if final == 0:
            raise argument_error("schedule", f"one that prunes within {epochs} epochs", self.schedule)
        remedy = "Change it, or `start_epoch` and `frequency` of PruneAtEpochEnd."
        if zeros_asked(final, total) < zeros_asked(asked, total):
            last = f"the last pruning, after epoch {due[-1]} of {epochs} (from 0)"
            allowed = f"one that is at {asked:.6g} by {last}, not at {final:.6g}"
            raise argument_error("schedule", allowed, self.schedule, remedy)
        if isinstance(self.schedule, SparsitySchedule) and self.schedule.shape != "constant":
            _, end = self.schedule.moments(known(epochs, "epochs"))
            if end <= due[0]:
                allowed = f"one that goes on in epoch {due[0]} (from 0), the first after which a pruning is due"
                raise argument_error("schedule", allowed, self.schedule, remedy)

    def _asked(self, moment: Moment, final: float) -> float:
        """The sparsity that the schedule ends with, whenever weights are pruned."""
        if isinstance(self.schedule, SparsitySchedule):
            return self.schedule.final
        between = sorted({*range(moment.epoch, known(moment.epochs, "epochs"))}.difference(_due(moment)))
        return max([final, *(self._at(dataclasses.replace(moment, epoch=epoch)) for epoch in between)])

    def _final(self, moment: Moment) -> float:
        """The sparsity that the prunings that are due end with."""
        if isinstance(self.schedule, SparsitySchedule):
            self.schedule.moments(known(moment.epochs, "epochs"))  # refuses an end before the begin
        else:
            known(moment.steps, "steps per epoch")
        return max((self._at(dataclasses.replace(moment, epoch=epoch)) for epoch in _due(moment)), default=0.0)

    def _at(self, moment: Moment) -> float:
        """The sparsity that is due now."""
        if isinstance(self.schedule, SparsitySchedule):
            return self.schedule.at(moment.epoch + 1, known(moment.epochs, "epochs"))
        steps = known(moment.steps, "steps per epoch")
        for step in reversed(range(moment.epoch * steps, (moment.epoch + 1) * steps)):
            fires, sparsity = self.schedule(step)
            if bool(fires):
                return float(sparsity)
        return 0.0

    def choose(self, session: Any, families: list[Items], moment: Moment) -> Choice:
        """The lowest scores, as many as are due; zeros that exist count."""
        due = self._at(moment)
        final = due if self.limits is None else self._known_final(session, moment)
        return self.at_sparsity(session, families, due, due / final if final else 0.0)

    def _known_final(self, session: Any, moment: Moment) -> float:
        """What `check` has found: a schedule of TF-MOT must be asked for every step. In custom loops nobody checks."""
        known = None if isinstance(self.schedule, SparsitySchedule) else session.memory.get("final")
        return self._final(moment) if known is None else known

    def at_sparsity(self, session: Any, families: list[Items], due: float, share: float = 1.0) -> Choice:
        """The choice at one sparsity.

        Args:
            session: of the model.
            families: what can be pruned.
            due: the sparsity.
            share: of the lower limits that holds already.
        """
        total = sum(items.total for items in families)
        scores, sizes = [items.scores() for items in families], [items.sizes() for items in families]
        low, high = self._bounds(scores, sizes, session.labels(), share)
        zeros = min(max(zeros_asked(due, total), sum(low)), sum(high))
        if self.allocation != "global":
            entries = np.array([items.total for items in families])
            kept = kept_counts(self._shares(session, families), total - zeros, entries - high, entries - low)
            low = high = (entries - kept).tolist()
            zeros = sum(low)
        keep = lowest_first(scores, zeros, low, high, sizes)
        left = np.concatenate([score[mask & np.isfinite(score)] for score, mask in zip(scores, keep, strict=True)])
        gone = any(np.isfinite(score[~mask]).any() for score, mask in zip(scores, keep, strict=True))
        lowest = float(left.min()) if gone else 0.0
        masks = [items.masks(mask) for items, mask in zip(families, keep, strict=True)]
        return Choice(masks, [[False] * len(each) for each in masks], lowest)

    def _shares(self, session: Any, families: list[Items]) -> np.ndarray:
        if self.allocation == "uniform":
            return np.array([float(items.total) for items in families])
        if self.allocation == "erdos_renyi":
            return np.array([sum(erdos_renyi_shares([v.shape for v in items.values])) for items in families])
        return np.array(session.relevances())

    def _bounds(
        self, scores: list[np.ndarray], sizes: list[np.ndarray], labels: list[str], share: float
    ) -> tuple[list[int], list[int]]:
        """(least, most) zeros of each family; what is dead is dead, and the best item stays."""
        low, high = [], []
        for score, size, label in zip(scores, sizes, labels, strict=True):
            least, most = self._limits_of(label)
            total, dead = int(size.sum()), int(size[np.isneginf(score)].sum())
            best = int(size[int(np.argmax(score))])
            high.append(max(dead, min(zeros_asked(most, total), total - best)))
            low.append(min(max(dead, zeros_asked(least * share, total)), high[-1]))
        return low, high

    def _limits_of(self, label: str) -> tuple[float, float]:
        if isinstance(self.limits, Mapping):
            found = next((b for pattern, b in self.limits.items() if fnmatch.fnmatchcase(label, pattern)), None)
        else:
            found = None if self.limits is None else self.limits(label)
        return (0.0, 1.0) if found is None else _check_bounds(label, found)


@contextlib.contextmanager
def trials(session: Any, families: list[Items]) -> Iterator[Any]:
    """A function that gives the model its weights under some masks; in the end the weights are as they were."""

    def install(masks: list[list[np.ndarray]]) -> None:
        for family, items, each in zip(session.families, families, masks, strict=True):
            for weight, value, mask in zip(family, items.values, each, strict=True):
                weight.variable.assign(np.where(mask, value, np.zeros((), value.dtype)))

    try:
        yield install
    finally:
        for family, items in zip(session.families, families, strict=True):
            for weight, value in zip(family, items.values, strict=True):
                weight.variable.assign(value)


def refuse_fixed(families: list[Items], rule: object) -> None:
    """Raises an ArgumentError where the structure leaves a rule no choice."""
    if any(items.fixed for items in families):
        raise argument_error("threshold", "a number for structure=NofM, which itself says how many go", rule)


def _due(moment: Moment) -> Sequence[int]:
    """The epochs after which the training prunes."""
    return range(known(moment.epochs, "epochs")) if moment.due is None else moment.due


def _of_tfmot(schedule: object) -> bool:
    """Whether it is a pruning schedule of TF-MOT, by its attributes: that package is imported only where it is used."""
    return callable(schedule) and hasattr(schedule, "begin_step") and hasattr(schedule, "frequency")


def _check_bounds(name: str, bounds: Any) -> tuple[float, float]:
    allowed = f"a pair (least, most) of sparsities with 0 <= least <= most <= 1 for {name!r}"
    try:
        least, most = bounds
    except (TypeError, ValueError):
        raise argument_error("limits", allowed, bounds) from None
    least, most = number_argument("limits", least, allowed), number_argument("limits", most, allowed)
    if not least <= most <= 1.0:
        raise argument_error("limits", allowed, bounds)
    return least, most
