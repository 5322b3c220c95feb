"""What an exported file holds and how it was checked."""

from __future__ import annotations

from keras_sensprune.records.codec import record


@record
class TensorRecord:
    """One weight tensor of an exported file.

    Attributes:
        name: its name in the file.
        shape: its shape there.
        encoding: "dense" or "csr".
        zeros: how many entries are zero.
        bytes: size of its buffer and, for "csr", of its index arrays.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    zeros: int
    bytes: int


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
        tolerance: what was allowed for max_difference.
        runs: the interpreters that ran the file.
        examples: how many input examples were compared.
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
