"""Rules that change the strength from epoch to epoch: a ramp, a plateau, a controller."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from keras_sensprune.errors import argument_error, choice_argument, integer_argument, number_argument
from keras_sensprune.formulas.schedules import Course
from keras_sensprune.formulas.strength import BAND, adapted_gain, controlled_factor, spent_share, wait_on_plateau
from keras_sensprune.records import PruneRecord
from keras_sensprune.training.budget import MODES, MetricBudget, direction
from keras_sensprune.training.moment import Moment, known

_REMEDY = "The strength itself is an argument of SensitivityRegularizer."


class StrengthRule:
    """What `PruneAtEpochEnd(strength=...)` takes: it sets the factor by which every strength is multiplied.

    Rules are frozen objects; what they remember is in the session's memory, under names that begin with "strength".
    """

    def start(self, session: Any, moment: Moment) -> float:
        """Called once, before training starts: raises what can be known then.

        Args:
            session: of the model.
            moment: its `epoch` is the first that will be trained, so many epochs are done.

        Returns:
            The factor of that epoch.
        """
        raise NotImplementedError

    def may_prune(self, session: Any) -> bool:
        """Whether a pruning that is due happens; asked before it."""
        return True

    def after(self, session: Any, moment: Moment, record: PruneRecord, logs: Mapping[str, Any]) -> float:
        """The factor of the next epoch.

        Args:
            session: of the model, pruned.
            moment: of the epoch that is complete.
            record: what its pruning has done.
            logs: its logs.
        """
        raise NotImplementedError


def strength_argument(strength: object) -> StrengthRule | None:
    """The argument `strength` of `PruneAtEpochEnd`."""
    if strength is None or isinstance(strength, StrengthRule):
        return strength
    raise argument_error("strength", "a StrengthRamp, StrengthPlateau, StrengthController or None", strength, _REMEDY)


def _refuse_strengths(session: Any, rule: StrengthRule, name: str, largest: float) -> None:
    """Raises where there is nothing to multiply, or a step would take more than a whole weight.

    Args:
        session: of the model.
        rule: what would multiply.
        name: its argument that holds the largest factor.
        largest: that factor.
    """
    if not any(w.regularizer.strength for w in session.weights):
        given = type(rule).__name__
        raise argument_error("strength", "None where the strength of every regularizer is 0", given, _REMEDY)
    highest = max((w.regularizer.strength for w in session.weights if w.regularizer.decoupled), default=0.0)
    if highest * largest > 1:
        allowed = f"at most {1 / highest:g}, 1 / strength, because a step takes away no more than a whole weight"
        raise argument_error(name, allowed, largest)


@dataclasses.dataclass(frozen=True)
class StrengthRamp(StrengthRule):
    r"""Rule: the strength rises or falls between two moments of the training.

    $$f_t = f_f + (f_i - f_f)\,g(p),$$ the factor of every strength in the epoch before which $t$ epochs are done, with
    $f_i$ the initial and $f_f$ the final factor and $p = \min(1, \max(0, (t - b) / (e - b)))$ the progress between the
    begin $b$ and the end $e$. $g$ is one of: `"linear"`, $1 - p$; `"cosine"`, $(1 + \cos \pi p) / 2$; `"polynomial"`,
    $(1 - p)^3$; `"constant"`, 0: a jump at the begin. Before the begin the factor is $f_i$.

    Args:
        shape: `"linear"`, `"cosine"`, `"polynomial"` or `"constant"`.
        begin: epochs (an integer), or a fraction of all epochs (a float in [0, 1]).
        end: likewise; from there on the factor is `final`.
        initial: factor at the begin, at least 0.
        final: factor at the end, at least 0.

    Returns:
        A frozen configuration object, for `PruneAtEpochEnd(strength=...)`.

    Raises:
        ArgumentError: if an argument is not allowed; at the start of `fit` if the ramp begins when all epochs are over
            or ends before it begins, no regularizer has a strength above 0, or a factor times a strength is above 1.

    Example:
        >>> from keras_sensprune import StrengthRamp
        >>> ramp = StrengthRamp("linear", begin=2, end=6)
        >>> [ramp.at(epochs, 10) for epochs in range(8)]
        [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    shape: str = "linear"
    begin: int | float = 0
    end: int | float = 0.5
    initial: float = 0.0
    final: float = 1.0

    def __post_init__(self) -> None:
        for name in ("initial", "final"):
            number_argument(name, getattr(self, name), "a finite number of at least 0")
        self._course()

    def _course(self) -> Course:
        return Course(self.shape, self.begin, self.end)

    def at(self, epochs_done: float, epochs: int) -> float:
        """The factor when so many of all epochs are done."""
        left = self._course().remaining(epochs_done, epochs)
        return self.initial if left is None else self.final + (self.initial - self.final) * left

    def start(self, session: Any, moment: Moment) -> float:
        """Refuses a ramp that this training does not reach."""
        epochs = known(moment.epochs, "epochs", "strength")
        if self._course().moments(epochs)[0] >= epochs:
            raise argument_error("begin", f"before the end of a training of {epochs} epochs", self.begin)
        largest = max(("initial", "final"), key=lambda name: getattr(self, name))
        _refuse_strengths(session, self, largest, getattr(self, largest))
        return self.at(moment.epoch, epochs)

    def after(self, session: Any, moment: Moment, record: PruneRecord, logs: Mapping[str, Any]) -> float:
        """What the formula says."""
        return self.at(moment.epoch + 1, known(moment.epochs, "epochs", "strength"))


@dataclasses.dataclass(frozen=True)
class StrengthPlateau(StrengthRule):
    r"""Rule: the strength is multiplied when a quantity in the logs has stopped becoming better.

    $$f \leftarrow \min(f_{max}, \max(f_{min}, f \cdot \mathit{by}))$$ after an epoch at whose end the quantity has not
    been better than its best value so far, by more than `least`, for `patience` epochs in a row. Then a new wait
    begins; the best value stays. So `StrengthPlateau("sparsity", by=1.5)` pushes on where nothing more becomes zero,
    and `StrengthPlateau("val_loss", by=0.5)` lets go where the network does not recover. The factor begins at 1.

    Args:
        monitor: the quantity: `"sparsity"`, `"compression"`, or what Keras logs: `"loss"`, a compiled metric, or one of
            them with `val_` if `fit` validates. What another callback puts into the logs is not seen.
        by: above 0 and not 1.
        patience: how many epochs are waited for, at least 1.
        least: the quantity is better if it is so by more than this, in its units.
        mode: `"min"` if less is better, `"max"`, or `"auto"`: as Keras does, by what a metric itself says, and by the
            name where it says nothing.
        low: $f_{min}$, in (0, 1].
        high: $f_{max}$, at least 1.

    Returns:
        A frozen configuration object, for `PruneAtEpochEnd(strength=...)`.

    Raises:
        ArgumentError: if an argument is not allowed; at the start of `fit` if no regularizer has a strength above 0 or
            `high` times a strength is above 1; after the first epoch, if the quantity is not in the logs or nothing
            tells its direction. What begins with `val_` is missed after the first epoch with a validation, or after the
            last one if there was none (Keras tells nobody before whether `fit` validates); an epoch without it is no
            observation.

    Example:
        >>> from keras_sensprune import StrengthPlateau
        >>> StrengthPlateau("val_loss", by=0.5, patience=2).high
        100.0
    """

    monitor: str
    by: float
    patience: int = 3
    least: float = 0.0
    mode: str = "auto"
    low: float = dataclasses.field(default=0.01, kw_only=True)
    high: float = dataclasses.field(default=100.0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise argument_error("monitor", "the name of a quantity in the logs", self.monitor)
        if number_argument("by", self.by, "a finite number above 0 other than 1") in (0.0, 1.0):
            raise argument_error("by", "a finite number above 0 other than 1", self.by)
        integer_argument("patience", self.patience, 1)
        number_argument("least", self.least, "a finite number of at least 0, in units of the quantity")
        choice_argument("mode", self.mode, MODES)
        _check_bounds(self.low, self.high)

    def start(self, session: Any, moment: Moment) -> float:
        """1, or where a resumed training was."""
        _refuse_strengths(session, self, "high", self.high)
        return float(session.memory.get("factor", 1.0))

    def after(self, session: Any, moment: Moment, record: PruneRecord, logs: Mapping[str, Any]) -> float:
        """Multiplies at a plateau."""
        memory, factor = session.memory, float(session.memory["factor"])
        best_name, waited_name = (f"strength {what} {self.monitor} {self.mode}" for what in ("best", "waited"))
        if self.monitor not in logs:
            if waited_name not in memory:
                self._refuse_missing(moment, logs)
            return factor
        sign = -1.0 if direction(self.monitor, self.mode, session.model) == "max" else 1.0
        before = memory.get(best_name, math.inf), int(memory.get(waited_name, 0))
        best, waited, reached = wait_on_plateau(sign * float(logs[self.monitor]), *before, self.least, self.patience)
        memory[waited_name] = waited
        if best < math.inf:
            memory[best_name] = best
        return min(self.high, max(self.low, factor * self.by)) if reached else factor

    def _refuse_missing(self, moment: Moment, logs: Mapping[str, Any]) -> None:
        """Raises if the quantity will never be in the logs; what comes with a validation may come in a later epoch."""
        validated = any(name.startswith("val_") for name in logs)
        last = moment.epochs is not None and moment.epoch + 1 >= moment.epochs
        if validated or last or not self.monitor.startswith("val_"):
            known = ", ".join(map(repr, logs)) or "no quantity at all"
            raise argument_error("monitor", f"a quantity in the logs, which have {known}", self.monitor)


@dataclasses.dataclass(frozen=True, eq=False)
class StrengthController(MetricBudget, StrengthRule):
    r"""Rule: the strength is steered so that a validation metric becomes worse by the tolerance and no more.

    $$\log f_{t+1} = \log f_t + \min(\log 1.5,\ \max(-\log 4,\ a_t (k_P(\epsilon_t - \epsilon_{t-1}) +
    k_I\,\epsilon_t))), \qquad \epsilon_t = \min(1 - x_t,\ 1.5\,(1 - x_t)), \qquad x_t = \frac{m_t - m_0}{\tau},$$
    with $f_t$ the factor of every strength in epoch $t$, within $[f_{min}, f_{max}]$, $m_t$ the metric of the pruned
    network after it (with the signs turned if more is better), $m_0$ the reference, $\tau$ the tolerance
    and $k_P = k_I = 0.3$ (see `formulas.strength.controlled_factor`). It begins at 1. The gain $a_t$, 1 in the
    beginning, is halved where $x$ has crossed 1 since the epoch before, down to 1/8, and else grows by a third, up to 1
    (`adapted_gain`): so a network that answers at once does not swing about the goal.

    **No pruning far over the tolerance**: what a threshold takes never comes back, so a pruning that is due is skipped
    if the metric before it is worse than $m_0 + 1.1\,\tau$; the record of that epoch then has threshold 0.

    What moves by chance from epoch to epoch by more than a tenth of the tolerance cannot be held within a tenth of it:
    half a point of the accuracy on 5,000 examples is 25 of them. A loss is smoother.

    Args:
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a `tf.data.Dataset` of batches. It is measured once or, if
            something went, twice per epoch.
        tolerance: $\tau > 0$, in units of the metric: 0.005 of an accuracy is half a point.
        metric: `"loss"` or the name of a metric with which the model was compiled.
        relative_to: $m_0$: `"dense"`, the metric when `fit` begins, or a number.
        mode: `"min"` if less is better, `"max"`, or `"auto"`: as Keras does, by what the metric itself says, and by its
            name where it says nothing.
        low: $f_{min}$, in (0, 1].
        high: $f_{max}$, at least 1.
        batch_size: of the evaluation, for arrays.

    Returns:
        A frozen configuration object, for `PruneAtEpochEnd(strength=...)`.

    Raises:
        ArgumentError: if an argument is not allowed; at the start of `fit` if the model has no such metric or it is not
            finite or nothing tells its direction, no regularizer has a strength above 0, `high` times a strength is
            above 1, the metric is the loss and contains a penalty (`decoupled=False`), or a resumed training that has
            pruned has never measured this metric.

    Example:
        >>> import numpy as np
        >>> from keras_sensprune import PruneAtEpochEnd, StrengthController
        >>> x, y = np.ones((8, 4)), np.zeros(8)
        >>> callback = PruneAtEpochEnd(1e-2, strength=StrengthController((x, y), 0.005, "accuracy"))
        >>> callback.strength.tolerance, callback.strength.high
        (0.005, 100.0)

    Reference: a proportional-integral controller in velocity form, as in Astrom and Hagglund, "Advanced PID Control",
    2006.
    """

    low: float = dataclasses.field(default=0.01, kw_only=True)
    high: float = dataclasses.field(default=100.0, kw_only=True)

    memory: ClassVar[str] = "strength dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance == 0:
            raise argument_error("tolerance", "a finite number above 0, in units of the metric", self.tolerance)
        _check_bounds(self.low, self.high)

    def start(self, session: Any, moment: Moment) -> float:
        """Measures the dense network; 1, or where a resumed training was."""
        _refuse_strengths(session, self, "high", self.high)
        self.measure_dense(session, moment)
        return float(session.memory.get("factor", 1.0))

    def may_prune(self, session: Any) -> bool:
        """Not far over the tolerance."""
        spent = session.memory["strength spent now"] = self._spent(session)
        return spent <= 1 + BAND

    def after(self, session: Any, moment: Moment, record: PruneRecord, logs: Mapping[str, Any]) -> float:
        """One step of the control law, with the network as the pruning has left it."""
        memory = session.memory
        spent = memory.pop("strength spent now", None)
        if spent is None or record.nonzero < record.nonzero_before:
            spent = self._spent(session)
        goal = f"of {self.tolerance} {self.metric} beside {self.relative_to}"
        spent_name, gain_name = f"strength spent {goal}", f"strength gain {goal}"
        before, memory[spent_name] = memory.get(spent_name), spent
        gain = memory[gain_name] = adapted_gain(memory.get(gain_name, 1.0), spent, before)
        return controlled_factor(memory["factor"], spent, before, gain, self.low, self.high)

    def _spent(self, session: Any) -> float:
        """x: the share of the tolerance that is spent."""
        return spent_share(self.measure(session), self.reference(session), self.tolerance)


def _check_bounds(low: float, high: float) -> None:
    if not 0 < number_argument("low", low, "a number in (0, 1]") <= 1:
        raise argument_error("low", "a number in (0, 1]", low)
    number_argument("high", high, "a finite number of at least 1", 1.0)
