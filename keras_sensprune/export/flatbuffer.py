"""Read a `.tflite` file in memory: its weights and how each is stored; and zeros without a sign."""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_sensprune.export.packing import block_shape, index_bytes
from keras_sensprune.export.sites import DTYPES, OPS, WEIGHT_POSITIONS, indices, operation, shape_of
from keras_sensprune.records import TensorRecord

_FLOATS = {kind: code for kind, (name, code) in DTYPES.items() if name.startswith("float")}


def positive_zeros(data: bytes) -> bytes:
    """`data` with every -0.0 in its float constants replaced by +0.0.

    Masking leaves -0.0 where a negative weight was. It computes the same, but the extra byte pattern makes a
    gzipped file up to 3.6 times as large.

    Args:
        data: a `.tflite` file.

    Returns:
        A file of the same length.
    """
    buffer = bytearray(data)
    model = schema.Model.GetRootAs(buffer)
    for index, kind in float_buffers(model).items():
        values = model.Buffers(index).DataAsNumpy().view(kind)  # a view into `buffer`
        values[values == 0] = 0
    return bytes(buffer)


def float_buffers(model: Any) -> dict[int, str]:
    """NumPy type by index of the buffers that hold nothing but float constants (flatbuffer API)."""
    types: dict[int, set[int]] = collections.defaultdict(set)
    for s in range(model.SubgraphsLength()):
        for t in range(model.Subgraphs(s).TensorsLength()):
            tensor = model.Subgraphs(s).Tensors(t)
            types[tensor.Buffer()].add(tensor.Type())
    single = {index: found.pop() for index, found in types.items() if len(found) == 1}
    return {i: _FLOATS[kind] for i, kind in single.items() if kind in _FLOATS and model.Buffers(i).DataLength()}


def weight_tensors(data: bytes) -> tuple[TensorRecord, ...]:
    """The constant weights of dense, convolution, matrix product and embedding operations.

    Args:
        data: a `.tflite` file.

    Returns:
        One record per stored buffer, in the order of the operations: a shared weight is listed once.
    """
    model = schema.ModelT.InitFromPackedBuf(data)
    records: dict[int, TensorRecord] = {}
    for subgraph in model.subgraphs:
        sources = _sources(model, subgraph)
        for operator in subgraph.operators or ():
            inputs = indices(operator.inputs)
            for position in WEIGHT_POSITIONS.get(operation(model, operator), ()):
                index, densified = sources.get(inputs[position], (inputs[position], False))
                tensor = subgraph.tensors[index]
                stored = model.buffers[tensor.buffer].data
                if tensor.type in DTYPES and stored is not None and len(stored):
                    records.setdefault(tensor.buffer, _tensor_record(tensor, np.asarray(stored), densified))
    return tuple(records.values())


def _sources(model: Any, subgraph: Any) -> dict[int, tuple[int, bool]]:
    """Tensor that DENSIFY or DEQUANTIZE makes -> (the constant it is made of, whether it was expanded)."""
    found: dict[int, tuple[int, bool]] = {}
    for operator in subgraph.operators or ():
        code = operation(model, operator)
        if code in (OPS.DENSIFY, OPS.DEQUANTIZE):
            source, expanded = found.get(int(operator.inputs[0]), (int(operator.inputs[0]), False))
            found[int(operator.outputs[0])] = (source, expanded or code == OPS.DENSIFY)
    return found


def _tensor_record(tensor: Any, stored: np.ndarray, densified: bool) -> TensorRecord:
    shape = shape_of(tensor)
    dtype, code = DTYPES[tensor.type]
    zeros = math.prod(shape) - int(np.count_nonzero(stored.view(code)))
    dimensions = () if tensor.sparsity is None else tensor.sparsity.dimMetadata
    size = len(stored) + index_bytes(dimensions)
    return TensorRecord(tensor.name.decode(), shape, _encoding(dimensions, shape, densified), zeros, size, dtype)


def _encoding(dimensions: Any, shape: tuple[int, ...], densified: bool) -> str:
    if not dimensions:
        return "dense"
    block = block_shape(dimensions, shape)
    return ("csr" if block == 1 else f"1x{block}") + (" + densify" if densified else "")
