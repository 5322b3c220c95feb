"""What compaction knows of layers: the base of all rules, and the layers through which units pass.

A rule answers for one layer: which channels of its output are which (`channels`), which outputs are constant
(`constants`), which of its inputs it cannot do without (`needs`), and how its configuration and weights look when only
some channels are left (`shrunk`). Channels are those of the last axis of a tensor.

A constant is a number per channel, NaN where the channel varies with the input, the position or time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

Array = np.ndarray
COMPACTS, PASSES, STOPS = "compacts", "passes through", "stops"
_MIXING = {"softmax", "log_softmax", "sparsemax", "glu"}


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is left of a layer's channels.

    Attributes:
        inputs: kept channels of the (first) input.
        outputs: kept channels of the output.
        constants: value of each input channel, NaN where it varies.
    """

    inputs: Array
    outputs: Array
    constants: Array


class Rule:
    """How one layer behaves. The base class lets everything through unchanged: dropout, noise, identity.

    Args:
        layer: the layer or operation.
    """

    kind = PASSES
    couples = False  # whether channel i of all inputs is one unit
    reads_channels = True  # whether the last axis of the input is one of channels
    positional: tuple[Any, ...] = ()  # positional arguments of the call, None for each tensor

    def __init__(self, layer: Any):
        self.layer = layer
        self.weights = [np.asarray(v.numpy()) for v in getattr(layer, "weights", ())]

    def obstacle(self, shapes: Sequence[Any]) -> str:
        """Why this very layer stops compaction, '' if it does not."""
        return ""

    def channels(self, inputs: list[Array], shapes: Sequence[Any], new: Callable[[int], Array]) -> Array:
        """Unit ids of the output's channels; `new(n)` makes ids for n units."""
        return inputs[0]

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        """Constants of the output's channels from those of the inputs."""
        return inputs[0]

    def needs(self, constants: Array) -> Array:
        """Which input channels cannot be removed: read with a weight, and not a constant that a bias can take over."""
        return np.zeros(len(constants), bool)

    @property
    def whole(self) -> bool:
        """Whether all units of its own stay because its activation reads them together."""
        return False

    def holds(self, outputs: Array) -> Array:
        """Which of its own units stay whatever reads them (those of a softmax)."""
        return np.zeros(len(outputs), bool)

    def inner_reads(self, outputs: Array) -> Array | None:
        """Recurrent layers: entry [i, j] tells whether unit i is read by unit j of the same layer."""
        return None

    def tied(self, inputs: Array, outputs: Array) -> Array:
        """The units of a call that must be the same ones in every call of the layer: those that its weights read."""
        return inputs if self.weights else inputs[:0]

    def shrunk(self, kept: Kept) -> tuple[dict[str, Any], list[Array]]:
        """Changes of the configuration, and the weights."""
        return {}, self.weights


class Stop(Rule):
    """A layer that is not understood, or that mixes channels: all its channels stay."""

    kind = STOPS
    reason = "it is not known to compaction"

    def obstacle(self, shapes: Sequence[Any]) -> str:
        return self.reason

    def needs(self, constants: Array) -> Array:
        return np.ones(len(constants), bool)


def stop(why: str) -> type[Stop]:
    """A stopping rule with its reason."""
    return type("Stop", (Stop,), {"reason": why})


def apply_layer(layer: Any, constants: Array, rank: int) -> Array:
    """An elementwise layer on constants; NaN stays NaN."""
    varies = np.isnan(constants)
    shape = (1,) * (rank - 1) + (len(constants),)
    value = keras.ops.convert_to_tensor(np.where(varies, 0, constants).reshape(shape).astype("float32"))
    answer = np.asarray(layer(value)).reshape(-1).astype(np.float64)
    return np.where(varies, np.nan, answer)


def elementwise(activation: Any) -> bool:
    """Whether an activation acts on each channel alone; one that Keras does not know by name is not trusted."""
    name = getattr(activation, "__name__", "")
    known = getattr(keras.activations, name, None) is activation
    return activation is None or (known and name not in _MIXING)


def activated(activation: Any, values: Array) -> Array:
    """An elementwise activation on constants."""
    return values if activation is None else apply_layer(activation, values, 2)


class Elementwise(Rule):
    """An activation without weights."""

    def obstacle(self, shapes: Sequence[Any]) -> str:
        activation = getattr(self.layer, "activation", None)
        return "" if elementwise(activation) else "its activation mixes channels or is not one of Keras"

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        return apply_layer(self.layer, inputs[0], len(shapes[0]))


class PReLU(Elementwise):
    """A slope per channel, shared along all other axes."""

    def obstacle(self, shapes: Sequence[Any]) -> str:
        shared = math.prod(self.weights[0].shape[:-1]) == 1
        return "" if shared else "its slopes differ from position to position; use shared_axes"

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        slope = self.weights[0].reshape(-1)
        return np.where(inputs[0] > 0, inputs[0], slope * inputs[0])

    def shrunk(self, kept: Kept) -> tuple[dict[str, Any], list[Array]]:
        return {}, [self.weights[0][..., kept.outputs]]


class Normalization(Rule):
    """BatchNormalization along the last axis, as at inference: a scale and a shift per channel."""

    def obstacle(self, shapes: Sequence[Any]) -> str:
        axis = self.layer.axis
        last = axis in (-1, len(shapes[0]) - 1)
        return "" if last else f"it normalizes axis {axis}, not the last one"

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        layer = self.layer
        mean, variance = (v.numpy().astype(np.float64) for v in (layer.moving_mean, layer.moving_variance))
        gamma = layer.gamma.numpy() if layer.scale else 1.0
        beta = layer.beta.numpy() if layer.center else 0.0
        scale = gamma / np.sqrt(variance + layer.epsilon)
        value = np.where(scale == 0, beta, scale * (inputs[0] - mean) + beta)  # gamma 0: constant whatever comes in
        return np.asarray(value, np.float64)

    def shrunk(self, kept: Kept) -> tuple[dict[str, Any], list[Array]]:
        return {}, [value[kept.outputs] for value in self.weights]


class ChannelsLast(Rule):
    """Pooling, cropping, upsampling: acts on positions, each channel alone; a constant stays what it is."""

    def obstacle(self, shapes: Sequence[Any]) -> str:
        last = getattr(self.layer, "data_format", "channels_last") == "channels_last"
        return "" if last else "its data_format is channels_first"


class ZeroPadding(ChannelsLast):
    """Zeros around: only the constant 0 stays constant."""

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        return np.where(inputs[0] == 0, 0.0, np.nan)


class Flatten(ChannelsLast):
    """Every position of a channel becomes a feature of its own; they go together."""

    def channels(self, inputs: list[Array], shapes: Sequence[Any], new: Callable[[int], Array]) -> Array:
        return np.tile(inputs[0], shapes[-1][-1] // len(inputs[0]))

    def constants(self, inputs: list[Array], shapes: Sequence[Any]) -> Array:
        return np.tile(inputs[0], shapes[-1][-1] // len(inputs[0]))


class Reshape(Flatten):
    """To one axis as Flatten; to a shape that keeps the last axis, position by position."""

    def obstacle(self, shapes: Sequence[Any]) -> str:
        flat = len(shapes[1]) == 2
        return "" if flat or shapes[1][-1] == shapes[0][-1] else "it moves channels into other axes"

    def tied(self, inputs: Array, outputs: Array) -> Array:
        return outputs if self.layer.target_shape[-1] != -1 else outputs[:0]  # the shape is part of the settings

    def shrunk(self, kept: Kept) -> tuple[dict[str, Any], list[Array]]:
        *others, last = self.layer.target_shape
        return {"target_shape": (*others, last if last == -1 else int(np.count_nonzero(kept.outputs)))}, []
