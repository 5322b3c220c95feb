"""What an exported file holds and how it was checked."""

from __future__ import annotations

from keras_sensprune.records.codec import record


@record
class TensorRecord:
    """One weight tensor of an exported file.

    Attributes:
        name: its name in the file.
        shape: its shape there.
        encoding: "dense", "csr", "1x4", "1x16", or "csr + densify" (expanded when the file is loaded).
        zeros: how many entries are zero.
        bytes: size of its buffer and of its index arrays.
        dtype: number format in which it is stored.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    zeros: int
    bytes: int
    dtype: str = "float32"


@record
class CandidateRecord:
    """One way to write a file that was tried.

    Attributes:
        name: what it is: "dense", "sparse (bytes)", "sparse (gzip)" or "sparse (latency)".
        bytes: size of the file.
        gzip_bytes: size after gzip -9.
        chosen: whether it is the one that was written.
        reason: why it was chosen, or why not.
    """

    name: str
    bytes: int
    gzip_bytes: int
    chosen: bool
    reason: str


@record
class ExportRecord:
    """What `export_tflite` wrote and how it was checked.

    Attributes:
        path: the file.
        encoding: "dense" or "sparse", what the file as a whole uses.
        bytes: size of the file.
        gzip_bytes: size after gzip -9.
        dense_bytes: size of the dense file it was compared with.
        tensors: the constant weight tensors.
        sparse_tensors: how many of them are stored sparse.
        max_difference: largest absolute difference between file and Keras model over all runs.
        largest_output: largest absolute output of the Keras model on the same data.
        tolerance: what was allowed for max_difference (for quantized files for the root mean square of the difference,
            with clusters for the file before they were applied).
        runs: the interpreters that ran the file.
        examples: how many input examples were compared.
        quantize: "float32", "float16", "dynamic" or "int8".
        candidates: what was tried, in order.
        information_bytes: what the weights hold: the nonzero values at full width and where they are, see
            `formulas.counting.information_bits`; other constants and the graph are not counted. A gzipped file can be
            smaller where values share bits.
        twin_difference: largest absolute difference between the file and its dense twin; 0 if it is dense.
        clustering_difference: how far clusters move the outputs: root mean square of the difference from the Keras
            model, as a share of that of the output (of several outputs, the largest).
        keras_error, error: percent of examples that the Keras model and the file get wrong, if labels were given.
    """

    path: str
    encoding: str
    bytes: int
    gzip_bytes: int
    dense_bytes: int
    tensors: tuple[TensorRecord, ...]
    sparse_tensors: int
    max_difference: float
    largest_output: float
    tolerance: float
    runs: tuple[str, ...]
    examples: int
    quantize: str = "float32"
    candidates: tuple[CandidateRecord, ...] = ()
    information_bytes: int = 0
    twin_difference: float = 0.0
    clustering_difference: float = 0.0
    keras_error: float | None = None
    error: float | None = None
