"""The rules of layers that have units of their own, and take constants over into their biases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_sensprune.compaction.rules import COMPACTS, PASSES, Array, Kept, Rule, activated, elementwise


class Producer(Rule):
    """A layer with a matrix from input channels to units of its own."""

    kind = COMPACTS

    def size(self) -> int:
        """Number of units."""
        return self.weights[0].shape[-1]

    def channels(self, inputs: list[Array], shapes: Sequence[Any], new: Callable[[int], Array]) -> Array:
        return new(self.size())


class Dense(Producer):
    """Dense layers, and convolutions: a kernel (positions, inputs, units); a removed constant goes into the bias."""

    unit_setting = "units"

    def kernel(self) -> Array:
        """The kernel as (positions, inputs, units)."""
        return self.weights[0].reshape(-1, *self.weights[0].shape[-2:]).astype(np.float64)

    def foldable(self) -> bool:
        """Whether a constant input adds the same at every position."""
        return True

    def bias(self) -> Array:
        """The bias, zeros where there is none."""
        return self.weights[1].astype(np.float64) if self.layer.use_bias else np.zeros(self.size())

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        if not elementwise(self.layer.activation):
            return np.full(self.size(), np.nan)
        kernel, varies = self.kernel(), self._unfit(inputs[0])
        read = np.any(kernel[:, varies, :] != 0, axis=(0, 1))
        value = self.bias() + np.einsum("pio,i->o", kernel, np.where(varies, 0, inputs[0]))
        return activated(self.layer.activation, np.where(read, np.nan, value))

    def needs(self, constants: Array) -> Array:
        return self._unfit(constants) & np.any(self.kernel() != 0, axis=(0, 2))

    @property
    def whole(self) -> bool:
        return not elementwise(self.layer.activation)

    def holds(self, outputs: Array) -> Array:
        return np.full(self.size(), self.whole)  # softmax reads all units of its own

    def _unfit(self, constants: Array) -> Array:
        """Input channels that no bias can take over."""
        return np.isnan(constants) | (False if self.foldable() else constants != 0)

    def shrunk(self, kept: Kept) -> tuple[dict[str, Any], list[Array]]:
        gone = ~kept.inputs
        known = np.where(gone & ~np.isnan(kept.constants), kept.constants, 0)
        known = known if self.foldable() else np.zeros(len(known))
        added = np.einsum("pio,i->o", self.kernel(), known)
        settings: dict[str, Any] = {self.unit_setting: int(np.count_nonzero(kept.outputs))}
        weights = [self.weights[0][..., kept.inputs, :][..., kept.outputs]]
        if self.layer.use_bias or np.any(added[kept.outputs]):
            settings["use_bias"] = True
            weights.append((self.bias() + added)[kept.outputs].astype(weights[0].dtype))
        return settings, weights


class Conv(Dense):
    """Convolutions along channels_last, without groups."""

    unit_setting = "filters"

    def obstacle(self, shapes: Sequence[Any]) -> str:
        if self.layer.data_format != "channels_last":
            return "its data_format is channels_first"
        if self.layer.groups != 1:
            return "it is a grouped convolution"
        return super().obstacle(shapes)

    def foldable(self) -> bool:
        """At a padded border fewer positions are read, so a constant other than 0 adds something else there."""
        return self.layer.padding == "valid" or math.prod(self.layer.kernel_size) == 1


class TransposedConv(Conv):
    """Transposed convolutions: positions overlap unevenly, so only the constant 0 can go."""

    def obstacle(self, shapes: Sequence[Any]) -> str:
        last = self.layer.data_format == "channels_last"
        return Dense.obstacle(self, shapes) if last else "its data_format is channels_first"

    def size(self) -> int:
        return self.weights[0].shape[-2]

    def kernel(self) -> Array:
        return np.swapaxes(super().kernel(), 1, 2)  # Keras stores (positions, units, inputs)

    def foldable(self) -> bool:
        return False

    def shrunk(self, kept: Kept) -> tuple[dict[str, Any], list[Array]]:
        settings, weights = {"filters": int(np.count_nonzero(kept.outputs))}, [self.weights[0][..., kept.inputs]]
        weights[0] = weights[0][..., kept.outputs, :]
        return settings, weights + [bias[kept.outputs] for bias in self.weights[1:]]


class Depthwise(Conv):
    """Depthwise convolutions: channel c feeds the outputs c * m ... c * m + m - 1, which go with it."""

    kind = PASSES

    def obstacle(self, shapes: Sequence[Any]) -> str:
        if not elementwise(self.layer.activation):
            return "its activation mixes channels or is not one of Keras"
        return "" if self.layer.data_format == "channels_last" else "its data_format is channels_first"

    def size(self) -> int:
        return math.prod(self.weights[0].shape[-2:])

    def channels(self, inputs: list[Array], shapes: Sequence[Any], new: Callable[[int], Array]) -> Array:
        return np.repeat(inputs[0], self.layer.depth_multiplier)

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        kernel = self.weights[0].reshape(-1, self.size()).astype(np.float64)
        coming = np.repeat(inputs[0], self.layer.depth_multiplier)
        varies = self._unfit(coming) & np.any(kernel != 0, axis=0)
        value = self.bias() + kernel.sum(axis=0) * np.where(self._unfit(coming), 0, coming)
        return activated(self.layer.activation, np.where(varies, np.nan, value))

    def needs(self, constants: Array) -> Array:
        return np.zeros(len(constants), bool)

    def holds(self, outputs: Array) -> Array:
        return np.zeros(len(outputs), bool)

    def shrunk(self, kept: Kept) -> tuple[dict[str, Any], list[Array]]:
        return {}, [self.weights[0][..., kept.inputs, :], *(bias[kept.outputs] for bias in self.weights[1:])]


class Embedding(Producer):
    """The columns of a table."""

    reads_channels = False

    def obstacle(self, shapes: Sequence[Any]) -> str:
        return ""

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        table = self.weights[0].astype(np.float64)
        return np.where(np.all(table == table[:1], axis=0), table[0], np.nan)

    def needs(self, constants: Array) -> Array:
        return np.ones(len(constants), bool)

    def tied(self, inputs: Array, outputs: Array) -> Array:
        return inputs[:0]  # the last axis of the input is no axis of channels

    def shrunk(self, kept: Kept) -> tuple[dict[str, Any], list[Array]]:
        return {"output_dim": int(np.count_nonzero(kept.outputs))}, [self.weights[0][:, kept.outputs]]


class Recurrent(Producer):
    r"""LSTM, GRU, SimpleRNN: a unit goes if it is 0 for ever, or if nothing reads it but units that go.

    The state starts at 0. With candidate $\tilde c = \phi(W x + U h + b)$ and $\phi(0) = 0$, a unit whose candidate has
    only zero weights and biases has $\tilde c = 0$ in every step, so its state stays 0, whatever the gates do:
    $c' = f c + i \tilde c$ (LSTM), $h' = z h + (1 - z) \tilde c$ (GRU), $h' = \tilde c$ (SimpleRNN).
    """

    def obstacle(self, shapes: Sequence[Any]) -> str:
        layer = self.layer
        if len(shapes) > 2 or layer.return_state:  # a mask is no input here: a step that it leaves out changes nothing
            return "its state is given or returned"
        if layer.stateful:
            return "it keeps its state between calls"
        names = ("activation", "recurrent_activation")
        known = all(elementwise(getattr(layer, name, None)) for name in names)
        return "" if known else "its activation mixes channels or is not one of Keras"

    @property
    def gates(self) -> int:
        """4 (i, f, candidate, o), 3 (z, r, candidate) or 1."""
        return self.weights[0].shape[-1] // self.size()

    def size(self) -> int:
        return self.weights[1].shape[0]

    def _candidate(self, value: Array) -> Array:
        """The candidate's share of the last axis."""
        return np.split(value, self.gates, axis=-1)[2 if self.gates > 1 else 0]

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        idle = inputs[0] == 0
        parts = [self._candidate(self.weights[0][~idle]), self._candidate(self.weights[1])]
        parts += [self._candidate(np.atleast_2d(bias)) for bias in self.weights[2:]]
        silent = np.all([np.all(part == 0, axis=0) for part in parts], axis=0)
        at_zero = activated(self.layer.activation, np.zeros(1))[0] == 0
        return np.where(silent & at_zero, 0.0, np.nan)

    def needs(self, constants: Array) -> Array:
        return np.isnan(constants) & np.any(self.weights[0] != 0, axis=1)

    def inner_reads(self, outputs: Array) -> Array:
        rows = self.weights[1].reshape(self.size(), self.gates, self.size()) != 0
        varies = np.isnan(outputs)  # a unit that is 0 for ever stays so whatever its gates read
        return np.any(rows, axis=1) & varies[:, None] & varies[None, :]

    def shrunk(self, kept: Kept) -> tuple[dict[str, Any], list[Array]]:
        columns = np.tile(kept.outputs, self.gates)
        known = np.where(~kept.inputs & ~np.isnan(kept.constants), kept.constants, 0)
        added = known @ self.weights[0].astype(np.float64)
        settings: dict[str, Any] = {"units": int(np.count_nonzero(kept.outputs))}
        weights = [self.weights[0][kept.inputs][:, columns], self.weights[1][kept.outputs][:, columns]]
        if len(self.weights) > 2 or np.any(added[columns]):
            settings["use_bias"] = True
            weights.append(self._bias(added)[..., columns].astype(weights[0].dtype))
        return settings, weights

    def _bias(self, added: Array) -> Array:
        """The bias with what removed inputs add; with GRU's reset_after it has two rows, inputs first."""
        double = getattr(self.layer, "reset_after", False)
        bias = np.zeros((2, len(added)) if double else len(added))
        bias = bias + (self.weights[2] if len(self.weights) > 2 else 0)
        if double:
            bias[0] += added
            return bias
        return bias + added
