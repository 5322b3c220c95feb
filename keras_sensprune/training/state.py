"""Sensitivity and mask of each weight while a model is being pruned, and the constraint that keeps the zeros."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sensprune.formulas.items import Items
from keras_sensprune.formulas.penalty import insensitivity_penalty, penalty_with_exact_gradient
from keras_sensprune.formulas.sensitivity import (
    bounded_insensitivity,
    running_mean,
    scaled_sensitivity,
    shrunk_share,
)
from keras_sensprune.formulas.structures import Layout, group_sensitivity

# id(variable) -> its state, for the regularizer, which Keras calls with nothing but the variable. The states belong
# to the session on the model, so nothing here outlives an abandoned model.
_ACTIVE: weakref.WeakValueDictionary[int, PrunedWeight] = weakref.WeakValueDictionary()


def active_weight(variable: Any) -> PrunedWeight | None:
    """The state of a variable that is being pruned now, else None."""
    weight = _ACTIVE.get(id(variable))
    return weight if weight is not None and weight.variable is variable else None


class MaskConstraint:
    """Multiplies a weight by its mask after every update, before and after the user's own constraint.

    Before, so that a norm is that of the weights that are left; after, because a constraint may set anything.

    Args:
        mask: variable of zeros and ones, the weight's shape.
        inner: the user's constraint, or None.
    """

    def __init__(self, mask: Any, inner: Any | None):
        self.mask = mask
        self.inner = inner

    def __call__(self, variable: Any) -> Any:
        mask = ops.cast(self.mask, variable.dtype)
        value = ops.multiply(variable, mask)
        return value if self.inner is None else ops.multiply(self.inner(value), mask)


def assign_masked(variable: Any, mask: np.ndarray) -> None:
    """Sets the entries of a variable to zero where the mask is False, if any of them is not."""
    value = variable.numpy()
    if np.any(value[~mask]):
        variable.assign(np.where(mask, value, np.zeros((), value.dtype)))  # not w * mask, which would leave -0.0


def beside(variable: Any, initializer: str) -> Any:
    """A float32 variable of a weight's shape, equal on all replicas."""
    return keras.Variable(
        initializer=initializer,
        shape=variable.shape,
        dtype="float32",
        trainable=False,
        aggregation="only_first_replica",
    )


class PrunedWeight:
    """One weight while it is pruned.

    Two float32 tensors of the weight's shape are held beside it: the sensitivity and the mask; a third one, the
    curvature, only where the regularizer asks for `order=2`.

    Args:
        target: the weight (`training.targets.Target`).
        scale: `"raw"`, `"relative"` or `"relevance"`.
        momentum: of the running mean.
        curved: whether a curvature is computed for it.
        layout: its groups; None where weights are pruned one by one.

    Attributes:
        factor: of the strength, a scalar variable that a strength rule sets between epochs; None if there is no rule.
    """

    def __init__(self, target: Any, scale: str, momentum: float, curved: bool, layout: Layout | None = None):
        self.variable = target.variable
        self.regularizer = target.regularizer
        self.label = target.label
        self.scale = scale
        self.momentum = momentum
        self.layout = layout
        self.family: tuple[PrunedWeight, ...] = ()  # the weights over which its groups extend, itself among them
        self.factor: Any = None
        self.silent = False  # True while a loss is computed that must not contain this penalty
        self.sensitivity = beside(self.variable, "zeros")
        self.mask = beside(self.variable, "ones")
        self.curvature = beside(self.variable, "zeros") if curved else None
        self._constraint: Any = None

    def attach(self) -> None:
        """Installs the constraint and makes the regularizer find this state."""
        self._constraint = self.variable.constraint
        self.variable.constraint = MaskConstraint(self.mask, self._constraint)
        _ACTIVE[id(self.variable)] = self

    def keep_constraint(self) -> None:
        """Applies the user's constraint once more, after the shrinkage or a pruning."""
        if self._constraint is not None:
            self.variable.assign(self.variable.constraint(self.variable))

    def detach(self) -> None:
        """Puts the user's own constraint back."""
        if isinstance(self.variable.constraint, MaskConstraint):
            self.variable.constraint = self._constraint
        if _ACTIVE.get(id(self.variable)) is self:
            del _ACTIVE[id(self.variable)]

    def store(self, averaged: bool, refresh: Any, new: Any, curvature: Any = None) -> None:
        """Stores what refresh number `refresh` has found: the sensitivity `new`, or the running mean with it."""
        new = ops.cast(new, "float32")
        self.sensitivity.assign(running_mean(self.sensitivity, new, self.momentum, refresh) if averaged else new)
        if self.curvature is not None:
            self.curvature.assign(ops.cast(curvature, "float32"))

    def _scaled(self, weight: Any) -> Any:
        """What takes the place of S, weight by weight."""
        return scaled_sensitivity(self.scale, weight, ops.cast(self.sensitivity, weight.dtype))

    def _effective(self, weight: Any) -> Any:
        """What takes the place of S in 1 - S: that of each weight, or of the group to which it belongs."""
        layout = self.layout
        if layout is None or layout.kept:
            return self._scaled(weight)
        members = [(self, weight)] if not self.family else [(m, ops.convert_to_tensor(m.variable)) for m in self.family]
        weights = [ops.stop_gradient(value) for _, value in members]
        scaled = [m._scaled(value) for (m, _), value in zip(members, weights, strict=True)]
        mean = group_sensitivity([m.layout for m, _ in members], weights, scaled)  # type: ignore[misc]
        return ops.cast(layout.unfold(mean, ops), weight.dtype)

    @property
    def shrinks(self) -> bool:
        """Whether a step of the rule takes anything from this weight beside the optimizer's update."""
        return self.regularizer.decoupled and self.regularizer.strength > 0

    def strength(self, dtype: str) -> Any:
        """The regularizer's strength, times the factor if there is one, which changes no bit where it is 1.

        The product is one of float64 because TensorFlow would reorder a chain of products in one dtype.
        """
        strength = self.regularizer.strength
        return strength if self.factor is None else ops.cast(strength * ops.cast(self.factor, "float64"), dtype)

    def shrinkage(self, steps: Any = 1) -> Any:
        """d = w (1 - (1 - strength * max(0, 1 - S))^steps) with the weight and the sensitivity as they are now."""
        dtype = self.variable.dtype
        wide = dtype if dtype in ("float32", "float64") else "float32"
        weight = ops.cast(self.variable, wide)
        insensitivity = bounded_insensitivity(self._effective(weight))
        return ops.cast(weight * shrunk_share(self.strength(wide), insensitivity, steps), dtype)

    def coupled_penalty(self) -> Any:
        """strength * sum of R(w), with gradient strength * w * max(0, 1 - S)."""
        if self.silent:
            return ops.zeros(())
        weight = ops.convert_to_tensor(self.variable)
        sensitivity = self._effective(ops.stop_gradient(weight))
        return self.strength(weight.dtype) * penalty_with_exact_gradient(weight, sensitivity, self.curvature)

    def penalty(self) -> float:
        """strength * sum of R(w), as a number for the log."""
        weight = ops.convert_to_tensor(self.variable)
        value = insensitivity_penalty(weight, self._effective(weight), self.curvature)
        return float(self.strength("float64")) * float(ops.sum(value))

    def take_zeros(self) -> None:
        """Makes today's zeros permanent. A weight that is zero throughout is taken as not yet trained."""
        alive = self.variable.numpy() != 0
        self.mask.assign(alive.astype("float32") if alive.any() else np.ones_like(alive, "float32"))

    def apply(self, value: np.ndarray, mask: np.ndarray) -> tuple[int, int]:
        """Makes `mask` the mask of this weight, which is `value` now; returns (nonzero before, nonzero after)."""
        self.mask.assign(mask.astype("float32"))
        kept = np.where(mask, value, np.zeros((), value.dtype))  # not w * mask, which would leave -0.0
        self.variable.assign(kept)
        before, after = int(np.count_nonzero(value)), int(np.count_nonzero(kept))
        if after < before:
            self.keep_constraint()
        return before, after

    def groups(self) -> tuple[int, int]:
        """(groups, groups that are not all zero) of this tensor; (0, 0) where weights are pruned one by one."""
        if self.layout is None:
            return 0, 0
        return self.layout.groups, int(np.count_nonzero(self.layout.sum((self.variable.numpy() != 0).astype(int))))

    def remask(self) -> None:
        """Applies the mask once more, after something else has set the weight (EMA, restored weights)."""
        assign_masked(self.variable, self.mask.numpy() != 0)

    def nonzero(self) -> int:
        """How many entries are not zero."""
        return int(np.count_nonzero(self.variable.numpy()))


def items_of(family: list[PrunedWeight]) -> Items:
    """What can be pruned in weights whose groups extend over all of them, as they are now."""
    values = tuple(weight.variable.numpy() for weight in family)
    alive = tuple(weight.mask.numpy() != 0 for weight in family)
    return Items(values, alive, tuple(weight.layout for weight in family if weight.layout is not None))
