"""What a structure means for each prunable weight of a model: which groups it forms, or none."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import keras

from keras_sensprune.errors import ModelError
from keras_sensprune.formulas.structures import Block, Layout, NofM, block_layout, unit_layout
from keras_sensprune.training.targets import Target, holds_kernel, kernel_name

_L = keras.layers
_CELLS = (_L.LSTMCell, _L.GRUCell, _L.SimpleRNNCell)
_LAST = (_L.Dense, _L.Conv1D, _L.Conv2D, _L.Conv3D)
_TRANSPOSED = (_L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose)
_DEPTHWISE = (_L.DepthwiseConv1D, _L.DepthwiseConv2D)
_SEPARABLE = (_L.SeparableConv1D, _L.SeparableConv2D)


@dataclasses.dataclass(frozen=True)
class Grouping:
    """The groups of all targets.

    Attributes:
        structure: as text, for records.
        layouts: per target its groups; None where its weights are pruned one by one.
        families: numbers of the targets that are pruned together, each target in one family: alone, or the two
            kernels of a recurrent layer.
        by_weight: labels of the targets to which the structure does not apply.
    """

    structure: str
    layouts: tuple[Layout | None, ...]
    families: tuple[tuple[int, ...], ...]
    by_weight: tuple[str, ...]


def group_weights(model: Any, targets: list[Target], structure: str | Block | NofM) -> Grouping:
    """Finds the groups, and warns once about weights to which the structure does not apply or apply evenly.

    Args:
        model: the model of the targets.
        targets: its prunable weights.
        structure: a checked structure.

    Returns:
        The groups.

    Raises:
        ModelError: if the structure applies to none of the targets, or is "unit" for a model without a graph, whose
            output layers cannot be known.
    """
    alone = tuple((number,) for number in range(len(targets)))
    if structure == "weight":
        return Grouping("weight", (None,) * len(targets), alone, ())
    closing = _output_layers(model, {id(t.layer) for t in targets}) if structure == "unit" else set()
    layouts = tuple(None if id(t.layer) in closing else _layout(t, structure) for t in targets)
    by_weight = tuple(t.label for t, layout in zip(targets, layouts, strict=True) if layout is None)
    if len(by_weight) == len(targets):
        raise ModelError(
            f"structure={structure!s} applies to no regularized weight of model {model.name!r}: "
            f"{', '.join(by_weight)}. {_RULE[type(structure)]} Use structure='weight', or regularize such a layer."
        )
    _warn(model, targets, layouts, structure, closing)
    return Grouping(str(structure), layouts, _families(targets) if structure == "unit" else alone, by_weight)


_RULE: dict[type, str] = {
    str: "Units are those of Dense, convolution and recurrent layers that are not the model's output layers.",
    Block: "Blocks are made in the rank-2 kernels of Dense and recurrent layers.",
    NofM: "N of M is made in the rank-2 kernels of Dense and recurrent layers.",
}


def _layout(target: Target, structure: str | Block | NofM) -> Layout | None:
    layer, shape = target.layer, tuple(target.variable.shape)
    name = kernel_name(target)
    if not isinstance(structure, str):
        plain = isinstance(layer, (_L.Dense, *_CELLS)) and name is not None and len(shape) == 2
        size, kept = (structure.inputs, 0) if isinstance(structure, Block) else (structure.of, structure.kept)
        return block_layout(shape, size, kept) if plain else None
    if isinstance(layer, _CELLS) and name in ("kernel", "recurrent_kernel"):
        return unit_layout(shape, gates=shape[-1] // layer.units)
    pointwise = isinstance(layer, _SEPARABLE) and name == "pointwise_kernel"
    if pointwise or (isinstance(layer, _LAST) and name == "kernel"):
        return unit_layout(shape)
    if isinstance(layer, _TRANSPOSED) and name == "kernel":
        return unit_layout(shape, (-2,))
    return unit_layout(shape, (-2, -1)) if isinstance(layer, _DEPTHWISE) and name is not None else None


def _families(targets: list[Target]) -> tuple[tuple[int, ...], ...]:
    """The two kernels of a recurrent cell form one family, every other weight one of its own."""
    found: dict[Any, list[int]] = {}
    for number, target in enumerate(targets):
        coupled = isinstance(target.layer, _CELLS)
        found.setdefault(id(target.layer) if coupled else ("alone", number), []).append(number)
    return tuple(tuple(family) for family in found.values())


def _output_layers(model: Any, owners: set[int]) -> set[int]:
    """ids of the layers, and of all inside them, whose units are outputs of the model.

    From the outputs back through everything without a kernel (activations, poolings, normalizations, sums).
    """
    found: set[int] = set()
    _walk_back(model, owners, found)
    return found


def _walk_back(model: Any, owners: set[int], found: set[int]) -> bool:
    """Adds to `found` what `_output_layers` looks for; returns whether the way led to the model's own inputs."""
    if not isinstance(model, (keras.Sequential, keras.src.models.functional.Functional)):
        raise ModelError(
            f"structure='unit' must know the output layers of model {model.name!r}, whose units are never removed, "
            "but a subclassed model has no graph to tell them. Build it with the functional API, or use another "
            "structure."
        )
    waiting, seen, through = list(keras.tree.flatten(model.outputs)), set(), False
    while waiting:
        operation, node_index, _ = waiting.pop()._keras_history
        if (id(operation), node_index) in seen:
            continue
        seen.add((id(operation), node_index))
        before = operation._inbound_nodes[node_index].input_tensors
        parts = operation._flatten_layers() if isinstance(operation, _L.Layer) else []
        if isinstance(operation, _L.InputLayer):
            through = True
        elif isinstance(operation, (keras.Sequential, keras.src.models.functional.Functional)):
            waiting += before if _walk_back(operation, owners, found) else []
        elif any(id(part) in owners or holds_kernel(part) for part in parts):
            found |= {id(part) for part in parts}
        else:
            waiting += before
    return through


def _warn(
    model: Any, targets: list[Target], layouts: tuple[Layout | None, ...], structure: Any, closing: set[int]
) -> None:
    pairs = list(zip(targets, layouts, strict=True))
    others = [t.label for t, layout in pairs if layout is None and id(t.layer) not in closing]
    if others:
        warnings.warn(
            f"structure={structure!s} does not apply to {', '.join(others)}: pruned weight by weight. "
            f"{_RULE[type(structure)]}",
            stacklevel=2,
        )
    if structure == "unit":
        _warn_of_cells(targets)
        _warn_of_wrappers(model, pairs)
    ragged = [f"{t.label} ({layout.shape[0]} inputs)" for t, layout in pairs if layout is not None and layout.padding]
    if ragged and isinstance(structure, Block):
        warnings.warn(
            f"The inputs of {', '.join(ragged)} are not a multiple of {structure.inputs}: the last block of each unit "
            "is shorter, and TFLite's sparse block kernels do not take these weights.",
            stacklevel=2,
        )


def _warn_of_cells(targets: list[Target]) -> None:
    """A recurrent unit is dead only if it is so in both kernels."""
    lone = [targets[f[0]] for f in _families(targets) if len(f) == 1 and isinstance(targets[f[0]].layer, _CELLS)]
    if lone:
        warnings.warn(
            f"Of the recurrent layers of {', '.join(t.label for t in lone)} only one of two kernels is regularized: "
            "their units never die as a whole, and `compact` cannot take them out. Set kernel_regularizer and "
            "recurrent_regularizer.",
            stacklevel=2,
        )


def _warn_of_wrappers(model: Any, pairs: list[tuple[Target, Layout | None]]) -> None:
    """Units in layers that `compact` does not look into."""
    kinds = (_L.Wrapper, _L.Bidirectional, *_SEPARABLE)
    closed = [x for x in model._flatten_layers() if isinstance(x, kinds) or type(x) is _L.RNN]
    inside = {id(part) for layer in closed for part in layer._flatten_layers()}
    labels = [t.label for t, layout in pairs if layout is not None and id(t.layer) in inside]
    if labels:
        warnings.warn(
            f"`compact` takes no units out of the layers of {', '.join(labels)} (wrapped or separable layers): they "
            "are pruned as units, but stay in place as zeros.",
            stacklevel=2,
        )
