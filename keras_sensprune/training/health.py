"""Flags for bad batches, kept in device variables and read at epoch ends: no host round trip in a step."""

from __future__ import annotations

import threading
from typing import Any

import keras
import tensorflow as tf
from keras import ops, tree

from keras_sensprune.training.pace import counter

_CAUSES = {
    1: "the inputs or targets hold a value that is not finite (NaN or infinity)",
    2: "the loss is not finite (NaN or infinity)",
    4: "a class label is negative or not smaller than the number of outputs",
}


class StepHealth:
    """Counts the steps and remembers the first bad one.

    Attributes:
        step: number of steps begun, a variable.
    """

    def __init__(self) -> None:
        self.step = counter(0)
        self._first_bad = counter(-1)
        self._causes = counter(0)
        self._batch = threading.local()  # one per replica

    def begin(self, data: Any) -> None:
        """Looks at a batch before its step.

        Numbers that are not finite are the cause of a loss that is not finite. Where the loss is finite, the model has
        dealt with them (missing values that it masks or fills in). Where it is not seen, they are all that is known.
        """
        self._batch.found, self._batch.seen = ops.zeros((), "int64"), False
        spoiled = [ops.zeros((), "bool")]
        floats = [v for v in tree.flatten(data) if v is not None and keras.backend.is_float_dtype(v.dtype)]
        for value in floats:
            if not isinstance(value, (tf.SparseTensor, tf.RaggedTensor)):
                spoiled.append(ops.logical_not(ops.all(ops.isfinite(value))))
        self._batch.spoiled = ops.any(ops.stack(spoiled))

    def check_loss(self, loss: Any) -> None:
        """Looks at a loss."""
        bad = ops.logical_not(ops.all(ops.isfinite(loss)))
        self._batch.seen = True
        self._note(bad, 2)
        self._note(ops.logical_and(bad, self._batch.spoiled), 1)

    def check_labels(self, bad: Any | None) -> None:
        """Looks at the flag for class numbers out of range."""
        if bad is not None:
            self._note(bad, 4)

    def _note(self, bad: Any, cause: int) -> None:
        self._batch.found = self._batch.found | (ops.cast(bad, "int64") * cause)

    def end(self) -> None:
        """Writes down the first bad step and counts this one."""
        if not self._batch.seen:
            self._note(self._batch.spoiled, 1)
        found = self._batch.found
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            bits = [ops.cast((found & cause) > 0, "int64") for cause in _CAUSES]
            bits = context.all_reduce(tf.distribute.ReduceOp.SUM, bits)
            found = sum(ops.cast(bit > 0, "int64") * cause for bit, cause in zip(bits, _CAUSES, strict=True))
        first = ops.logical_and(ops.convert_to_tensor(self._first_bad) < 0, found > 0)
        self._causes.assign(ops.where(first, found, ops.convert_to_tensor(self._causes)))
        self._first_bad.assign(
            ops.where(first, ops.convert_to_tensor(self.step), ops.convert_to_tensor(self._first_bad))
        )
        self.step.assign(ops.convert_to_tensor(self.step) + 1)

    def problem(self) -> str | None:
        """What the first bad step was and why, or None."""
        step, found = int(self._first_bad.numpy()), int(self._causes.numpy())
        if step < 0:
            return None
        causes = "; ".join(text for bit, text in _CAUSES.items() if found & bit)
        return f"Training was stopped: in step {step} (counted from 0 since training began) {causes}."
