"""What a `.tflite` file holds, and what keeps it from sparse inference."""

from __future__ import annotations

from keras_sensprune.records.codec import record


@record
class ConstantRecord:
    """One constant of a `.tflite` file.

    Attributes:
        name: its name in the file.
        subgraph: number of the subgraph that it is in; the bodies of loops are subgraphs.
        dtype: number format in which it is stored.
        shape: its shape there.
        encoding: "dense"; "csr", "1x4", "1x16" and the like; "csr, transposed"; "other sparse"; each sparse one with
            " + densify" if a DENSIFY operation expands it.
        entries: how many entries the shape has.
        zeros: how many of them mean zero (for integers: are equal to the zero point, if there is one for all).
        bytes: size of its buffer and of its index arrays; a buffer that an earlier constant has is not counted again.
        operators: what uses it, as name and number in the subgraph.
        execution: "native sparse kernel", "densified at load", "dense", or "unsupported: " and the reason.
    """

    name: str
    subgraph: int
    dtype: str
    shape: tuple[int, ...]
    encoding: str
    entries: int
    zeros: int
    bytes: int
    operators: tuple[str, ...]
    execution: str


@record
class OperatorCount:
    """How often a `.tflite` file uses an operation.

    Attributes:
        name: the operation; custom ones begin with "custom:".
        version: the version of the operation that is asked for.
        count: how often, over all subgraphs.
    """

    name: str
    version: int
    count: int


@record
class TfliteRecord:
    """What a `.tflite` file holds, see `inspect_tflite`.

    Attributes:
        path: the file.
        bytes: its size.
        gzip_bytes: its size after gzip -9.
        description: what the converter calls itself.
        subgraphs: how many subgraphs there are.
        tensors: the constants, in the order of the file.
        operators: the operations, by falling count.
        custom_operators: those that are no built-in operations; "Flex" ones need TensorFlow in the runtime.
        signatures: entry points, as "name(input: float32 [-1, 4]) -> (output: float32 [-1, 2])"; -1 is a free size.
        metadata: names of further content.
        warnings: what is wrong or wasteful, in sentences.
    """

    path: str
    bytes: int
    gzip_bytes: int
    description: str
    subgraphs: int
    tensors: tuple[ConstantRecord, ...]
    operators: tuple[OperatorCount, ...]
    custom_operators: tuple[str, ...]
    signatures: tuple[str, ...]
    metadata: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def entries(self) -> int:
        """Entries of all constants."""
        return sum(tensor.entries for tensor in self.tensors)

    @property
    def zeros(self) -> int:
        """Zeros of all constants."""
        return sum(tensor.zeros for tensor in self.tensors)

    @property
    def supported(self) -> bool:
        """Whether no constant is stored in a way that LiteRT is known to run wrongly."""
        return not any(tensor.execution.startswith("unsupported") for tensor in self.tensors)


@record
class ObstacleRecord:
    """One thing that keeps a convolutional network from XNNPACK's sparse inference.

    Attributes:
        operator: number of the operator in the subgraph; -1 if it concerns the whole file.
        kind: the operation, or "file".
        name: the tensor that the operator writes; the converter names it after the layer.
        reason: what the rule is and what was found.
        change: what to change in the model or in the export.
    """

    operator: int
    kind: str
    name: str
    reason: str
    change: str


@record
class SparseInferenceRecord:
    """Whether XNNPACK would run a file's convolutions sparsely, see `check_sparse_inference`.

    Attributes:
        path: the file.
        eligible: whether the graph and its zeros meet all rules, on a processor that has the kernels in use.
        cluster: operators that would run sparsely, as name and number, from the first convolution to the mean.
        weights: entries of the 1x1 convolutions of the cluster (or of the file if there is no cluster).
        zeros: how many of them are zero; more than two thirds are needed.
        obstacles: what is in the way, in the order of the file.
        note: what the verdict rests on and where it does not apply.
    """

    path: str
    eligible: bool
    cluster: tuple[str, ...]
    weights: int
    zeros: int
    obstacles: tuple[ObstacleRecord, ...]
    note: str
