"""The smaller model: the same graph, run again on layers of the sizes that are left."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras.src.saving import serialization_lib

from keras_sensprune.compaction.analysis import Analysis
from keras_sensprune.compaction.graph import Graph
from keras_sensprune.compaction.rules import Array, Kept
from keras_sensprune.errors import ModelError


def rebuild(model: Any, graph: Graph, analysis: Analysis, nested: Callable[[Any], Any]) -> Any:
    """A model of the same kind, names and graph, with the kept channels only.

    Args:
        model: the given model; it is only read.
        graph: its calls.
        analysis: what stays.
        nested: how a model inside of the model is made smaller.

    Returns:
        The new model, with its weights. It is not compiled.
    """
    plans = layer_plans(graph, analysis)
    weights: list[tuple[Any, Any, list[Array]]] = []

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation without weights knows nothing of sizes
        if isinstance(layer, keras.Model):
            return nested(layer)
        settings, values = plans.get(id(layer), ({}, [np.asarray(v.numpy()) for v in layer.weights]))
        copy = _copy(layer, _sized(layer, settings, values))
        _copy_assets(layer, copy)
        weights.append((layer, copy, values))
        return copy

    small = keras.models.clone_model(model, clone_function=clone)
    for layer, copy, values in weights:
        _set_weights(layer, copy, values)
    return small


def _sized(layer: Any, settings: dict[str, Any], values: list[Array]) -> dict[str, Any]:
    """The settings, with "zeros" in place of initializers that hold an array of the old size, or may do so."""
    if [value.shape for value in values] == [tuple(v.shape) for v in layer.weights]:
        return settings
    sized = {}
    for name in layer.get_config():
        initializer = getattr(layer, name, None) if name.endswith("_initializer") else None
        if isinstance(initializer, keras.initializers.Initializer):
            ours = type(initializer).__module__.startswith("keras.src.")
            if not ours or np.ndim(getattr(initializer, "value", 0)):
                sized[name] = "zeros"
    return {**settings, **sized}


def _copy_assets(layer: Any, copy: Any) -> None:
    """Tables of lookup layers, which are no weights; before the copy is called, since shapes depend on them."""
    for old, new in zip(layer._flatten_layers(), copy._flatten_layers(), strict=False):
        if not hasattr(old, "save_assets"):
            continue
        store: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(prefix="sensprune-") as folder:
            old.save_own_variables(store)
            new.load_own_variables(store)
            old.save_assets(folder)
            new.load_assets(folder)


def _set_weights(layer: Any, copy: Any, values: list[Array]) -> None:
    """Sets the weights, and what adapted layers compute from them.

    Raises:
        ModelError: if the copy does not take them.
    """
    try:
        copy.set_weights(values)
    except ValueError as error:
        shapes = [tuple(v.shape) for v in copy.weights]
        raise ModelError(
            f"The layer {layer.name!r} ({type(layer).__name__}) has weights of the shapes "
            f"{[value.shape for value in values]}; its copy from `get_config` has {shapes}."
        ) from error
    for part in copy._flatten_layers():
        if isinstance(part, keras.layers.Normalization):
            part.finalize_state()


def _copy(layer: Any, settings: dict[str, Any]) -> Any:
    """A new layer of the same configuration, but for the changed settings."""
    try:
        with serialization_lib.SafeModeScope(False):  # a Lambda of a model that is in memory is no foreign code
            return type(layer).from_config({**layer.get_config(), **settings})
    except Exception as error:  # whatever a layer of the user raises
        remedy = "Give it a `get_config` that holds all arguments of its constructor."
        raise ModelError(f"The layer {layer.name!r} cannot be copied: {error}. {remedy}") from error


def layer_plans(graph: Graph, analysis: Analysis) -> dict[int, tuple[dict[str, Any], list[Array]]]:
    """Per layer the changes of its configuration, and its new weights; layers that stop things keep theirs."""
    plans = {}
    for call in graph.calls:
        rule = analysis.rules[id(call.operation)]
        if isinstance(call.operation, keras.layers.Layer) and rule.kind != "stops" and id(call.operation) not in plans:
            plans[id(call.operation)] = rule.shrunk(kept_of(call, analysis))
    return plans


def kept_of(call: Any, analysis: Analysis) -> Kept:
    """What is left around one call."""
    first, output = call.inputs[0], call.outputs[0]
    return Kept(analysis.kept[first], analysis.kept[output], analysis.constants[first])
