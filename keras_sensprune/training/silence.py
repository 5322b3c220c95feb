"""Biases of recurrent units that died: with them a dead unit would not stay at 0, so they go with the unit."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sensprune.training.grouping import Grouping
from keras_sensprune.training.state import MaskConstraint, PrunedWeight, assign_masked, beside
from keras_sensprune.training.targets import Target


class SilencedBias:
    """The bias of a recurrent cell whose units are pruned: zero, for good, where the unit is dead in both kernels.

    With kernels of zero, the candidate of a unit is the activation of its bias; with a bias of zero as well it is 0 in
    every step (for tanh and every other activation with f(0) = 0), so the state stays 0 and `compact` can remove it.

    Args:
        weights: the two kernels of the cell.
        variable: its bias; of shape (gates * units,), or (2, gates * units) with `reset_after`.
        units: number of units.
    """

    def __init__(self, weights: list[PrunedWeight], variable: Any, units: int):
        self.weights = weights
        self.variable = variable
        self.units = units
        self.mask = beside(variable, "ones")
        self._constraint: Any = None

    def attach(self) -> None:
        """Installs the constraint that keeps the zeros."""
        self._constraint = self.variable.constraint
        self.variable.constraint = MaskConstraint(self.mask, self._constraint)

    def detach(self) -> None:
        """Puts the user's own constraint back."""
        if isinstance(self.variable.constraint, MaskConstraint):
            self.variable.constraint = self._constraint

    def apply(self) -> None:
        """Sets the biases of the units to zero that are dead now, in all gates."""
        alive = np.any([np.any(weight.mask.numpy() != 0, axis=0) for weight in self.weights], axis=0)
        alive = np.any(alive.reshape(-1, self.units), axis=0)  # a unit lives as long as one of its gates does
        value = self.variable.numpy()
        mask = np.broadcast_to(np.tile(alive, value.shape[-1] // self.units), value.shape)
        self.mask.assign(mask.astype("float32"))
        assign_masked(self.variable, mask)


def silenced_biases(grouping: Grouping, targets: list[Target], weights: list[PrunedWeight]) -> list[SilencedBias]:
    """One `SilencedBias` per recurrent cell with both kernels in one family and a bias.

    Args:
        grouping: of the session.
        targets: the prunable weights.
        weights: their states, in the same order.

    Returns:
        The list; empty for any structure but "unit".
    """
    found = []
    for family in grouping.families:
        cell = targets[family[0]].layer
        if len(family) == 2 and getattr(cell, "bias", None) is not None:
            found.append(SilencedBias([weights[number] for number in family], cell.bias, cell.units))
    return found
