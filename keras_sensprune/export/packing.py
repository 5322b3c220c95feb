"""Our sparse encodings of the weights in a `.tflite` file, written with LiteRT's own schema objects.

The converter's sparse mode is not used: it drops weight columns, expands what could run sparse, and breaks quantized
files. Here weights are written as

- "csr": rows (output units) dense, columns (inputs) compressed, straight into FULLY_CONNECTED
- "1x4" (float32), "1x16" (int8): the same with blocks of consecutive inputs in place of single ones
- "csr + densify": of a convolution or of float16, compressed along the last axis; a DENSIFY operation expands it at
  load time

The kernels for the first three answer only to version 8 of FULLY_CONNECTED; at any other version the default delegate
reads the short buffer as if it were dense. Which encoding may be used where is decided by `allowed.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_sensprune.export.sites import OPS, Site, sparse_sites

SPARSE_VERSION = 8
BLOCKS = {"csr": 1, "csr + densify": 1, "1x4": 4, "1x16": 16}
# What one sparse tensor adds to the file beside its values and indices: SparsityParameters, two or more
# DimensionMetadata, the lengths of the index vectors, padding (measured: 110 to 130 bytes for CSR; a block adds one
# dimension of some 30 bytes; DENSIFY an operator and a tensor of some 150).
TABLE_BYTES = {"csr": 120, "1x4": 160, "1x16": 160, "csr + densify": 280}


def encode(data: bytes, choices: Mapping[int, str]) -> bytes:
    """Write some weights of a dense file sparse.

    Args:
        data: a `.tflite` file.
        choices: encoding by buffer index (of a site of `sparse_sites`); buffers that are not named stay dense.

    Returns:
        The new file, or `data` itself if nothing was chosen.
    """
    if not choices:
        return data
    model = schema.ModelT.InitFromPackedBuf(data)
    codes: dict[int, int] = {}
    for site in sparse_sites(model):
        if site.buffer in choices:
            _encode_site(model, site, choices[site.buffer], codes)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def encoded_bytes(values: np.ndarray, encoding: str, tensors: int = 1) -> int:
    """Bytes that a weight takes in an encoding, index arrays included.

    Args:
        values: the weight in the layout of the file.
        encoding: "dense" or one of `BLOCKS`.
        tensors: how many tensors share the buffer; each has its own index arrays.
    """
    if encoding == "dense":
        return values.nbytes
    stored, dimensions = _compressed(values, BLOCKS[encoding])
    return stored.nbytes + tensors * (index_bytes(dimensions) + TABLE_BYTES[encoding])


def stored_bytes(values: np.ndarray, encoding: str) -> bytes:
    """What a weight puts into the file in an encoding: values, then index arrays."""
    if encoding == "dense":
        return values.tobytes()
    stored, dimensions = _compressed(values, BLOCKS[encoding])
    parts = [v.values.tobytes() for d in dimensions for v in (d.arraySegments, d.arrayIndices) if v is not None]
    return b"".join([stored.tobytes(), *parts])


def index_bytes(dimensions: Any) -> int:
    """Bytes of the index arrays of some dimensions."""
    vectors = [v for d in dimensions or () for v in (d.arraySegments, d.arrayIndices) if v is not None]
    return sum(vector.values.nbytes for vector in vectors)


def _encode_site(model: Any, site: Site, encoding: str, codes: dict[int, int]) -> None:
    stored, dimensions = _compressed(site.values(model), BLOCKS[encoding])
    model.buffers[site.buffer].data = np.ascontiguousarray(stored).view(np.uint8).reshape(-1)
    for key in site.keys:
        subgraph = model.subgraphs[key[0]]
        tensor = subgraph.tensors[key[1]]
        tensor.sparsity = _parameters(site.shape, dimensions, BLOCKS[encoding])
        if encoding == "csr + densify":
            _expand_at_load(model, subgraph, key[1], site.operators[key], codes)
        elif site.structure == "dense layer" and site.dtype != "float16":
            for operator in site.operators[key]:
                operator.opcodeIndex = _code(model, OPS.FULLY_CONNECTED, SPARSE_VERSION, codes)


def _compressed(values: np.ndarray, block: int) -> tuple[np.ndarray, list[Any]]:
    """Stored values and metadata of all dimensions; the last one is compressed, in blocks of so many entries."""
    width = values.shape[-1]
    rows = np.pad(values.reshape(-1, width), [(0, 0), (0, -width % block)])  # a last block that is not full
    rows = rows.reshape(len(rows), -1, block)
    row, column = np.nonzero(np.any(rows != 0, axis=2))
    if not len(row):  # an empty buffer means "no constant" in a file: keep one explicit zero (block)
        row, column = np.zeros((2, 1), int)
    segments = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rows)))])
    dimensions = [_dense(size) for size in values.shape[:-1]]
    compressed = schema.DimensionMetadataT()
    compressed.format, compressed.denseSize = schema.DimensionType.SPARSE_CSR, 0
    compressed.arraySegmentsType, compressed.arraySegments = _index_vector(segments)
    compressed.arrayIndicesType, compressed.arrayIndices = _index_vector(column)
    dimensions.append(compressed)
    if block > 1:
        dimensions.append(_dense(block))
    return rows[row, column], dimensions


def _dense(size: int) -> Any:
    dimension = schema.DimensionMetadataT()
    dimension.format, dimension.denseSize = schema.DimensionType.DENSE, size
    return dimension


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


def _parameters(shape: tuple[int, ...], dimensions: list[Any], block: int) -> Any:
    """Row-major order; a block dimension belongs to the last axis."""
    parameters = schema.SparsityParametersT()
    parameters.traversalOrder = np.arange(len(dimensions), dtype=np.int32)
    if block > 1:
        parameters.blockMap = np.array([len(shape) - 1], np.int32)
    parameters.dimMetadata = dimensions
    return parameters


def _code(model: Any, builtin: int, version: int, codes: dict[int, int]) -> int:
    """Index of our operator code, appended on first use."""
    if builtin not in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = version
        codes[builtin] = len(model.operatorCodes)
        model.operatorCodes.append(code)
    return codes[builtin]


def _expand_at_load(model: Any, subgraph: Any, weight: int, users: list[Any], codes: dict[int, int]) -> None:
    """Put a DENSIFY operation between a sparse weight and the operators that use it."""
    sparse, dense = subgraph.tensors[weight], schema.TensorT()
    dense.shape, dense.type, dense.quantization = sparse.shape, sparse.type, sparse.quantization
    dense.name, dense.buffer, dense.hasRank = sparse.name + b"/dense", 0, sparse.hasRank
    subgraph.tensors.append(dense)
    operator = schema.OperatorT()
    operator.opcodeIndex = _code(model, OPS.DENSIFY, 1, codes)
    operator.inputs = np.array([weight], np.int32)
    operator.outputs = np.array([len(subgraph.tensors) - 1], np.int32)
    operator.builtinOptionsType, operator.builtinOptions = (
        schema.BuiltinOptions.DensifyOptions,
        schema.DensifyOptionsT(),
    )
    for user in users:
        user.inputs = np.where(np.asarray(user.inputs) == weight, operator.outputs[0], user.inputs).astype(np.int32)
    subgraph.operators.insert(0, operator)


def block_shape(dimensions: Any, shape: tuple[int, ...]) -> int:
    """Size of the blocks of a sparse tensor, 1 without blocks."""
    return math.prod(int(d.denseSize) for d in list(dimensions)[len(shape) :])
