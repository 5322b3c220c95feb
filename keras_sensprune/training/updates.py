"""What an optimizer's update does apart from subtracting something from the weights, and whether there was one."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

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


def real_updates(optimizer: Any) -> Any | None:
    """Count of real updates, where a step need not be one: gradient accumulation, loss scaling.

    Args:
        optimizer: a Keras optimizer, or None.

    Returns:
        A scalar tensor, or None where every step is an update.
    """
    inner: Any = getattr(optimizer, "inner_optimizer", optimizer)
    if inner is not optimizer or getattr(inner, "gradient_accumulation_steps", None):
        return tf.identity(ops.convert_to_tensor(inner.iterations))  # its value now: Keras returns the variable
    return None
