"""Read and rewrite a `.tflite` file in memory: zeros, weight tensors, and CSR weights for FULLY_CONNECTED.

The converter's own sparse mode is not used: it drops weight columns of very sparse Dense layers, and below that
it expands every tensor again before running it. Here the weights of a float32 FULLY_CONNECTED operation are
written as CSR straight into the operation, which then has a kernel of its own for them. That kernel answers only
to version 8 of the operation; at an earlier version the default delegate reads the short buffer as if it were dense.

Convolutions stay dense: their kernels take no sparse weights, so CSR would have to be expanded at load time.
"""

from __future__ import annotations

import collections
import math
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_sensprune.records import TensorRecord

SPARSE_VERSION = 8
# What one CSR tensor adds to the file beside its values and indices: SparsityParameters, two DimensionMetadata,
# the lengths of the index vectors, padding (measured: 110 to 130 bytes, depending on the padding).
TABLE_BYTES = 120
_OPS = schema.BuiltinOperator
# Operations with a weight, and the position of the weight among their inputs.
_WEIGHT_POSITIONS = {
    _OPS.FULLY_CONNECTED: (1,),
    _OPS.CONV_2D: (1,),
    _OPS.DEPTHWISE_CONV_2D: (1,),
    _OPS.TRANSPOSE_CONV: (1,),
    _OPS.CONV_3D: (1,),
    _OPS.CONV_3D_TRANSPOSE: (1,),
    _OPS.BATCH_MATMUL: (0, 1),
    _OPS.GATHER: (0,),
    _OPS.EMBEDDING_LOOKUP: (1,),
}
_FLOATS = {schema.TensorType.FLOAT32: "<f4", schema.TensorType.FLOAT16: "<f2"}
_TensorKey = tuple[int, int]  # (subgraph, tensor)


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
    types: dict[int, set[int]] = collections.defaultdict(set)
    for s in range(model.SubgraphsLength()):
        for t in range(model.Subgraphs(s).TensorsLength()):
            tensor = model.Subgraphs(s).Tensors(t)
            types[tensor.Buffer()].add(tensor.Type())
    for index, found in types.items():
        kind = found.pop() if len(found) == 1 else None
        if kind in _FLOATS and model.Buffers(index).DataLength():
            values = model.Buffers(index).DataAsNumpy().view(_FLOATS[kind])  # a view into `buffer`
            values[values == 0] = 0
    return bytes(buffer)


def sparse_fully_connected(data: bytes) -> bytes:
    """`data` with the FULLY_CONNECTED weights that get smaller as CSR stored so.

    Rows (output units) are dense, columns (inputs) compressed; segments and indices have the smallest of the
    types uint8, uint16 and int32 that holds them. A weight is converted only if *every* use of it, in every
    subgraph, is as the weight of a float32 FULLY_CONNECTED. Operations with dense weights keep their version.

    Args:
        data: a dense `.tflite` file.

    Returns:
        The new file, or `data` itself if no tensor gets smaller.
    """
    model = schema.ModelT.InitFromPackedBuf(data)
    uses = _fully_connected_uses(model)
    sparse_code = len(model.operatorCodes)
    changed = False
    for keys in _weight_groups(model, uses):
        tensors = [model.subgraphs[s].tensors[t] for s, t in keys]
        buffer = model.buffers[tensors[0].buffer]
        values, dimensions, index_bytes = _csr(buffer.data.view("<f4").reshape(tensors[0].shape))
        if values.nbytes + len(tensors) * (index_bytes + TABLE_BYTES) >= len(buffer.data):
            continue
        buffer.data = values.view(np.uint8)
        for key, tensor in zip(keys, tensors, strict=True):
            tensor.sparsity = _parameters(dimensions)
            for operator in uses[key]:
                operator.opcodeIndex = sparse_code
        changed = True
    if not changed:
        return data
    model.operatorCodes.append(_operator_code())
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def weight_tensors(data: bytes) -> tuple[TensorRecord, ...]:
    """The constant floating-point weights of dense, convolution, matrix product and embedding operations.

    Args:
        data: a `.tflite` file.

    Returns:
        One record per stored buffer, in the order of the operations: a shared weight is listed once.
    """
    model = schema.ModelT.InitFromPackedBuf(data)
    records: dict[int, TensorRecord] = {}
    for subgraph in model.subgraphs:
        for operator in subgraph.operators or ():
            inputs = _indices(operator.inputs)
            for position in _WEIGHT_POSITIONS.get(_operation(model, operator), ()):
                tensor = subgraph.tensors[inputs[position]]
                stored = model.buffers[tensor.buffer].data
                if tensor.type in _FLOATS and stored is not None and len(stored):
                    records.setdefault(tensor.buffer, _tensor_record(tensor, stored))
    return tuple(records.values())


def _tensor_record(tensor: Any, stored: np.ndarray) -> TensorRecord:
    zeros = math.prod(_shape(tensor)) - int(np.count_nonzero(stored.view(_FLOATS[tensor.type])))
    encoding = "dense" if tensor.sparsity is None else "csr"
    size = len(stored) + _index_bytes(tensor.sparsity)
    return TensorRecord(tensor.name.decode(), _shape(tensor), encoding, zeros, size)


def _operation(model: Any, operator: Any) -> int:
    """The built-in operation; small codes are stored in the older of two fields."""
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def _index_bytes(sparsity: Any) -> int:
    """Bytes of the index arrays of a tensor's sparsity parameters (0 for a dense tensor)."""
    dimensions = () if sparsity is None else sparsity.dimMetadata
    vectors = [vector for d in dimensions for vector in (d.arraySegments, d.arrayIndices) if vector is not None]
    return sum(vector.values.nbytes for vector in vectors)


def _fully_connected_uses(model: Any) -> dict[_TensorKey, list[Any]]:
    """Per tensor the FULLY_CONNECTED operators that take it as weight; an empty list if anything else uses it too."""
    uses: dict[_TensorKey, list[Any]] = collections.defaultdict(list)
    spoiled: set[_TensorKey] = set()
    for s, subgraph in enumerate(model.subgraphs):
        spoiled.update((s, int(t)) for t in _indices(subgraph.outputs))
        for operator in subgraph.operators or ():
            for position, t in enumerate(_indices(operator.inputs)):
                if position == 1 and _takes_sparse(model, subgraph, operator):
                    uses[s, t].append(operator)
                else:
                    spoiled.add((s, t))
    return {key: [] if key in spoiled else operators for key, operators in uses.items()}


def _indices(vector: Any) -> list[int]:
    return [] if vector is None else [int(index) for index in vector]


def _takes_sparse(model: Any, subgraph: Any, operator: Any) -> bool:
    """Whether `operator` is a FULLY_CONNECTED of float32 by float32 with weights in the plain layout."""
    if _operation(model, operator) != _OPS.FULLY_CONNECTED:
        return False
    types = {subgraph.tensors[t].type for t in operator.inputs[:2]}
    layout = operator.builtinOptions.weightsFormat
    return types == {schema.TensorType.FLOAT32} and layout == schema.FullyConnectedOptionsWeightsFormat.DEFAULT


def _weight_groups(model: Any, uses: dict[_TensorKey, list[Any]]) -> list[list[_TensorKey]]:
    """Tensors that share one constant buffer, all of which may become sparse."""
    groups: dict[int, list[_TensorKey]] = collections.defaultdict(list)
    for s, subgraph in enumerate(model.subgraphs):
        for t, tensor in enumerate(subgraph.tensors or ()):
            groups[tensor.buffer].append((s, t))
    found = []
    for index, keys in groups.items():
        tensors = [model.subgraphs[s].tensors[t] for s, t in keys]
        stored = model.buffers[index].data
        constant = stored is not None and len(stored) > 0
        plain = all(len(_shape(t)) == 2 and t.sparsity is None and not t.isVariable for t in tensors)
        if constant and plain and len({_shape(t) for t in tensors}) == 1 and all(uses.get(key) for key in keys):
            found.append(keys)
    return found


def _csr(matrix: np.ndarray) -> tuple[np.ndarray, list[Any], int]:
    """Values, metadata of the two dimensions, and the bytes of the index arrays.

    Args:
        matrix: (outputs, inputs) float32.
    """
    rows, columns = np.nonzero(matrix)
    if not len(rows):  # an empty buffer means "no constant" in a file: keep one explicit zero
        rows, columns = np.zeros((2, 1), int)
    segments = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(matrix)))])
    dense, compressed = schema.DimensionMetadataT(), schema.DimensionMetadataT()
    dense.format, dense.denseSize = schema.DimensionType.DENSE, matrix.shape[0]
    compressed.format, compressed.denseSize = schema.DimensionType.SPARSE_CSR, 0
    compressed.arraySegmentsType, compressed.arraySegments = _index_vector(segments)
    compressed.arrayIndicesType, compressed.arrayIndices = _index_vector(columns)
    index_bytes = compressed.arraySegments.values.nbytes + compressed.arrayIndices.values.nbytes
    return matrix[rows, columns], [dense, compressed], index_bytes


def _index_vector(values: np.ndarray) -> tuple[int, Any]:
    """`values` in the smallest type that a file may have: its union tag and its vector."""
    largest = int(values.max())
    if largest <= 0xFF:
        kind, vector, narrow = schema.SparseIndexVector.Uint8Vector, schema.Uint8VectorT(), values.astype(np.uint8)
    elif largest <= 0xFFFF:
        kind, vector, narrow = schema.SparseIndexVector.Uint16Vector, schema.Uint16VectorT(), values.astype(np.uint16)
    else:
        kind, vector, narrow = schema.SparseIndexVector.Int32Vector, schema.Int32VectorT(), values.astype(np.int32)
    vector.values = narrow
    return kind, vector


def _parameters(dimensions: list[Any]) -> Any:
    """Row-major order over the two dimensions; no blocks."""
    parameters = schema.SparsityParametersT()
    parameters.traversalOrder = np.array([0, 1], np.int32)
    parameters.dimMetadata = dimensions
    return parameters


def _operator_code() -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = _OPS.FULLY_CONNECTED
    code.version = SPARSE_VERSION
    return code
