"""SensitivityRegularizer: what the user writes in a layer."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sensprune.errors import argument_error, number_argument
from keras_sensprune.formulas.penalty import PIECEWISE_LINEAR, SMOOTH, penalty_with_exact_gradient
from keras_sensprune.training.state import active_weight


@keras.saving.register_keras_serializable(package="keras_sensprune", name="SensitivityRegularizer")
class SensitivityRegularizer(keras.regularizers.Regularizer):
    r"""Marks a weight for sensitivity-driven shrinkage and pruning.

    During a `fit` with `PruneAtEpochEnd` every step applies
    $$w \leftarrow w - \eta\,\partial L/\partial w - \lambda\, w\, \bar S_b,\qquad \bar S_b = \max(0, 1 - S)$$
    with $\lambda$ = `strength` and $S$ the sensitivity of the outputs to $w$.

    Args:
        strength: $\lambda \ge 0$, the fraction of an insensitive weight that one step takes away. 1e-4 is a usual
            value.
        decoupled: if True (the paper's rule) the shrinkage is applied after the optimizer's own step, whatever
            the optimizer, and adds nothing to the loss. If False the penalty is part of the loss, as with other
            Keras regularizers; for plain SGD this is the paper's rule with strength / learning rate.
        activation: name of the activation behind this weight, for the *value* of the penalty at `order=2`. None
            reads it from the layer. It never changes the gradient.
        order: 1, or 2 for the second-order value of the penalty for weights of Dense and convolution layers with a
            smooth activation; it costs one more stored tensor per such weight.

    Returns:
        A Keras regularizer; one instance can serve any number of layers and weights.

    Raises:
        ArgumentError: if an argument is not allowed.

    Example:
        >>> import keras
        >>> from keras_sensprune import SensitivityRegularizer
        >>> layer = keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(1e-4))
        >>> layer.kernel_regularizer.get_config()
        {'strength': 0.0001, 'decoupled': True, 'activation': None, 'order': 1}

    Reference: Tartaglione et al., NeurIPS 2018, eq. 15 and the update rule.
    """

    def __init__(self, strength: float, decoupled: bool = True, activation: str | None = None, order: int = 1):
        self.strength = number_argument("strength", strength, "a finite number of at least 0")
        if not isinstance(decoupled, bool):
            raise argument_error("decoupled", "True or False", decoupled)
        if activation is not None and activation not in PIECEWISE_LINEAR | SMOOTH:
            allowed = ", ".join(sorted(PIECEWISE_LINEAR | SMOOTH))
            raise argument_error("activation", f"None or one of {allowed}", activation)
        if order not in (1, 2) or isinstance(order, bool):
            raise argument_error("order", "1 or 2", order)
        if decoupled and self.strength > 1:
            remedy = "One step takes this fraction of a weight away. decoupled=False has no such limit."
            raise argument_error("strength", "at most 1 where decoupled=True", strength, remedy)
        self.decoupled = decoupled
        self.activation = activation
        self.order = int(order)
        self._warned = False
        self._left_zeros = False

    def __call__(self, x: Any) -> Any:
        """The term that Keras adds to the loss: 0 if decoupled, else strength * sum of R(w)."""
        weight = active_weight(x)
        if weight is None:
            self._warn_without_callback(x)
            if self.decoupled:
                return keras.ops.zeros(())
            # No sensitivity is known: S = 0, its lower bound, makes this plain weight decay.
            tensor = keras.ops.convert_to_tensor(x)
            return self.strength * penalty_with_exact_gradient(tensor, keras.ops.zeros_like(tensor))
        return keras.ops.zeros(()) if self.decoupled else weight.coupled_penalty()

    def note_zeros(self) -> None:
        """Weights with this regularizer have been pruned: training that does not keep the zeros warns again."""
        self._warned, self._left_zeros = False, True

    def _warn_without_callback(self, x: Any) -> None:
        """Warns once, and only where a gradient is being recorded: in `fit`, not in `evaluate` or while building."""
        from tensorflow.python.eager import record  # private; tests/training/test_regularizer.py names the seam

        if self._warned or not record.could_possibly_record():
            return
        zeros = _holds_zeros(x)
        if not (self.strength or self._left_zeros or zeros):
            return
        self._warned = True
        # Other texts than before the pruning, because Python shows one text once
        lost = "weights that are zero now" if zeros else "pruned weights"
        if self._left_zeros:
            lost = "the weights that it has just pruned"
        effect = "does nothing" if self.decoupled else "acts as plain weight decay"
        warnings.warn(
            f"SensitivityRegularizer {effect} without the PruneAtEpochEnd callback, and {lost} may grow again. "
            "Pass `callbacks=[PruneAtEpochEnd(...)]` to `fit`, or use `make_pruning_step` in a custom loop.",
            stacklevel=2,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain Python values."""
        return {
            "strength": self.strength,
            "decoupled": self.decoupled,
            "activation": self.activation,
            "order": self.order,
        }


def _holds_zeros(x: Any) -> bool:
    """Whether a variable is partly zero, as one of a pruned model that was loaded; False where nobody can look."""
    if not isinstance(x, keras.Variable):
        return False
    with tf.init_scope():  # out of the graph that is being made
        alive = np.count_nonzero(x.numpy()) if tf.executing_eagerly() else 0
    return 0 < alive < math.prod(x.shape)
