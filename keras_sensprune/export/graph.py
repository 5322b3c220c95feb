"""What a `.tflite` file holds, as plain frozen objects: tensors, operators, buffers; and which constants feed what."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from keras_sensprune.export.schema import TYPES


@dataclasses.dataclass(frozen=True, eq=False)
class Dimension:
    """One level of a sparse tensor: a dense one has a size, a compressed one segments and indices."""

    compressed: bool
    size: int
    segments: np.ndarray
    indices: np.ndarray

    @property
    def bytes(self) -> int:
        """Size of the index arrays."""
        return int(self.segments.nbytes + self.indices.nbytes)


@dataclasses.dataclass(frozen=True, eq=False)
class Sparsity:
    """How a sparse tensor is stored: the order of its levels, which axes are cut into blocks, and the levels."""

    traversal: tuple[int, ...]
    block_map: tuple[int, ...]
    dimensions: tuple[Dimension, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor; `signature` is its shape with -1 where a size is free, `offset` its place in the file."""

    name: str
    type: int
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    buffer: int
    variable: bool
    scales: np.ndarray
    zero_points: np.ndarray
    sparsity: Sparsity | None
    offset: int

    @property
    def dtype(self) -> str:
        """Name of the number format."""
        return TYPES[self.type][0]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """One operator; `options` holds what we read of convolutions' options, by the names of the schema."""

    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Subgraph:
    """Tensors and operators; operators are stored in the order in which they run."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @functools.cached_property
    def uses(self) -> dict[int, list[tuple[int, int]]]:
        """Tensor -> (operator that reads it, first position among its inputs), each operator once."""
        found: dict[int, list[tuple[int, int]]] = {}
        for number, operator in enumerate(self.operators):
            first: dict[int, int] = {}
            for position, index in enumerate(operator.inputs):
                first.setdefault(index, position)
            for index, position in first.items():
                found.setdefault(index, []).append((number, position))
        return found

    @functools.cached_property
    def consumers(self) -> dict[int, list[int]]:
        """Tensor -> operators that read it, each once."""
        return {index: [number for number, _ in found] for index, found in self.uses.items()}

    @functools.cached_property
    def producers(self) -> dict[int, int]:
        """Tensor -> the operator that writes it."""
        return {index: number for number, operator in enumerate(self.operators) for index in operator.outputs}


@dataclasses.dataclass(frozen=True, eq=False)
class Signature:
    """A named entry point: (name, tensor) of its inputs and outputs."""

    key: str
    subgraph: int
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TfliteFile:
    """A whole file; `label` is what an error calls it."""

    label: str
    data: bytes
    version: int
    description: str
    subgraphs: tuple[Subgraph, ...]
    buffers: tuple[np.ndarray, ...]
    signatures: tuple[Signature, ...]
    metadata: tuple[str, ...]

    def stored(self, tensor: Tensor) -> np.ndarray:
        """The bytes of a constant; empty for a tensor that is computed."""
        return self.buffers[tensor.buffer] if tensor.buffer < len(self.buffers) else np.empty(0, "<u1")

    def constants(self, subgraph: Subgraph) -> list[int]:
        """The tensors of a subgraph that have content in the file."""
        tensors = enumerate(subgraph.tensors)
        return [t for t, tensor in tensors if len(self.stored(tensor)) or tensor.sparsity is not None]
