"""Which units of a model can go: units are followed through the graph, constants are carried along."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_sensprune.compaction.graph import Call, Graph
from keras_sensprune.compaction.layers import rule_for
from keras_sensprune.compaction.producers import Producer
from keras_sensprune.compaction.rules import Array, Rule, stop

_NO_CHANNELS = "its last axis has no fixed size"
_WHOLE = "its activation mixes its units or is not one of Keras, so all of them stay"


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """What may be removed, and what the layers need to know for it.

    Attributes:
        rules: rule by id of the layer.
        kept: per tensor id which channels stay.
        constants: per tensor id the value of each channel, NaN where it varies.
        stops: (layer, reason) of the layers that stand in the way.
    """

    rules: dict[int, Rule]
    kept: dict[int, Array]
    constants: dict[int, Array]
    stops: tuple[tuple[Any, str], ...]


class _Units:
    """Unit ids of tensors; ids that must go together are joined."""

    def __init__(self) -> None:
        self.parent: list[int] = []

    def new(self, count: int) -> Array:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, unit: int) -> int:
        while self.parent[unit] != unit:
            self.parent[unit] = self.parent[self.parent[unit]]
            unit = self.parent[unit]
        return unit

    def roots(self, units: Array) -> Array:
        return np.array([self.root(int(unit)) for unit in units], int)

    def join(self, one: Array, other: Array) -> None:
        for a, b in zip(one, other, strict=True):
            first, second = sorted((self.root(int(a)), self.root(int(b))))
            self.parent[second] = first


def analyze(graph: Graph, round_to: int) -> Analysis:
    """Follow units and constants through the graph and decide what can go.

    A unit can go if every layer that reads it does so with zero weights only, or can take its constant value over into
    a bias. Of every layer at least one unit stays; beyond that, widths are rounded up by units that could have gone.

    Args:
        graph: the calls of a model.
        round_to: widths are kept a multiple of this where the layer has enough units.

    Returns:
        The decision, for every tensor.
    """
    walk = _Walk(graph)
    for call in graph.calls:
        walk.visit(call)
    pinned = walk.pinned()
    removable = np.array([not pinned[root] for root in walk.units.roots(np.arange(len(walk.units.parent)))], bool)
    for units in walk.own_units():
        _round_up(removable, walk.units.roots(units), round_to)
    kept = {tensor: ~removable[walk.units.roots(units)] for tensor, units in walk.channels.items()}
    stops = tuple((call.operation, reason) for call, reason in walk.standing_in_the_way())
    return Analysis(walk.rules, kept, walk.constants, stops)


def _round_up(removable: Array, units: Array, round_to: int) -> None:
    """Put back the first removable units until the width is a multiple of `round_to`, also where all are dead."""
    left = int(np.count_nonzero(~removable[units]))
    wanted = min(len(units), -(-max(left, 1) // round_to) * round_to)
    for unit in units:
        if left >= wanted:
            return
        if removable[unit]:
            removable[unit] = False
            left += int(np.count_nonzero(units == unit))


class _Walk:
    """One pass through the calls, in the order of computation."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.units = _Units()
        self.channels: dict[int, Array] = {}
        self.constants: dict[int, Array] = {}
        self.rules: dict[int, Rule] = {}
        self.stops: dict[int, tuple[Call, str]] = {}
        self.whole: list[tuple[Call, Array]] = []  # layers that read all units of their own (softmax)
        self.inner: list[tuple[Array, Array]] = []  # units of recurrent layers, and which unit is read by which
        self.needed: list[Array] = []  # unit ids that must stay
        # layer -> (channels of the input, their constants, channels of the output) of each call
        self.readers: dict[int, list[tuple[Array, Array, Array]]] = {}
        self.own: dict[int, Array] = {}  # layer -> its own units
        for tensor in graph.inputs:
            self._pin(self._fresh(tensor))

    def visit(self, call: Call) -> None:
        rule = self._rule(call)
        for tensor in call.masks:
            self._pin(self.channels[tensor])
        inputs = [self.channels[tensor] for tensor in call.inputs]
        if rule.kind == "stops":
            for units in inputs:
                self._pin(units)
            for tensor in call.outputs:
                self._pin(self._fresh(tensor))
            return
        (output,) = call.outputs
        shapes = self._shapes(call)
        constants = [self.constants[tensor] for tensor in call.inputs]
        for other in inputs[1:]:
            if len(other) == len(inputs[0]) and rule.couples:
                self.units.join(inputs[0], other)
        known = self.own.get(id(call.operation)) if isinstance(rule, Producer) else None
        channels = rule.channels(inputs, shapes, self.units.new) if known is None else known
        if isinstance(rule, Producer):
            self.own[id(call.operation)] = channels
        self.channels[output] = channels
        self.constants[output] = np.asarray(rule.constants(constants, shapes), np.float64)
        self.readers.setdefault(id(call.operation), []).append((inputs[0], constants[0], channels))
        self._pin(channels[rule.holds(self.constants[output])])
        reads = rule.inner_reads(self.constants[output])
        if reads is not None:
            self.inner.append((channels, reads))
        if rule.whole:
            self.whole.append((call, channels))

    def pinned(self) -> Array:
        """Per unit id whether its root must stay."""
        outputs = [self.channels[tensor] for tensor in self.graph.outputs]
        for units in outputs:
            self._pin(units)
        for layer, calls in self.readers.items():
            if self.rules[layer].kind == "stops":  # found to be one at a later call
                for units, _, _ in calls:
                    self._pin(units)
                self._pin(self.own.get(layer, np.zeros(0, int)))
            else:
                self._bind(self.rules[layer], calls)
        for call, units in self.whole:
            if not set(self.units.roots(units)) <= set(self.units.roots(np.concatenate(outputs))):
                self.stops.setdefault(id(call.operation), (call, _WHOLE))
        pinned = np.zeros(len(self.units.parent), bool)
        for units in self.needed:
            pinned[self.units.roots(units)] = True
        return self._with_inner_reads(pinned)

    def _with_inner_reads(self, pinned: Array) -> Array:
        """Recurrent units that stay keep the units that they read, and these theirs; rings that nobody reads go."""
        inner = [(self.units.roots(units), reads) for units, reads in self.inner]
        before = np.zeros_like(pinned)
        while not np.array_equal(before, pinned):
            before = pinned.copy()
            for roots, reads in inner:
                pinned[roots[np.any(reads[:, pinned[roots]], axis=1)]] = True
        return pinned

    def _bind(self, rule: Rule, calls: list[tuple[Array, Array, Array]]) -> None:
        """Pins what a layer reads; what is tied to its weights or sizes goes from all of its calls or from none."""
        first, constants, outputs = calls[0][0], calls[0][1].copy(), calls[0][2]
        for units, values, others in calls[1:]:
            self.units.join(rule.tied(first, outputs), rule.tied(units, others))
            if len(rule.tied(first, first)):  # one weight for all calls, and one bias
                constants[~np.equal(constants, values)] = np.nan
            else:
                self._pin(units[rule.needs(values)])
        self._pin(first[rule.needs(constants)])

    def standing_in_the_way(self) -> list[tuple[Call, str]]:
        """The stops, without operations on the model's inputs (they make masks, say), before which no unit is."""
        given, found = set(self.graph.inputs), []
        for call in self.graph.calls:
            if not isinstance(call.operation, keras.layers.Layer) and given.issuperset(call.inputs):
                given.update(call.outputs)
            elif id(call.operation) in self.stops and self.stops[id(call.operation)][0] is call:
                found.append(self.stops[id(call.operation)])
        return found

    def own_units(self) -> list[Array]:
        """The units of each layer that has its own."""
        return list(self.own.values())

    def _rule(self, call: Call) -> Rule:
        layer = call.operation
        if id(layer) in self.rules and self.rules[id(layer)].kind == "stops":
            return self.rules[id(layer)]
        rule = self.rules.get(id(layer)) or rule_for(layer)
        rule.positional = call.positional
        reason = self._obstacle(rule, call)
        if reason:
            self.stops.setdefault(id(layer), (call, reason))
            rule = stop(reason)(layer)
        self.rules[id(layer)] = rule
        return rule

    def _obstacle(self, rule: Rule, call: Call) -> str:
        """Why the units cannot be followed through this call, '' if they can."""
        shapes = self._shapes(call)
        with_channels = shapes if rule.reads_channels else shapes[-1:]
        if rule.kind == "stops":
            return rule.obstacle(shapes)
        if not call.inputs or call.constants:
            return "it is called with more than tensors"
        if any(not shape or shape[-1] is None for shape in with_channels):
            return _NO_CHANNELS
        reason = rule.obstacle(shapes)
        return reason or ("it has more than one output" if len(call.outputs) != 1 else "")

    def _shapes(self, call: Call) -> list[Any]:
        return [self.graph.shapes[tensor] for tensor in (*call.inputs, *call.outputs)]

    def _fresh(self, tensor: int) -> Array:
        """Units of their own for a tensor that nothing is known of."""
        shape = self.graph.shapes[tensor]
        count = shape[-1] if len(shape) > 1 and shape[-1] is not None else 1
        self.channels[tensor] = self.units.new(count)
        self.constants[tensor] = np.full(count, np.nan)
        return self.channels[tensor]

    def _pin(self, units: Array) -> None:
        self.needed.append(np.asarray(units, int))
