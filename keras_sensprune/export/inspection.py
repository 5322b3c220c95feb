"""`inspect_tflite`: what a `.tflite` file holds, how each constant is stored, and how the runtime will run it."""

from __future__ import annotations

import collections
import gzip
import os

import numpy as np

from keras_sensprune.errors import DataError, argument_error
from keras_sensprune.export.execution import UNSUPPORTED, execution_of, uses_of
from keras_sensprune.export.graph import Signature, Tensor, TfliteFile
from keras_sensprune.export.layout import encoding_name, stored_entries
from keras_sensprune.export.reader import read_tflite
from keras_sensprune.export.schema import TYPES
from keras_sensprune.records.inspection import ConstantRecord, OperatorCount, TfliteRecord

_SIGN_BITS = {"bfloat16": 0x7FFF, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7F}  # all but the sign
_SIGNED_FLOATS = ("float32", "float16", "float64")
_MOST_COUNTING = 4  # times the size of the file


def inspect_tflite(path: str | os.PathLike[str]) -> TfliteRecord:
    """What a `.tflite` file holds: constants, encodings, zeros, bytes, and how LiteRT will run each constant.

    The file may come from anywhere: it is read by our own code, which checks every offset and count, and it is never
    run. Neither Keras nor TensorFlow nor LiteRT is started.

    How a constant will run (`execution`) follows measurements with LiteRT 2.3 and TensorFlow 2.21 on x86: unsupported
    are encodings that were seen to crash, to fail at loading, or to answer wrongly with the default delegate.

    Args:
        path: the file.

    Returns:
        A `TfliteRecord`.

    Raises:
        ArgumentError: if `path` is no file name.
        DataError: if there is no such file, or it is not a valid `.tflite` file: what is wrong, and at which byte.

    Example:

    >>> import os, tempfile
    >>> import keras, numpy as np
    >>> from keras_sensprune import export_tflite, inspect_tflite
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
    >>> kernel = model.layers[0].kernel
    >>> kernel.assign(np.arange(64 * 32).reshape(64, 32) % 10 == 1).shape  # 90 % zeros
    TensorShape([64, 32])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "model.tflite")
    ...     written = export_tflite(model, file)
    ...     record = inspect_tflite(file)
    >>> weight = max(record.tensors, key=lambda tensor: tensor.entries)
    >>> weight.shape, weight.encoding, weight.zeros, weight.execution
    ((32, 64), 'csr', 1843, 'native sparse kernel')
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise argument_error("path", "the name of a .tflite file", path)
    file = read_tflite(path)
    constants = Constants(file)
    found = [constants.record(s, t) for s in range(len(file.subgraphs)) for t in constants.found[s]]
    counts = collections.Counter((op.name, op.version) for graph in file.subgraphs for op in graph.operators)
    operators = tuple(OperatorCount(name, version, n) for (name, version), n in counts.most_common())
    custom = tuple(sorted({op.name for op in operators if op.name.startswith(("custom:", "operation "))}))
    return TfliteRecord(
        path=os.fspath(path),
        bytes=len(file.data),
        gzip_bytes=len(gzip.compress(file.data, 9, mtime=0)),
        description=file.description,
        subgraphs=len(file.subgraphs),
        tensors=tuple(found),
        operators=operators,
        custom_operators=custom,
        signatures=tuple(_signature_text(file, signature) for signature in file.signatures),
        metadata=file.metadata,
        warnings=_warnings(found, custom, constants.signed_zeros),
    )


class Constants:
    """Turns constants into records; what was counted once is not counted again."""

    def __init__(self, file: TfliteFile) -> None:
        self.file = file
        self.found = [dict.fromkeys(file.constants(graph)) for graph in file.subgraphs]
        self.signed_zeros = 0
        self.counted = 0
        self.nonzeros: dict[tuple[int, int, int | None], int] = {}
        self.buffers: set[int] = set()

    def record(self, s: int, t: int) -> ConstantRecord:
        graph, tensor = self.file.subgraphs[s], self.file.subgraphs[s].tensors[t]
        stored = self.file.stored(tensor)
        entries, zeros = self.count(tensor)
        encoding, index_bytes = "dense", 0
        if tensor.sparsity is not None:
            encoding = encoding_name(tensor.shape, tensor.sparsity)
            index_bytes = sum(dimension.bytes for dimension in tensor.sparsity.dimensions)
        uses = uses_of(graph, t, self.found[s])
        execution = execution_of(graph, t, encoding, uses)
        expanded = encoding != "dense" and any(use.densified for use in uses)
        size = index_bytes + (0 if tensor.buffer in self.buffers else stored.nbytes)
        self.buffers.add(tensor.buffer)
        return ConstantRecord(
            name=tensor.name,
            subgraph=s,
            dtype=tensor.dtype,
            shape=tensor.shape,
            encoding=encoding + (" + densify" if expanded else ""),
            entries=entries,
            zeros=zeros,
            bytes=int(size),
            operators=tuple(f"{graph.operators[use.operator].name} {use.operator}" for use in uses),
            execution=execution,
        )

    def _fail(self, tensor: Tensor, reason: str) -> DataError:
        place = f"at byte {tensor.offset} of {len(self.file.data)}"
        return DataError(
            f"Cannot read {self.file.label} as a .tflite file: of tensor {tensor.name[:80]!r} {reason} ({place})."
        )

    def _sound_entries(self, tensor: Tensor) -> int:
        assert tensor.sparsity is not None
        entries = stored_entries(tensor.shape, tensor.sparsity)
        if isinstance(entries, str):
            raise self._fail(tensor, f"the index arrays are damaged: {entries}")
        return entries

    def count(self, tensor: Tensor) -> tuple[int, int]:
        """Entries of a constant, and how many mean zero.

        Raises:
            DataError: if its buffer or its index arrays do not fit its shape.
        """
        stored, entries = self.file.stored(tensor), tensor.size
        expected = entries if tensor.sparsity is None else self._sound_entries(tensor)
        bits = TYPES[tensor.type][1]
        if not bits:  # strings and handles
            return entries, 0
        needed = -(-expected * bits // 8)
        if any(size < 0 for size in tensor.shape) or len(stored) != needed:
            raise self._fail(tensor, f"the buffer has {len(stored)} bytes, shape and type want {needed}")
        points = np.unique(tensor.zero_points)
        point = int(points[0]) if len(points) == 1 and "int" in tensor.dtype else None
        key = (tensor.buffer, tensor.type, point)
        if key not in self.nonzeros:
            self.counted += stored.nbytes
            if self.counted > _MOST_COUNTING * len(self.file.data):
                raise self._fail(tensor, "the buffer is used by far too many tensors of other types")
            self.nonzeros[key] = self._nonzeros(tensor, stored, expected, point or 0)
        return entries, entries - self.nonzeros[key]

    def _nonzeros(self, tensor: Tensor, stored: np.ndarray, expected: int, point: int) -> int:
        bits, kind = TYPES[tensor.type][1:]
        packed = bits < 8
        values = _unpacked(stored, bits, tensor.dtype[0] == "u")[:expected] if packed else stored.view(kind)
        if tensor.dtype in _SIGN_BITS:
            values = values & _SIGN_BITS[tensor.dtype]
        if tensor.dtype in _SIGNED_FLOATS:
            self.signed_zeros += int(np.count_nonzero(np.signbit(values) & (values == 0)))
        return int(np.count_nonzero(values != point if point else values))


def _unpacked(stored: np.ndarray, bits: int, unsigned: bool) -> np.ndarray:
    """Numbers of 2 or 4 bits, the lowest first, as int8."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = ((stored[:, None] >> shifts) & (2**bits - 1)).astype(np.int8).reshape(-1)
    return values if unsigned else np.where(values >= 2 ** (bits - 1), values - 2**bits, values)


def _signature_text(file: TfliteFile, signature: Signature) -> str:
    graph = file.subgraphs[signature.subgraph]

    def side(pairs: tuple[tuple[str, int], ...]) -> str:
        described = (f"{name}: {graph.tensors[t].dtype} {list(graph.tensors[t].signature)}" for name, t in pairs)
        return f"({', '.join(described)})"

    return f"{signature.key}{side(signature.inputs)} -> {side(signature.outputs)}"


def _warnings(constants: list[ConstantRecord], custom: tuple[str, ...], signed_zeros: int) -> tuple[str, ...]:
    found = []
    flex = [name.removeprefix("custom:") for name in custom if name.startswith("custom:Flex")]
    if flex:
        found.append(f"Needs TensorFlow inside the runtime, which LiteRT's packages do not have: {', '.join(flex)}.")
    others = [name for name in custom if not name.startswith("custom:Flex")]
    if others:
        found.append(f"Needs operations that LiteRT does not bring along: {', '.join(others)}.")
    for item in constants:
        if item.execution.startswith(UNSUPPORTED):
            found.append(f"{item.name!r} is {item.encoding} and {item.execution}.")
        elif item.encoding != "dense" and item.bytes > item.entries * _entry_bytes(item.dtype) > 0:
            found.append(f"{item.name!r} is {item.encoding} and takes more bytes than if it were dense.")
    if signed_zeros:
        found.append(f"{signed_zeros} zeros are stored as -0.0, which costs bytes when the file is compressed.")
    return tuple(found)


def _entry_bytes(dtype: str) -> float:
    return next(bits for name, bits, _ in TYPES if name == dtype) / 8
