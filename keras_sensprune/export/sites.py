"""Where a `.tflite` file keeps its weights: constants, the operations that use them, and what may be made sparse."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

OPS = schema.BuiltinOperator
# Operations with a weight, and the position of the weight among their inputs.
WEIGHT_POSITIONS = {
    OPS.FULLY_CONNECTED: (1,),
    OPS.CONV_2D: (1,),
    OPS.DEPTHWISE_CONV_2D: (1,),
    OPS.TRANSPOSE_CONV: (1,),
    OPS.CONV_3D: (1,),
    OPS.CONV_3D_TRANSPOSE: (1,),
    OPS.BATCH_MATMUL: (0, 1),
    OPS.GATHER: (0,),
    OPS.EMBEDDING_LOOKUP: (1,),
}
# The operations behind which a weight can be sparse, as `allowed.py` names them.
STRUCTURES = {
    OPS.FULLY_CONNECTED: "dense layer",
    OPS.CONV_2D: "convolution",
    OPS.DEPTHWISE_CONV_2D: "convolution",
    OPS.TRANSPOSE_CONV: "transposed convolution",
}
DTYPES = {
    schema.TensorType.FLOAT32: ("float32", "<f4"),
    schema.TensorType.FLOAT16: ("float16", "<f2"),
    schema.TensorType.INT8: ("int8", "<i1"),
}
TensorKey = tuple[int, int]  # (subgraph, tensor)


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One constant weight that may be stored sparse.

    Attributes:
        buffer: index of its buffer.
        keys: the tensors that share the buffer, all of one shape, none of them used for anything but weights.
        shape: their shape; of a dense layer (outputs, inputs).
        dtype: "float32", "float16" (used through DEQUANTIZE), or for int8 weights "dynamic" (float activations) or
            "int8" (int8 activations).
        structure: "dense layer", "convolution" or "transposed convolution".
        operators: per tensor key the operators that read it: those that use it as weight, or its DEQUANTIZE.
    """

    buffer: int
    keys: tuple[TensorKey, ...]
    shape: tuple[int, ...]
    dtype: str
    structure: str
    operators: dict[TensorKey, list[Any]]

    def values(self, model: Any) -> np.ndarray:
        """The stored weight as an array of its shape."""
        kind = {"float32": "<f4", "float16": "<f2"}.get(self.dtype, "<i1")
        return np.asarray(model.buffers[self.buffer].data).view(kind).reshape(self.shape)


def operation(model: Any, operator: Any) -> int:
    """The built-in operation; small codes are stored in the older of two fields."""
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def indices(vector: Any) -> list[int]:
    """A vector of tensor indices, empty where the file has none."""
    return [] if vector is None else [int(index) for index in vector]


def shape_of(tensor: Any) -> tuple[int, ...]:
    """The shape of a tensor; () for a scalar."""
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def sparse_sites(model: Any) -> list[Site]:
    """The dense constant weights of `model` (object API) that one of our encodings might take, in buffer order."""
    uses = _weight_uses(model)
    groups: dict[int, list[TensorKey]] = collections.defaultdict(list)
    for s, subgraph in enumerate(model.subgraphs):
        for t, tensor in enumerate(subgraph.tensors or ()):
            groups[tensor.buffer].append((s, t))
    found = []
    for buffer, keys in sorted(groups.items()):
        stored = model.buffers[buffer].data
        if stored is None or not len(stored) or not all(uses.get(key) for key in keys):
            continue
        tensors = [model.subgraphs[s].tensors[t] for s, t in keys]
        kinds = {use[:2] for key in keys for use in uses[key]}
        if len(kinds) != 1 or len({shape_of(t) for t in tensors}) != 1:
            continue
        if any(t.sparsity is not None or t.isVariable for t in tensors) or not math.prod(shape_of(tensors[0])):
            continue
        structure, dtype = kinds.pop()
        operators = {key: [operator for *_, operator in uses[key]] for key in keys}
        found.append(Site(buffer, tuple(keys), shape_of(tensors[0]), dtype, structure, operators))
    return found


def _weight_uses(model: Any) -> dict[TensorKey, list[tuple[str, str, Any]]]:
    """Per tensor (structure, dtype, operator) of its uses as weight; empty if anything else uses it too."""
    uses: dict[TensorKey, list[tuple[str, str, Any]]] = collections.defaultdict(list)
    spoiled: set[TensorKey] = set()
    for s, subgraph in enumerate(model.subgraphs):
        spoiled.update((s, t) for t in indices(subgraph.outputs))
        for operator in subgraph.operators or ():
            for position, t in enumerate(indices(operator.inputs)):
                kind = _kind(model, subgraph, operator) if position == 1 else None
                if kind is None:
                    spoiled.add((s, t))
                else:
                    uses[s, t].append((*kind, operator))
    found = {key: [] if key in spoiled else list(uses[key]) for key in uses}
    return found | _dequantized_uses(model, found)


def _dequantized_uses(
    model: Any, uses: dict[TensorKey, list[tuple[str, str, Any]]]
) -> dict[TensorKey, list[tuple[str, str, Any]]]:
    """The same for float16 constants that are read by nothing but DEQUANTIZE, whose results are weights only."""
    found: dict[TensorKey, list[tuple[str, str, Any]]] = {}
    for s, subgraph in enumerate(model.subgraphs):
        readers: dict[int, list[Any]] = collections.defaultdict(list)
        for operator in subgraph.operators or ():
            for t in set(indices(operator.inputs)):
                readers[t].append(operator)
        for t, operators in readers.items():
            halves = subgraph.tensors[t].type == schema.TensorType.FLOAT16
            if not halves or any(operation(model, operator) != OPS.DEQUANTIZE for operator in operators):
                continue
            behind = [uses.get((s, int(operator.outputs[0]))) for operator in operators]
            kinds = {structure for group in behind for structure, *_ in group or ()}
            if all(behind) and len(kinds) == 1 and t not in indices(subgraph.outputs):
                structure = kinds.pop()
                found[s, t] = [(structure, "float16", operator) for operator in operators]
    return found


def _kind(model: Any, subgraph: Any, operator: Any) -> tuple[str, str] | None:
    """(structure, dtype) if the operator's weight may be made sparse at all."""
    code = operation(model, operator)
    if code not in STRUCTURES:
        return None
    options = operator.builtinOptions
    if code == OPS.FULLY_CONNECTED and options.weightsFormat != schema.FullyConnectedOptionsWeightsFormat.DEFAULT:
        return None
    inputs = indices(operator.inputs)
    data = inputs[2 if code == OPS.TRANSPOSE_CONV else 0]  # the first input of that one is the shape of its result
    kinds = schema.TensorType
    dtype = {
        (kinds.FLOAT32, kinds.FLOAT32): "float32",
        (kinds.FLOAT32, kinds.INT8): "dynamic",
        (kinds.INT8, kinds.INT8): "int8",
    }.get((subgraph.tensors[data].type, subgraph.tensors[inputs[1]].type))
    return None if dtype is None else (STRUCTURES[code], dtype)
