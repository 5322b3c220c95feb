"""What went in and out of a layer during one forward pass, for what is computed layer by layer afterwards."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from keras_sensprune.errors import ModelError
from keras_sensprune.training.targets import Target

_Conv = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_Depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
# Layers that apply `self.activation` to their pre-activation as the last thing they do.
UNIT_LAYERS = (keras.layers.Dense, *_Conv, *_Depthwise)


def called_layer(model: Any, target: Target) -> Any:
    """The layer whose call can be recorded: the owner of the weight, or the RNN layer around a cell."""
    if isinstance(target.layer, UNIT_LAYERS):
        return target.layer
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.RNN) and any(v is target.variable for v in layer.trainable_variables):
            return layer
    return target.layer


class LayerCalls:
    """Arguments, pre-activations and results of one layer during one forward pass.

    Attributes:
        arguments: `(args, kwargs)` per call.
        pre_activations: per call, for layers of `UNIT_LAYERS`.
        results: per call.
    """

    def __init__(self, layer: Any):
        self.layer = layer
        self.call = layer.call
        self.arguments: list[tuple[Any, Any]] = []
        self.pre_activations: list[Any] = []
        self.results: list[Any] = []

    @property
    def inputs(self) -> list[Any]:
        """The first argument per call."""
        return [args[0] if args else next(iter(kwargs.values())) for args, kwargs in self.arguments]

    @property
    def factored(self) -> bool:
        """Whether a kernel's derivative per example is a product of two vectors: Dense, once, on rank 2."""
        inputs = self.inputs
        return isinstance(self.layer, keras.layers.Dense) and len(inputs) == 1 and len(inputs[0].shape) == 2

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Notes what the layer does in this thread until the block ends, also by an exception."""
        recorder = _Recorder.of(self.layer)
        self.call = recorder.call
        recorder.listeners.append((threading.get_ident(), self))
        try:
            yield
        finally:
            recorder.listeners.remove((threading.get_ident(), self))
            if not recorder.listeners:
                recorder.remove()

    @contextlib.contextmanager
    def _activation(self, function: Any) -> Iterator[None]:
        before = self.layer.activation
        object.__setattr__(self.layer, "activation", function)
        try:
            yield
        finally:
            object.__setattr__(self.layer, "activation", before)

    def linear(self, inputs: Any) -> Any:
        """The layer without its activation."""
        with self._activation(None):
            return self.call(inputs)

    def of_example(self, call: int, example: Any) -> Any:
        """The layer's result for one example of the batch, computed again from its recorded arguments."""
        args, kwargs = tree.map_structure(
            lambda v: v[example : example + 1] if keras.ops.is_tensor(v) and len(v.shape) else v, self.arguments[call]
        )
        return self.call(*args, **kwargs)


class _Recorder:
    """Stands in for a layer's `call` and `activation` while any tape records it.

    Replicas are threads that take turns in the middle of a step, so their blocks do not end in the order of a stack.
    """

    def __init__(self, layer: Any):
        self.layer = layer
        self.call = layer.call
        self.listeners: list[tuple[int, LayerCalls]] = []
        self._own_call = vars(layer).get("call")
        object.__setattr__(layer, "call", self.recorded_call)
        if isinstance(layer, UNIT_LAYERS):
            self.activation = layer.activation
            object.__setattr__(layer, "activation", self.recorded_activation)

    @classmethod
    def of(cls, layer: Any) -> _Recorder:
        """The one that stands there already, or a new one."""
        return cls.present(layer) or cls(layer)

    @classmethod
    def present(cls, layer: Any) -> _Recorder | None:
        """The one that stands there, or None."""
        found = getattr(vars(layer).get("call"), "__self__", None)
        return found if isinstance(found, cls) else None

    def remove(self) -> None:
        """Puts back what was there."""
        if isinstance(self.layer, UNIT_LAYERS):
            object.__setattr__(self.layer, "activation", self.activation)
        if self._own_call is None:
            object.__delattr__(self.layer, "call")
        else:
            object.__setattr__(self.layer, "call", self._own_call)

    def _here(self) -> Iterator[LayerCalls]:
        return (calls for thread, calls in self.listeners if thread == threading.get_ident())

    def recorded_call(self, *args: Any, **kwargs: Any) -> Any:
        result = self.call(*args, **kwargs)
        for calls in self._here():
            calls.arguments.append((args, kwargs))
            calls.results.append(result)
        return result

    def recorded_activation(self, z: Any) -> Any:
        for calls in self._here():
            calls.pre_activations.append(z)
        return z if self.activation is None else self.activation(z)


def activation_of(layer: Any) -> Any:
    """The activation of a layer of `UNIT_LAYERS`, also while it is being recorded."""
    return (_Recorder.present(layer) or layer).activation


def check_repeatable(target: Target, layer: Any) -> None:
    """Refuses, for derivatives per example, a layer that would compute something else when called again.

    Raises:
        ModelError: if it draws random numbers or has state.
    """
    if getattr(layer, "dropout", 0) or getattr(layer, "recurrent_dropout", 0) or getattr(layer, "stateful", False):
        raise ModelError(
            f"Sensitivity(reduction='mean_of_abs') calls a layer once more per example, but {layer.name!r}, to which "
            f"{target.label!r} belongs, has dropout or state of its own. Use reduction='abs_of_mean'."
        )
