"""A `.tflite` file, read without trusting it: every offset, length and count is checked before it is used.

LiteRT's own Python reader follows whatever offsets a file holds; a damaged file makes it fail in many ways, or take
all memory. Here nothing is allocated that the size of the file does not warrant, nothing is followed twice without
being counted, and whatever is wrong is a `DataError` that names the file, the place and the reason. Neither LiteRT
nor TensorFlow is imported.
"""

from __future__ import annotations

import math
import os
import pathlib
import stat
import struct
from typing import Any, NoReturn

import numpy as np

from keras_sensprune.errors import DataError
from keras_sensprune.export.graph import Dimension, Operator, Signature, Sparsity, Subgraph, Tensor, TfliteFile
from keras_sensprune.export.schema import FIELDS, IDENTIFIER, INDEX_VECTORS, OPERATORS, OPTIONS, TYPES

# The largest graphs that we know of have some 10^4 operators and tensors. In an honest file every byte belongs to one
# object (or a few: strings and vtables may be shared), so all that is read comes to no more than the file's size.
MOST_TABLES, MOST_INTEGERS, MOST_READS = 1_000_000, 4_000_000, 4
MOST_AXES, MOST_ENTRIES = 64, 2**63  # of a tensor; runtimes count entries in 64 bits, and know some 8 axes
_WIDTHS = {"b": 1, "B": 1, "?": 1, "i": 4, "I": 4, "Q": 8}


def read_tflite(source: str | os.PathLike[str] | bytes) -> TfliteFile:
    """Everything of a `.tflite` file that we report on.

    Args:
        source: the name of a file, or its content.

    Returns:
        The `TfliteFile`.

    Raises:
        DataError: if there is no such file, or it is not a valid `.tflite` file.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _Reader(bytes(source), "the given bytes").model()
    path = pathlib.Path(source)
    return _Reader(_content(path), repr(os.fspath(source))).model()


def _content(path: pathlib.Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
            raise DataError(f"Cannot read {str(path)!r} as a .tflite file: it is not a regular file.")
        return path.read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
        raise DataError(f"Cannot read {str(path)!r} as a .tflite file: {reason}.") from None


class _Table:
    """One table: where it is and where its fields are."""

    def __init__(self, kind: str, start: int, places: tuple[int, ...], size: int) -> None:
        self.kind, self.start, self.places, self.size = kind, start, places, size

    def place(self, field: str) -> int:
        """Place of a field relative to the table; 0 if it has its default."""
        number = FIELDS[self.kind][field]
        return self.places[number] if number < len(self.places) else 0


class _Reader:
    """Reads one file; `fail` words every error."""

    def __init__(self, data: bytes, label: str) -> None:
        self.data, self.label = data, label
        self.tables = self.integers = self.reads = 0

    def fail(self, reason: str, offset: int | None = None) -> NoReturn:
        place = "" if offset is None else f" (at byte {offset} of {len(self.data)})"
        raise DataError(f"Cannot read {self.label} as a .tflite file: {reason}{place}.")

    # ------------------------------------------------------------------ parts of the format

    def take(self, offset: int, size: int, what: str) -> int:
        """`offset`, if `size` bytes there are inside of the file and within what may be read in all."""
        if offset < 0 or size < 0 or offset + size > len(self.data):
            self.fail(f"{what} lies outside of the file", offset)
        self.reads += size
        if self.reads > MOST_READS * len(self.data) + 4096:
            self.fail(f"{what} is stored once and referred to far too often", offset)
        return offset

    def number(self, kind: str, offset: int, what: str) -> Any:
        return struct.unpack_from("<" + kind, self.data, self.take(offset, _WIDTHS.get(kind, 2), what))[0]

    def table(self, kind: str, offset: int) -> _Table:
        self.tables += 1
        if self.tables > MOST_TABLES:
            self.fail(f"it has more than {MOST_TABLES} tables", offset)
        vtable = offset - self.number("i", offset, kind)
        size = self.number("H", vtable, f"the field list of {kind}")
        span = self.number("H", vtable + 2, f"the field list of {kind}")
        if size < 4 or size % 2 or span < 4:
            self.fail(f"the field list of {kind} has the impossible sizes {size} and {span}", vtable)
        used = min(size - 4, 2 * (1 + max(FIELDS[kind].values())))  # newer schemas may have more fields
        self.take(vtable, size, f"the field list of {kind}")
        self.take(offset, span, kind)
        return _Table(kind, offset, struct.unpack_from(f"<{used // 2}H", self.data, vtable + 4), span)

    def scalar(self, table: _Table, field: str, kind: str, default: Any = 0) -> Any:
        place = table.place(field)
        if not place:
            return default
        if place + _WIDTHS[kind] > table.size:
            self.fail(f"{table.kind}.{field} lies outside of its table", table.start)
        return self.number(kind, table.start + place, f"{table.kind}.{field}")

    def target(self, table: _Table, field: str) -> int | None:
        """Where the object of an offset field is; None if it is absent."""
        distance = self.scalar(table, field, "I")
        return table.start + table.place(field) + distance if table.place(field) else None

    def vector(self, table: _Table, field: str, kind: str) -> np.ndarray:
        """A vector of numbers, as a view into the file; empty if it is absent."""
        start, dtype = self.target(table, field), np.dtype(kind)
        if start is None:
            return np.empty(0, dtype)
        what = f"{table.kind}.{field}"
        count = self.number("I", start, what)
        self.take(start + 4, count * dtype.itemsize, f"{what} with {count} entries")
        return np.frombuffer(self.data, dtype, count, start + 4)

    def integer_tuple(self, table: _Table, field: str) -> tuple[int, ...]:
        values = self.vector(table, field, "<i4")
        self.integers += len(values)
        if self.integers > MOST_INTEGERS:
            self.fail(f"{table.kind}.{field} has too many entries", table.start)
        return tuple(values.tolist())

    def text(self, table: _Table, field: str) -> str:
        return self.vector(table, field, "<u1").tobytes().decode("utf-8", errors="replace")

    def table_list(self, table: _Table, field: str, kind: str) -> list[_Table]:
        start = self.target(table, field)
        if start is None:
            return []
        distances = self.vector(table, field, "<u4")
        if self.tables + len(distances) > MOST_TABLES:
            self.fail(f"{table.kind}.{field} has {len(distances)} entries", start)
        return [self.table(kind, start + 4 + 4 * i + distance) for i, distance in enumerate(distances.tolist())]

    def optional(self, table: _Table, field: str, kind: str) -> _Table | None:
        start = self.target(table, field)
        return None if start is None else self.table(kind, start)

    # ------------------------------------------------------------------ parts of a model

    def model(self) -> TfliteFile:
        data = self.data
        if len(data) < 8:
            self.fail(f"it has {len(data)} bytes; even an empty model has more")
        if data[4:8] != IDENTIFIER:
            kinds = {
                b"PK\x03\x04": "a zip archive (.keras files are)",
                b"\x89HDF": "an HDF5 file",
                b"\x1f\x8b": "gzipped",
            }
            found = next((kind for start, kind in kinds.items() if data.startswith(start)), "something else")
            self.fail(f"the identifier {IDENTIFIER.decode()!r} is missing; it is {found}", 4)
        root = self.table("Model", self.number("I", 0, "the root offset"))
        self.codes = [self.code(table) for table in self.table_list(root, "operator_codes", "OperatorCode")]
        buffers = [self.buffer(table) for table in self.table_list(root, "buffers", "Buffer")]
        self.buffer_count = len(buffers)
        subgraphs = tuple(self.subgraph(table) for table in self.table_list(root, "subgraphs", "SubGraph"))
        if not subgraphs:
            self.fail("it has no subgraph, so there is nothing to run")
        signatures = tuple(
            self.signature(table, subgraphs) for table in self.table_list(root, "signature_defs", "SignatureDef")
        )
        metadata = tuple(self.text(table, "name") for table in self.table_list(root, "metadata", "Metadata"))
        version, description = self.scalar(root, "version", "I"), self.text(root, "description")
        return TfliteFile(self.label, data, version, description, subgraphs, tuple(buffers), signatures, metadata)

    def code(self, table: _Table) -> tuple[str, int]:
        """(name, version) of an operation; a custom one is called by its own name, with "custom:" before it."""
        number = max(self.scalar(table, "deprecated_builtin_code", "b"), self.scalar(table, "builtin_code", "i"))
        name = OPERATORS[number] if 0 <= number < len(OPERATORS) else f"operation {number}"
        if name == "CUSTOM":
            name = f"custom:{self.text(table, 'custom_code')}"
        return name, self.scalar(table, "version", "i", 1)

    def buffer(self, table: _Table) -> np.ndarray:
        offset, size = self.scalar(table, "offset", "Q"), self.scalar(table, "size", "Q")
        if offset > 1:  # files above 2 GB keep their constants behind the flatbuffer
            self.take(offset, size, f"a buffer of {size} bytes")
            return np.frombuffer(self.data, "<u1", size, offset)
        return self.vector(table, "data", "<u1")

    def subgraph(self, table: _Table) -> Subgraph:
        tensors = tuple(self.tensor(item) for item in self.table_list(table, "tensors", "Tensor"))
        operators = tuple(self.operator(item, len(tensors)) for item in self.table_list(table, "operators", "Operator"))
        inputs, outputs = (self.references(table, field, len(tensors)) for field in ("inputs", "outputs"))
        return Subgraph(self.text(table, "name"), tensors, operators, inputs, outputs)

    def references(self, table: _Table, field: str, count: int) -> tuple[int, ...]:
        """Indices of tensors; -1 stands for an input that is not given."""
        found = self.integer_tuple(table, field)
        if found and not -1 <= min(found) <= max(found) < count:
            self.fail(f"{table.kind}.{field} refers to a tensor that is none of the {count}", table.start)
        return found

    def tensor(self, table: _Table) -> Tensor:
        kind, buffer = self.scalar(table, "type", "b"), self.scalar(table, "buffer", "I")
        name, shape = self.text(table, "name"), self.integer_tuple(table, "shape")
        if not 0 <= kind < len(TYPES):
            self.fail(f"tensor {name[:80]!r} has the unknown type {kind}", table.start)
        if len(shape) > MOST_AXES or math.prod(max(abs(size), 1) for size in shape) >= MOST_ENTRIES:
            self.fail(f"tensor {name[:80]!r} has {len(shape)} axes, or more entries than can be counted", table.start)
        if buffer >= self.buffer_count and (buffer or self.buffer_count):
            self.fail(f"tensor {name[:80]!r} has buffer {buffer} of {self.buffer_count}", table.start)
        quantization = self.optional(table, "quantization", "QuantizationParameters")
        scales, zero_points = np.empty(0, "<f4"), np.empty(0, "<i8")
        if quantization is not None:
            scales, zero_points = (
                self.vector(quantization, "scale", "<f4"),
                self.vector(quantization, "zero_point", "<i8"),
            )
        sparsity = self.optional(table, "sparsity", "SparsityParameters")
        return Tensor(
            name=name,
            type=kind,
            shape=shape,
            signature=self.integer_tuple(table, "shape_signature") or shape,
            buffer=buffer,
            variable=bool(self.scalar(table, "is_variable", "B")),
            scales=scales,
            zero_points=zero_points,
            sparsity=None if sparsity is None else self.sparsity(sparsity),
            offset=table.start,
        )

    def sparsity(self, table: _Table) -> Sparsity:
        dimensions = tuple(self.dimension(item) for item in self.table_list(table, "dim_metadata", "DimensionMetadata"))
        return Sparsity(
            self.integer_tuple(table, "traversal_order"), self.integer_tuple(table, "block_map"), dimensions
        )

    def dimension(self, table: _Table) -> Dimension:
        form = self.scalar(table, "format", "b")
        if form not in (0, 1):
            self.fail(f"a dimension of a sparse tensor has the unknown format {form}", table.start)
        segments, indices = self.index_vector(table, "array_segments"), self.index_vector(table, "array_indices")
        return Dimension(form == 1, self.scalar(table, "dense_size", "i"), segments, indices)

    def index_vector(self, table: _Table, field: str) -> np.ndarray:
        kind = self.scalar(table, field + "_type", "B")
        if kind == 0:
            return np.empty(0, "<i4")
        if kind not in INDEX_VECTORS:
            self.fail(f"{table.kind}.{field} has the unknown type {kind}", table.start)
        name, dtype = INDEX_VECTORS[kind]
        holder = self.optional(table, field, name)
        return np.empty(0, dtype) if holder is None else self.vector(holder, "values", dtype)

    def operator(self, table: _Table, tensors: int) -> Operator:
        index = self.scalar(table, "opcode_index", "I")
        if index >= len(self.codes):
            self.fail(f"an operator has the code {index} of {len(self.codes)}", table.start)
        inputs, outputs = (self.references(table, field, tensors) for field in ("inputs", "outputs"))
        kind, options = self.scalar(table, "builtin_options_type", "B"), {}
        holder = self.optional(table, "builtin_options", OPTIONS[kind]) if kind in OPTIONS else None
        if holder is not None:
            for field in FIELDS[OPTIONS[kind]]:
                default = int("dilation" in field)
                options[field] = self.scalar(holder, field, "b" if field == "padding" else "i", default)
        name, version = self.codes[index]
        return Operator(name, version, inputs, outputs, options)

    def signature(self, table: _Table, subgraphs: tuple[Subgraph, ...]) -> Signature:
        key, index = self.text(table, "signature_key"), self.scalar(table, "subgraph_index", "I")
        if index >= len(subgraphs):
            self.fail(f"signature {key[:80]!r} has the subgraph {index} of {len(subgraphs)}", table.start)
        inputs, outputs = (self.names(table, field, subgraphs[index]) for field in ("inputs", "outputs"))
        return Signature(key, index, inputs, outputs)

    def names(self, table: _Table, field: str, subgraph: Subgraph) -> tuple[tuple[str, int], ...]:
        pairs = []
        for item in self.table_list(table, field, "TensorMap"):
            index = self.scalar(item, "tensor_index", "I")
            if index >= len(subgraph.tensors):
                self.fail(f"a signature names tensor {index} of {len(subgraph.tensors)}", item.start)
            pairs.append((self.text(item, "name"), index))
        return tuple(pairs)
