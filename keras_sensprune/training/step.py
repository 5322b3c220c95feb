"""The pruning rule on one model: what is hooked, and how weights are pruned between steps."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_sensprune.errors import TrainingError, argument_error
from keras_sensprune.formulas.items import Items
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.formulas.structures import Block, Layout, NofM, structure_argument
from keras_sensprune.records import PruneRecord
from keras_sensprune.training.gradients import SensitivityTape, curved_activation
from keras_sensprune.training.grouping import group_weights
from keras_sensprune.training.moment import Moment
from keras_sensprune.training.revived import clear_slots
from keras_sensprune.training.rule import RuleStep
from keras_sensprune.training.rules import PruningRule, rule_argument
from keras_sensprune.training.silence import SilencedBias, silenced_biases
from keras_sensprune.training.state import PrunedWeight, items_of
from keras_sensprune.training.targets import prunable_weights

SESSION = "_sensprune_session"  # attribute of an attached model; a registry would keep abandoned models alive
_SPACING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # of the numbers above 1, as a fraction of them
_END_OF_DATA = (StopIteration, tf.errors.OutOfRangeError)


class PruningSession:
    """The pruning rule on one model, from `attach` to `detach`.

    Args:
        model: a built and compiled Keras model.
        sensitivity: the configuration.
        train_step: replaces the model's own train step, for custom loops.
        structure: what is pruned together.
        with_factor: whether there is a factor of all strengths, see `set_factor`.
    """

    def __init__(
        self,
        model: Any,
        sensitivity: Sensitivity,
        train_step: Callable[[Any], Any] | None = None,
        structure: str | Block | NofM = "weight",
        *,
        with_factor: bool = False,
    ):
        if not isinstance(sensitivity, Sensitivity):
            raise argument_error("sensitivity", "a Sensitivity", sensitivity, "For example Sensitivity('specific').")
        structure = structure_argument(structure)
        self.targets = prunable_weights(model)
        self.grouping = group_weights(model, self.targets, structure)
        SensitivityTape(model, self.targets, sensitivity.reduction)  # refuses what it cannot do, before any change
        self.model = model
        self.sensitivity = sensitivity
        with model.distribute_strategy.scope():
            self.factor = _factor_variable() if with_factor else None
            self.weights = [
                self._state(t, layout) for t, layout in zip(self.targets, self.grouping.layouts, strict=True)
            ]
            self.biases = silenced_biases(self.grouping, self.targets, self.weights)
            train_step = train_step or model.train_step
            self.rule = RuleStep(model, self.targets, self.weights, sensitivity, train_step)
        _warn_of_rounding(self.weights, self.rule.pace.every)
        self.families = [[self.weights[number] for number in family] for family in self.grouping.families]
        for family in self.families:
            for weight in family if len(family) > 1 else ():
                weight.family = tuple(family)
        self.memory: dict[str, float] = {}  # what a rule remembers from one pruning to the next
        self.chosen: int | None = None  # epoch whose weights `BestAtSparsity` has restored
        self._saved: dict[str, Any] = {}

    @property
    def held(self) -> list[PrunedWeight | SilencedBias]:
        """Everything with a mask."""
        return [*self.weights, *self.biases]

    def _state(self, target: Any, layout: Layout | None) -> PrunedWeight:
        whole_groups = layout is not None and not layout.kept  # their penalty has no second order
        curved = curved_activation(target) is not None and not whole_groups
        state = PrunedWeight(target, self.sensitivity.scale, self.sensitivity.momentum, curved, layout)
        state.factor = self.factor
        return state

    # Attaching and detaching

    def attach(self, in_fit: bool) -> None:
        """Installs the hooks. What they replace is kept, and `detach` puts it back.

        Args:
            in_fit: whether `model.train_step` is hooked too; a custom loop calls `rule.step` itself.
        """
        names = {"train_step": self.rule.step, "compute_loss": self.rule.compute_loss}
        if not in_fit:
            del names["train_step"]
        self._saved = {name: vars(self.model).get(name) for name in (*names, "train_function")}
        object.__setattr__(self.model, SESSION, self)  # first: Ctrl-C from here on leaves nothing that cannot be undone
        for name, hook in names.items():
            object.__setattr__(self.model, name, hook)
        for state in self.held:
            state.attach()
        self._forget_test_function()

    def retrace(self) -> None:
        """Makes `fit` compile the hooked step, and detaches when an exception or Ctrl-C passes through it."""
        with_xla = self.model.jit_compile
        try:
            if self.rule.compile_apart(with_xla):
                self.model.jit_compile = False
            self.model.make_train_function(force=True)
        finally:
            self.model.jit_compile = with_xla
        compiled = self.model.train_function

        def guarded(iterator: Any) -> Any:
            try:
                return compiled(iterator)
            except _END_OF_DATA:
                raise
            except BaseException:
                self.detach()
                raise

        object.__setattr__(self.model, "train_function", guarded)

    def detach(self) -> None:
        """Takes the hooks off; the model is as before, apart from its weights. Doing it twice is harmless."""
        for name, value in self._saved.items():
            if value is None and name != "train_function":
                vars(self.model).pop(name, None)
            else:
                object.__setattr__(self.model, name, value)
        self._saved = {}
        for state in self.held:
            state.detach()
        self._forget_test_function()
        if vars(self.model).get(SESSION) is self:
            object.__delattr__(self.model, SESSION)
            self._leave_zeros()

    def _leave_zeros(self) -> None:
        """Training that does not keep the zeros which are there now warns.

        The warning comes where a train function is traced, so the next `fit` must trace a new one.
        """
        pruned = [weight for weight in self.weights if 0 < weight.nonzero() < math.prod(weight.variable.shape)]
        for weight in pruned:
            weight.regularizer.note_zeros()
        if pruned:
            object.__setattr__(self.model, "train_function", None)

    def _forget_test_function(self) -> None:
        """A compiled evaluation holds the coupled penalty as it was when it was traced."""
        if any(not weight.regularizer.decoupled for weight in self.weights):
            object.__setattr__(self.model, "test_function", None)

    # Between the steps

    def prune(self, threshold: float | PruningRule, moment: Moment | None = None) -> PruneRecord:
        """Sets prunable weights (or groups) to zero, where they stay until `detach`.

        Args:
            threshold: T >= 0, or the rule that decides.
            moment: when; None means outside of `fit`.

        Returns:
            What was done. A tensor that would be emptied keeps its largest weight (the floor).
        """
        rule, moment = rule_argument(threshold), moment or Moment(-1)
        self.settle()
        families = self.items()
        choice = rule.choose(self, families, moment)
        values = [items.values for items in families]
        pruned = [
            [(*weight.apply(value, mask), floor) for weight, value, mask, floor in zip(*parts, strict=True)]
            for parts in zip(self.families, values, choice.masks, choice.floored, strict=True)
        ]
        self.silence()
        clear_slots(getattr(self.model, "optimizer", None), [(w.variable, w.mask) for w in self.held])
        order = [number for family in self.grouping.families for number in family]
        results = [r for _, r in sorted(zip(order, itertools.chain(*pruned), strict=True))]
        groups = [weight.groups() for weight in self.weights]
        return PruneRecord(
            epoch=moment.epoch,
            threshold=choice.threshold,
            total=sum(math.prod(weight.variable.shape) for weight in self.weights),
            nonzero_before=sum(before for before, _, _ in results),
            nonzero=sum(after for _, after, _ in results),
            penalty=sum(w.penalty() for w in self.weights if w.regularizer.decoupled),
            kept_by_floor=tuple(w.label for w, r in zip(self.weights, results, strict=True) if r[2]),
            structure=self.grouping.structure,
            groups=sum(whole for whole, _ in groups),
            nonzero_groups=sum(kept for _, kept in groups),
            by_weight=self.grouping.by_weight,
        )

    def items(self) -> list[Items]:
        """What can be pruned, family by family, as it is now."""
        return [items_of(family) for family in self.families]

    def labels(self) -> list[str]:
        """The path of the first weight of each family."""
        return [family[0].label for family in self.families]

    def relevances(self) -> list[float]:
        """Sum over the living weights of each family of |w| S."""
        return [
            float(sum((abs(w.variable.numpy()) * w.sensitivity.numpy()).sum() for w in family))
            for family in self.families
        ]

    def silence(self) -> None:
        """Sets the biases of recurrent units that are dead to zero."""
        for bias in self.biases:
            bias.apply()

    def remask(self) -> None:
        """Applies the masks once more, after something else has set the weights."""
        for weight in self.weights:
            weight.remask()
        self.silence()

    def settle(self) -> None:
        """Shrinks for the updates since the last refresh, with the sensitivities of that refresh."""
        steps = self.rule.pace.take_pending()
        if not steps:
            return
        shrinking = [w for w in self.weights if w.shrinks]
        values = [w.shrinkage(ops.convert_to_tensor(steps)) for w in shrinking]
        for weight, value in zip(shrinking, values, strict=True):
            weight.variable.assign(ops.convert_to_tensor(weight.variable) - value)
            weight.keep_constraint()

    def set_factor(self, value: float) -> None:
        """Multiplies every strength by another factor from here on, where steps before have shrunk with the old one."""
        assert self.factor is not None
        self.settle()
        self.memory["factor"] = value
        self.factor.assign(value)

    def raise_if_unhealthy(self) -> None:
        """Reads the flags that the steps have set.

        Raises:
            TrainingError: naming the first bad step and its cause.
        """
        problem = self.rule.health.problem(self.model.trainable_variables)
        if problem:
            raise TrainingError(problem)


def _warn_of_rounding(weights: list[PrunedWeight], every: int) -> None:
    """Weights of few digits do not hold what a small strength takes away."""
    for weight in weights:
        spacing = _SPACING.get(weight.variable.dtype, 0.0)
        taken = weight.regularizer.strength * every
        if weight.shrinks and 0 < taken < spacing / 2:
            warnings.warn(
                f"Weight {weight.label!r} is of type {weight.variable.dtype}, whose numbers are up to {spacing:g} of "
                f"their size apart: a shrinkage by {taken:g} of it (strength {weight.regularizer.strength:g} times "
                f"{every} steps) is lost in rounding. Keep the weights in float32 (dtype policy "
                f"'mixed_{weight.variable.dtype}'), or use a larger strength.",
                stacklevel=2,
            )
            return


def _factor_variable() -> Any:
    """1, equal on all replicas."""
    return keras.Variable(
        initializer="ones", shape=(), dtype="float32", trainable=False, aggregation="only_first_replica"
    )
