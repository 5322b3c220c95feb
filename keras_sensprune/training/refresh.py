"""A refresh: the sensitivities of a batch are taken and stored, on one replica or on several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.training.gradients import Parts, SensitivityTape
from keras_sensprune.training.outputs import Terms
from keras_sensprune.training.replicas import refresh_together
from keras_sensprune.training.state import PrunedWeight

Sensed = Callable[[], tuple[SensitivityTape, list[Terms]]]  # a tape that has seen a forward pass, and its outputs


class Refresh:
    """Takes the sensitivities of a batch and stores them with the weights.

    Args:
        model: the model.
        weights: the states of its prunable weights, in the order of the tape's.
        sensitivity: the configuration.
    """

    def __init__(self, model: Any, weights: Sequence[PrunedWeight], sensitivity: Sensitivity):
        self.model, self.weights, self.sensitivity = model, weights, sensitivity

    def alone(self, sensed: Sensed, refresh: Any) -> Any:
        """On one replica.

        Args:
            sensed: gives the tape and the outputs.
            refresh: how many refreshes there were before.

        Returns:
            Whether a class number was out of range, a boolean tensor.
        """
        tape, outputs = sensed()
        for weight, *found in zip(self.weights, *tape.sensitivities(outputs, refresh), strict=True):
            self._store(outputs, refresh, weight, *found)
        return _bad_labels(outputs)

    def together(self, sensed: Sensed, refresh: Any, due: Any) -> Any:
        """On several replicas, each of which calls this, in every step.

        Args:
            sensed, refresh: as for `alone`.
            due: whether this step refreshes, see `refresh_together`.

        Returns:
            The same for this replica; False in a step that does not refresh.
        """
        outputs: list[Terms] = []

        def of_replica() -> tuple[list[Parts], Any]:
            tape, outputs[:] = sensed()
            return tape.signed_terms(outputs, refresh), _bad_labels(outputs)

        def store(weight: PrunedWeight, *found: Any) -> None:
            self._store(outputs, refresh, weight, *found)

        synchronized = any(getattr(layer, "synchronized", False) for layer in self.model._flatten_layers())
        strategy = self.model.distribute_strategy
        return refresh_together(strategy, due, of_replica, self.weights, store, in_every_step=synchronized)

    def _store(self, outputs: list[Terms], refresh: Any, weight: PrunedWeight, *found: Any) -> None:
        averaged = self.sensitivity.scale != "raw" or any(output.varies for output in outputs)
        weight.store(averaged, refresh, *found)


def _bad_labels(outputs: list[Terms]) -> Any:
    flags = [output.bad_labels for output in outputs if output.bad_labels is not None]
    return tf.reduce_any(tf.stack(flags)) if flags else tf.constant(False)
