"""What an optimizer's update does with the weights, apart from subtracting something from them."""

from __future__ import annotations

from typing import Any

import keras

# Their steps depend on the gradients alone, never on the weights. A subclass is not among them: it may do anything.
_BLIND = {"Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "Muon", "Nadam", "RMSprop", "SGD"}
_LOOKING = ("weight_decay", "adam_weight_decay", "use_ema")


def looks_at_weights(optimizer: Any) -> bool:
    """Whether an update would be another one if the shrinkage had been subtracted from the weights before it.

    That is so with weight decay and a moving average of the optimizer's own, with steps that depend on the size of the
    weights (Lamb, Adafactor), and has to be feared of optimizers that are not known.

    Args:
        optimizer: a Keras optimizer, or None where a custom step has one of its own.
    """
    known = type(optimizer) in {getattr(keras.optimizers, name) for name in _BLIND}
    return not known or any(getattr(optimizer, name, None) for name in _LOOKING)
