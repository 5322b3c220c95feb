"""`compact`: a Keras model without its dead units, which computes the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_sensprune.compaction.analysis import Analysis, analyze
from keras_sensprune.compaction.comparison import compare, example_inputs
from keras_sensprune.compaction.graph import Graph, check_layers, read_graph
from keras_sensprune.compaction.producers import Producer
from keras_sensprune.compaction.rebuild import rebuild
from keras_sensprune.errors import ModelError, integer_argument, number_argument
from keras_sensprune.records import CompactedLayer, CompactionRecord, CompactionStop
from keras_sensprune.training.targets import check_model
from keras_sensprune.untouched import model_untouched


def compact(
    model: keras.Model, *, round_to: int = 16, data: Any = None, tolerance: float | None = None
) -> tuple[keras.Model, CompactionRecord]:
    r"""A smaller model that computes the same: dead units are taken out, physically.

    A unit (neuron, filter, channel, recurrent unit, embedding column) can go if all weights that read it are zero, or
    if its output is a constant: all its incoming weights are zero, or come from constants. A constant $c$ goes into
    the bias of every layer that reads it, $b_j \leftarrow b_j + c \sum_p w_{p,j}$ over the kernel's positions $p$, if
    that is exact; behind zero padding only $c = 0$ is. Units are followed through normalization, activations, pooling,
    flattening, depthwise convolutions; through additions and concatenations the units of several layers go together
    or not at all. This is repeated until nothing changes. Layers that are not understood keep all their channels and
    are named in the record; before and behind them the model is still compacted. docs/compaction.md has the table.

    Args:
        model: a built Sequential or functional model, however its zeros came about. It is not changed.
        round_to: widths are kept a multiple of this, by leaving some dead units in: kernels of the runtimes work on 8
            or 16 units at once, and odd widths can be slower than larger round ones. 1 gives the smallest model.
        data: example inputs to compare the two models on, as for `model.predict`. By default 16 seeded random
            examples: normal for floats, 0 and 1 for integers. Needed if more than the batch size is free.
        tolerance: largest absolute difference allowed; by default, for each output, 1e-5 plus 1e-4 times its largest
            absolute value (rounding in float32; more if layers compute in half precision).

    Returns:
        The new model, of the same type, with the same names, inputs and outputs; not compiled. And the
        `CompactionRecord`: per layer which old units are left, what stood in the way, sizes before and after.

    Raises:
        ArgumentError: if an argument is not allowed.
        ModelError: if the model is subclassed or not built; if a layer is quantized or has LoRA weights, or belongs to
            the model and to a model inside it; if the model gives nothing but NaN on the examples; or if the two models
            do not agree (then a layer does not do what it is expected to; nothing is returned).

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import compact
        >>> hidden = keras.layers.Dense(4, "relu", name="hidden")
        >>> model = keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(2, name="logits")])
        >>> kernel = np.ones((3, 4)) * [1.0, 0.0, 1.0, 0.0]  # units 1 and 3 are dead
        >>> hidden.set_weights([kernel, np.array([0.0, 1.0, 0.0, -1.0])])
        >>> small, record = compact(model, round_to=1)
        >>> [layer.units for layer in small.layers], record.layers[0].kept, record.layers[0].folded
        ([2, 2], (0, 2), 1)
    """
    check_model(model)
    integer_argument("round_to", round_to, 1)
    if tolerance is not None:
        tolerance = number_argument("tolerance", tolerance, "a number of at least 0, or None")
    read_graph(model)
    check_layers(model)
    inputs = example_inputs(model, data)
    small, layers, stops, rounds = _fixed_point(model, round_to)
    with model_untouched(model):
        difference, allowed = compare(model, small, inputs, tolerance)
    return small, CompactionRecord(
        model=model.name,
        layers=layers,
        stops=stops,
        parameters_before=model.count_params(),
        parameters_after=small.count_params(),
        multiply_adds_before=multiply_adds(model),
        multiply_adds_after=multiply_adds(small),
        rounds=rounds,
        round_to=round_to,
        max_difference=difference,
        tolerance=allowed,
        examples=len(keras.tree.flatten(inputs)[0]),
    )


def multiply_adds(model: Any) -> int:
    """Multiplications of weights (rank 2 and more) per example, wherever a position or time step uses them.

    Args:
        model: a Sequential or functional model; free sizes count as 1, embeddings and unknown layers as nothing.
    """
    graph, total = read_graph(model), 0
    for call in graph.calls:
        layer = call.operation
        if isinstance(layer, keras.Model):
            total += multiply_adds(layer)
            continue
        kernels = [math.prod(v.shape) for v in getattr(layer, "weights", ()) if len(v.shape) >= 2]
        if not kernels or isinstance(layer, keras.layers.Embedding):
            continue
        recurrent = isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional))
        spread = graph.shapes[call.inputs[0]] if recurrent or "Transpose" in type(layer).__name__ else None
        shape = spread if spread is not None else graph.shapes[call.outputs[0]]
        total += sum(kernels) * math.prod(size or 1 for size in shape[1:-1])
    return total


def _fixed_point(model: Any, round_to: int) -> tuple[Any, tuple[CompactedLayer, ...], tuple[CompactionStop, ...], int]:
    """Pass after pass until no unit goes any more."""
    units: dict[str, CompactedLayer] = {}
    rounds, size, small = 0, -1, model
    while size != small.count_params():
        size, rounds = small.count_params(), rounds + 1
        graph = read_graph(small)
        analysis = analyze(graph, round_to)
        inner: list[CompactedLayer] = []
        inner_stops: list[CompactionStop] = []

        def nested(child: Any, inner: Any = inner, inner_stops: Any = inner_stops) -> Any:
            return _nested(child, round_to, inner, inner_stops)

        smaller = rebuild(small, graph, analysis, nested)
        for row in _layers(graph, analysis):
            units[row.path] = _joined(units.get(row.path), row)
        for row in inner:
            units[row.path] = _joined(units.get(row.path), row)
        stops = [CompactionStop(layer.name, type(layer).__name__, reason) for layer, reason in analysis.stops]
        small = smaller
    return small, tuple(units.values()), (*stops, *inner_stops), rounds


def _nested(child: Any, round_to: int, layers: list[Any], stops: list[Any]) -> Any:
    """A model inside of the model: its inputs and outputs stay, what is between is compacted."""
    try:
        small, rows, found, _ = _fixed_point(child, round_to)
    except ModelError:  # no graph: it stays as it is
        copy = type(child).from_config(child.get_config())
        copy.build(child.input_shape)
        copy.set_weights(child.get_weights())
        return copy
    for row in rows:
        path = f"{child.name}/{row.path}"
        layers.append(CompactedLayer(path, row.kind, row.units_before, row.units_after, row.kept, row.folded))
    stops.extend(CompactionStop(f"{child.name}/{stop.path}", stop.kind, stop.reason) for stop in found)
    return small


def _layers(graph: Graph, analysis: Analysis) -> Iterator[CompactedLayer]:
    seen = set()
    for call in graph.calls:
        rule, layer = analysis.rules[id(call.operation)], call.operation
        if id(layer) in seen or not isinstance(rule, Producer) or rule.kind != "compacts":
            continue
        seen.add(id(layer))
        kept, constants = analysis.kept[call.outputs[0]], analysis.constants[call.outputs[0]]
        folded = int(np.count_nonzero(~kept & ~np.isnan(constants) & (constants != 0)))
        left = tuple(int(i) for i in np.flatnonzero(kept))
        yield CompactedLayer(layer.name, type(layer).__name__, len(kept), len(left), left, folded)


def _joined(before: CompactedLayer | None, now: CompactedLayer) -> CompactedLayer:
    """Two passes as one: old indices of old indices."""
    if before is None:
        return now
    kept = tuple(before.kept[i] for i in now.kept)
    return CompactedLayer(now.path, now.kind, before.units_before, now.units_after, kept, before.folded + now.folded)
