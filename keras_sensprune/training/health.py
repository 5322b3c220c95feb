"""Flags for bad batches, kept in device variables and read at epoch ends: no host round trip in a step."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
        self._first_spoiled = counter(-1)
        self._batch = threading.local()  # one per replica

    def begin(self, data: Any) -> None:
        """Looks at a batch before its step.

        Numbers that are not finite are no fault where the model deals with them, as with missing values that it masks
        or fills in: then loss and weights stay finite. Where the loss is not seen, they are one.
        """
        self._batch.found, self._batch.seen = ops.zeros((), "int64"), False
        floats = [v for v in tree.flatten(data) if v is not None and keras.backend.is_float_dtype(v.dtype)]
        for value in floats:
            if not isinstance(value, (tf.SparseTensor, tf.RaggedTensor)):
                self._note(ops.logical_not(ops.all(ops.isfinite(value))), 1)

    def check_loss(self, loss: Any) -> None:
        """Looks at a loss."""
        self._batch.seen = True
        self._note(ops.logical_not(ops.all(ops.isfinite(loss))), 2)

    def check_labels(self, bad: Any | None) -> None:
        """Looks at the flag for class numbers out of range."""
        if bad is not None:
            self._note(bad, 4)

    def _note(self, bad: Any, cause: int) -> None:
        self._batch.found = self._batch.found | (ops.cast(bad, "int64") * cause)

    def end(self) -> None:
        """Writes down the first bad step and counts this one."""
        found = self._batch.found
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            bits = [ops.cast((found & cause) > 0, "int64") for cause in _CAUSES]
            bits = context.all_reduce(tf.distribute.ReduceOp.SUM, bits)
            found = sum(ops.cast(bit > 0, "int64") * cause for bit, cause in zip(bits, _CAUSES, strict=True))
        step, faults = ops.convert_to_tensor(self.step), (2 | 4) if self._batch.seen else (1 | 2 | 4)
        first = self._note_first(self._first_bad, (found & faults) > 0, step)
        self._causes.assign(ops.where(first, found, ops.convert_to_tensor(self._causes)))
        self._note_first(self._first_spoiled, (found & 1) > 0, step)
        self.step.assign(ops.convert_to_tensor(self.step) + 1)

    @staticmethod
    def _note_first(variable: Any, happens: Any, step: Any) -> Any:
        """Keeps the number of the first step in which something happens; whether it is this one."""
        before = ops.convert_to_tensor(variable)
        first = ops.logical_and(before < 0, happens)
        variable.assign(ops.where(first, step, before))
        return first

    def problem(self, variables: Sequence[Any]) -> str | None:
        """What the first bad step was and why, or None.

        Args:
            variables: of the model, which are looked at as well: an activation such as ReLU makes 0 of NaN, so that
                the loss can be finite with weights that are not.
        """
        step, found = int(self._first_bad.numpy()), int(self._causes.numpy())
        causes = "; ".join(text for bit, text in _CAUSES.items() if found & bit)
        if step < 0:
            if all(bool(ops.all(ops.isfinite(variable))) for variable in variables):
                return None
            step, causes = int(self._first_spoiled.numpy()), f"{_CAUSES[1]}; a weight is not finite since then"
        if step < 0:
            return "Training was stopped: a weight is not finite (NaN or infinity), though the losses were."
        return f"Training was stopped: in step {step} (counted from 0 since training began) {causes}."
