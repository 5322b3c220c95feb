"""The rule that asks validation data how much may go."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from keras_sensprune.errors import choice_argument, fraction_argument, integer_argument
from keras_sensprune.formulas.items import Items
from keras_sensprune.formulas.search import largest_threshold
from keras_sensprune.training.budget import MetricBudget
from keras_sensprune.training.moment import Moment
from keras_sensprune.training.rules import Choice, PruningRule, refuse_fixed, trials


@dataclasses.dataclass(frozen=True, eq=False)
class ToleranceThreshold(MetricBudget, PruningRule):
    r"""Rule: the largest threshold at which a validation metric is worse by at most a tolerance.

    $$T = \max\{T : m(T) \le m_0 + \tau\}$$ for a metric $m$ of which less is better (with the signs turned for one of
    which more is better), where $m(T)$ is measured with everything below $T$ removed, $m_0$ is the reference and
    $\tau$ the tolerance. The threshold is found by bisection over the sorted magnitudes (see `largest_threshold`),
    beginning at the number of weights that went last time. Every trial is one `model.evaluate`, which Keras compiles
    once. The model's own weights are put back after the trials.

    What to expect: with `relative_to="current"` the tolerances of all epochs add up. With `"dense"` they do not, but
    the pruning can stall when a *loss* grows because the remaining weights overfit, though the errors do not: then
    take an accuracy.

    Args:
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a `tf.data.Dataset` of batches. Its order must not change.
        tolerance: $\tau \ge 0$, in units of the metric: 0.005 of an accuracy is half a point.
        metric: `"loss"` or the name of a metric with which the model was compiled.
        relative_to: $m_0$: `"dense"`, the metric when `fit` begins; `"current"`, the metric of the epoch before
            anything goes; or a number.
        mode: `"min"` if less is better, `"max"`, or `"auto"`: as Keras does, by what the metric itself says, and by its
            name where it says nothing.
        scope: `"global"`: one threshold; `"layer"`: one per tensor, the largest tensor first, each with an equal share
            of the tolerance beside what the ones before it have left over.
        patience: 0: prune in every epoch that is due. n: only when the metric has not become better for n epochs
            that were due.
        precision: the search may stop when it knows the number of weights that can go up to this fraction of the
            living ones.
        max_trials: how many thresholds one search may try (per tensor with `scope="layer"`); it keeps the largest that
            was allowed. Searches begin where the last one ended, so epoch after epoch they still follow what can go.
            None: as many as the bisection needs, some ten.
        batch_size: of the evaluation, for arrays.

    Returns:
        A frozen configuration object, for `PruneAtEpochEnd(threshold=...)`.

    Raises:
        ArgumentError: if an argument is not allowed; at the start of `fit` if the model has no such metric, it is not
            finite or nothing tells its direction, the metric is the loss and contains a penalty (`decoupled=False`),
            the structure is `NofM`, or a resumed training that has pruned has never measured this metric.

    Example:
        >>> import numpy as np
        >>> from keras_sensprune import ToleranceThreshold
        >>> x, y = np.ones((8, 4)), np.zeros(8)
        >>> ToleranceThreshold((x, y), tolerance=0.002, metric="accuracy").relative_to
        'dense'

    Reference: the threshold search by bisection follows Tartaglione et al., "Loss-based sensitivity regularization"
    (LOBSTER), 2020, which compares losses.
    """

    references: ClassVar[tuple[str, ...]] = ("dense", "current")

    scope: str = "global"
    patience: int = 0
    precision: float = 0.005
    max_trials: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choice_argument("scope", self.scope, ("global", "layer"))
        integer_argument("patience", self.patience, 0)
        fraction_argument("precision", self.precision)
        if self.max_trials is not None:
            integer_argument("max_trials", self.max_trials, 1)

    def check(self, session: Any, moment: Moment) -> None:
        """Measures the dense model, and refuses what cannot work before training starts."""
        refuse_fixed(session.items(), self.metric)
        self.measure_dense(session, moment)

    def choose(self, session: Any, families: list[Items], moment: Moment) -> Choice:
        """Searches; where a plateau is waited for and not reached, nothing goes."""
        memory, kept = session.memory, [items.at_least(0.0) for items in families]
        now = self.measure(session)
        if self.patience and not self._plateau(session, now):
            return _choice(kept, [0.0])
        reference = self.reference(session, current=now)
        everything = list(range(len(families)))
        turns = [everything]
        if self.scope == "layer":
            turns = [[number] for number in sorted(everything, key=lambda n: -families[n].values[0].size)]
        thresholds = []
        with trials(session, families) as install:
            for turn, numbers in enumerate(turns):
                scores = np.concatenate([families[number].scores() for number in numbers])
                at_least = _pruner(families, kept, numbers)

                def metric(threshold: float, at_least: Any = at_least, known: float = now) -> float:
                    if threshold == 0:
                        return known
                    install([masks for masks, _ in at_least(threshold)])
                    return self.measure(session)

                allowed = reference + self.tolerance * (turn + 1) / len(turns)
                guess = "removed" if self.scope == "global" else f"removed of family {numbers[0]}"
                start, limit = int(memory.get(guess, 0)), self.max_trials or math.inf
                found = largest_threshold(scores[np.isfinite(scores)], metric, allowed, start, self.precision, limit)
                kept, now = at_least(found.threshold), found.value
                memory[guess] = found.removed or (found.refused or 0) // 2
                thresholds.append(found.threshold)
        return _choice(kept, thresholds)

    def _plateau(self, session: Any, now: float) -> bool:
        """Whether the metric has stopped becoming better; then a new wait begins."""
        memory = session.memory
        best, waiting = (f"{what} {self.metric} {self.mode}" for what in ("best", "waited"))
        waited = memory.get(waiting, 0) + 1
        if now < memory.get(best, math.inf):
            memory.update({best: now, waiting: 0})
            return False
        memory[waiting] = waited
        if waited < self.patience:
            return False
        del memory[best], memory[waiting]
        return True


def _pruner(families: list[Items], kept: list[Any], numbers: list[int]) -> Any:
    """The function threshold -> (masks, floored) of all families, if it holds for some of them."""

    def at_least(threshold: float) -> list[Any]:
        return [families[n].at_least(threshold) if n in numbers else kept[n] for n in range(len(families))]

    return at_least


def _choice(pruned: list[Any], thresholds: list[float]) -> Choice:
    return Choice([masks for masks, _ in pruned], [floored for _, floored in pruned], max(thresholds))
