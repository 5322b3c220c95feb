"""The smaller model: the same graph, run again on layers of the sizes that are left."""

from __future__ import annotations

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
    weights: list[tuple[Any, list[Array]]] = []

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation without weights knows nothing of sizes
        if isinstance(layer, keras.Model):
            return nested(layer)
        settings, values = plans.get(id(layer), ({}, [np.asarray(v.numpy()) for v in layer.weights]))
        copy = _copy(layer, settings)
        weights.append((copy, values))
        return copy

    small = keras.models.clone_model(model, clone_function=clone)
    for layer, values in weights:
        layer.set_weights(values)
    return small


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
