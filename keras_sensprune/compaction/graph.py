"""The graph of a Sequential or functional model as plain calls. The only file here that knows Keras' private graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_sensprune.errors import ModelError


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: the layer, or a Keras operation without weights.
        inputs: ids of the tensors that it takes.
        outputs: ids of the tensors that it makes.
        constants: whether it takes arrays or nested structures beside tensors and plain numbers.
        masks: ids of the tensors that it takes as `mask`: which positions count. They are not among the inputs.
        positional: its positional arguments, None in place of each tensor.
    """

    operation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: bool
    masks: tuple[int, ...] = ()
    positional: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The calls of a model in the order of computation.

    Attributes:
        calls: all calls but those of the input layers.
        inputs, outputs: ids of the model's tensors.
        shapes: shape by tensor id, None where a size is free.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: dict[int, tuple[int | None, ...]]


def read_graph(model: Any) -> Graph:
    """The graph of a model.

    Raises:
        ModelError: if the model is neither Sequential nor functional (a subclassed model has no graph), or not built.
    """
    functional = getattr(model, "_functional", None) if isinstance(model, keras.Sequential) else model
    if not model.built or functional is None or not hasattr(functional, "_nodes_by_depth"):
        state = "not built" if not model.built else "neither Sequential nor functional, so it has no graph"
        raise ModelError(f"The model {model.name!r} is {state}. Compaction needs the graph; build it from layers.")
    calls, shapes = [], {}
    for tensor in (*functional.inputs, *functional.outputs):
        shapes[id(tensor)] = tuple(tensor.shape)
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            for tensor in node.outputs:
                shapes[id(tensor)] = tuple(tensor.shape)
            if node.is_input:
                continue
            calls.append(_call(node))
    inputs, outputs = (tuple(id(t) for t in tensors) for tensors in (functional.inputs, functional.outputs))
    return Graph(tuple(calls), inputs, outputs, shapes)


def _call(node: Any) -> Call:
    arguments, plain = node.arguments, (keras.KerasTensor, int, float, bool, str, type(None))
    leaves = keras.tree.flatten((arguments.args, arguments.kwargs))
    masks = tuple(id(t) for t in keras.tree.flatten(arguments.kwargs.get("mask")) if isinstance(t, keras.KerasTensor))
    return Call(
        node.operation,
        tuple(id(tensor) for tensor in arguments.keras_tensors if id(tensor) not in masks),
        tuple(id(tensor) for tensor in node.outputs),
        not all(isinstance(leaf, plain) for leaf in leaves),
        masks,
        tuple(None if isinstance(value, keras.KerasTensor) else value for value in arguments.args),
    )


def check_layers(model: Any) -> None:
    """Refuses, by name, what cannot be copied with its weights, and what would lose its sharing.

    Raises:
        ModelError: if a layer is quantized or has LoRA weights, or belongs to two of the models inside each other.
    """
    for layer in model._flatten_layers():
        quantized = getattr(layer, "quantization_mode", None)
        if quantized or getattr(layer, "lora_enabled", False):
            what = f"is quantized ({quantized})" if quantized else "has LoRA weights"
            remedy = (
                "Compact before quantizing."
                if quantized
                else "Give `layer.kernel`, which contains them, to a plain layer."
            )
            raise ModelError(f"The layer {layer.name!r} {what}, which compaction does not take apart. {remedy}")
    owner: dict[int, Any] = {}
    waiting = [model]
    for part in waiting:  # grows while it is read
        for layer in {id(call.operation): call.operation for call in _calls_of(part)}.values():
            other = owner.setdefault(id(layer), part)
            if other is not part and isinstance(layer, keras.layers.Layer):
                raise ModelError(
                    f"The layer {layer.name!r} belongs to the model {other.name!r} and to the model {part.name!r}; "
                    "compaction could not keep it shared. Build one model from the layers."
                )
            if other is part and isinstance(layer, keras.Model):
                waiting.append(layer)


def _calls_of(model: Any) -> tuple[Call, ...]:
    """The calls of a model; none if it is a part without a graph."""
    try:
        return read_graph(model).calls
    except ModelError:
        return ()
