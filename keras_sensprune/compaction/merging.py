"""The rules of layers and operations that put several tensors together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_sensprune.compaction.rules import Array, Rule


class Merge(Rule):
    """Add, Subtract, Average, Maximum, Minimum: channel i of all inputs is one unit."""

    couples = True

    def obstacle(self, shapes: Sequence[Any]) -> str:
        numbers = [value for value in self.positional if isinstance(value, (int, float))]
        if len(shapes) - 1 + len(numbers) < 2:
            return "it does not take two tensors, or a tensor and a number"
        equal = len({shape[-1] for shape in shapes}) == 1
        return "" if equal else "its inputs have different numbers of channels"

    def operands(self, inputs: list[Array]) -> list[Array]:
        """Constants of all operands in the order of the call; a number is a constant of every channel."""
        if isinstance(self.layer, keras.layers.Layer) or len(self.positional) < 2:
            return inputs
        tensors = iter(inputs)
        return [next(tensors) if x is None else np.full(len(inputs[0]), float(x)) for x in self.positional]

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        inputs = self.operands(inputs)
        varies = np.any(np.isnan(inputs), axis=0)
        values = [np.where(varies, 0, value).astype("float32")[None] for value in inputs]
        takes_list = isinstance(self.layer, keras.layers.Layer)
        answer = self.layer(values) if takes_list else self.layer(*values)
        return np.where(varies, np.nan, np.asarray(answer).reshape(-1).astype(np.float64))


class Multiply(Merge):
    """The same; a factor that is 0 throughout makes the product 0."""

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        inputs = self.operands(inputs)
        zero = np.any(np.equal(inputs, 0), axis=0)
        return np.where(zero, 0.0, np.prod(inputs, axis=0))


class Concatenate(Rule):
    """The channels of all inputs one after the other."""

    def obstacle(self, shapes: Sequence[Any]) -> str:
        axis = self.layer.axis
        return "" if axis in (-1, len(shapes[0]) - 1) else f"it joins axis {axis}, not the last one"

    def channels(self, inputs: list[Array], shapes: Sequence[Any], new: Callable[[int], Array]) -> Array:
        return np.concatenate(inputs)

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        return np.concatenate(inputs)
