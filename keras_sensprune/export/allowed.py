"""Which sparse encoding may be written where: (number format, structure, encoding), each with its reason.

The evidence is `benchmarks/results/runtime_matrix.json`: `python benchmarks/runtime_matrix.py` writes one small file
per row and per broken condition, runs it in both runtimes with and without the default delegate, and notes what
happened. A test compares that file with this table: what is allowed here agreed in all four runs; what is refused
failed in at least one, but for conditions that are a precaution, with the reason.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from keras_sensprune.errors import ExportError

# A dynamic layer in 1x16 blocks: its kernel keeps the number of nonempty blocks of a row, and the place of each, in one
# byte. So places end at 255 (4096 inputs), and 256 nonempty blocks count as none.
LARGEST_LEDGER, MOST_BLOCKS = 4096, 255


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
        dtype: "float32", "float16" (weights only), "dynamic" (int8 weights), "int8" (weights and activations),
            "int16x8".
        structure: "dense layer", "convolution" (also depthwise) or "transposed convolution".
        encoding: how the weight is stored.
        allowed: whether it may be written.
        reason: why, or why not.
        alternative: what to do instead, if it is refused.
        multiple: the inputs of the layer must be a multiple of this.
        largest: the inputs must not be more than this.
        blocks: no row may have more nonempty blocks than this.
        precaution: why `multiple` is asked for although files that break it were seen to agree.
    """

    dtype: str
    structure: str
    encoding: str
    allowed: bool
    reason: str
    alternative: str = ""
    multiple: int = 1
    largest: float = math.inf
    blocks: float = math.inf
    precaution: str = ""

    def broken(self, shape: tuple[int, ...], values: np.ndarray | None = None) -> str:
        """Which condition a weight breaks, in words; "" if it may have the encoding.

        Args:
            shape: of the weight in the file, inputs last.
            values: the weight; None means that every block may be needed.
        """
        inputs = shape[-1]
        if inputs % self.multiple or inputs > self.largest:
            limit = "" if math.isinf(self.largest) else f" and be at most {self.largest}"
            return f"its {inputs} inputs must be a multiple of {self.multiple}{limit}"
        if math.isinf(self.blocks):
            return ""
        fullest = inputs // self.multiple if values is None else fullest_row(values, self.multiple)
        if fullest > self.blocks:
            return f"one of its rows has {fullest} nonempty blocks, and the kernel counts to {self.blocks}"
        return ""


def fullest_row(values: np.ndarray, block: int) -> int:
    """The largest number of nonempty blocks in a row, of a weight whose last axis whole blocks fill."""
    blocks = values.reshape(-1, values.shape[-1] // block, block)
    return int(np.max(np.count_nonzero(np.any(blocks != 0, axis=2), axis=1), initial=0))


_NATIVE = "native kernel, version 8 of FULLY_CONNECTED"
_PADDED = "a last block that is padded with zeros agrees, but its kernel may read inputs beyond the end of the row"
_NO_KERNEL = "no kernel takes it"
_SHORT = "the default delegate reads the short buffer as if it were dense"
_NOT_LOADED = "with the default delegate the file does not load"
_WRONG_IF_FREE = "with the default delegate the numbers are wrong if the batch is free"
_EXPANDED = "expanded when the file is loaded: saves bytes, not time"
_FC, _CONV, _TRANSPOSED = "dense layer", "convolution", "transposed convolution"
RULES = (
    Rule("float32", _FC, "csr", True, _NATIVE),
    Rule("float32", _FC, "1x4", True, _NATIVE, multiple=4, precaution=_PADDED),
    Rule("float32", _FC, "1x16", False, _NO_KERNEL, "1x4 blocks"),
    Rule("float32", _CONV, "csr + densify", True, _EXPANDED),
    Rule("float32", _CONV, "csr", False, "convolution kernels read the short buffer as if it were dense", "DENSIFY"),
    Rule("float32", _TRANSPOSED, "csr + densify", True, _EXPANDED),
    Rule("float16", _FC, "csr + densify", True, _EXPANDED),
    Rule("float16", _FC, "1x4", False, "DEQUANTIZE reads the short buffer as if it were dense", "'csr + densify'"),
    Rule("float16", _CONV, "csr + densify", True, _EXPANDED),
    Rule("float16", _TRANSPOSED, "csr + densify", False, _WRONG_IF_FREE, "dense float16"),
    Rule(
        "dynamic",
        _FC,
        "1x16",
        True,
        _NATIVE,
        multiple=16,
        largest=LARGEST_LEDGER,
        blocks=MOST_BLOCKS,
        precaution=_PADDED,
    ),
    Rule("dynamic", _FC, "csr", False, _SHORT, "1x16 blocks, or dense int8 and gzip"),
    Rule("dynamic", _FC, "csr + densify", False, _NOT_LOADED, "1x16 blocks, or dense int8 and gzip"),
    Rule("dynamic", _CONV, "csr + densify", False, _NOT_LOADED, "dense int8 and gzip"),
    Rule("dynamic", _TRANSPOSED, "csr + densify", False, _NOT_LOADED + " if its batch is fixed", "dense int8 and gzip"),
    Rule("int8", _FC, "1x16", True, _NATIVE, multiple=16, precaution=_PADDED),
    Rule("int8", _FC, "csr", False, _NO_KERNEL, "1x16 blocks, or dense int8 and gzip"),
    Rule("int8", _FC, "csr + densify", False, _NOT_LOADED, "1x16 blocks, or dense int8 and gzip"),
    Rule("int8", _CONV, "csr + densify", True, _EXPANDED),
    Rule("int8", _TRANSPOSED, "csr + densify", True, _EXPANDED),
    Rule("int16x8", _CONV, "csr + densify", False, "the converter's files are wrong or do not load", "int8"),
)


def encodings_for(
    dtype: str, structure: str, shape: tuple[int, ...], values: np.ndarray | None = None
) -> tuple[str, ...]:
    """The sparse encodings that a weight may have; it may always be dense.

    Args:
        dtype: as in `Rule`.
        structure: as in `Rule`.
        shape: of the weight in the file, inputs last.
        values: the weight; None means that every block may be needed.
    """
    rows = (rule for rule in RULES if (rule.dtype, rule.structure) == (dtype, structure))
    return tuple(rule.encoding for rule in rows if rule.allowed and not rule.broken(shape, values))


def check_allowed(
    dtype: str, structure: str, encoding: str, shape: tuple[int, ...], values: np.ndarray | None = None
) -> None:
    """Refuse what is not known to run and agree; arguments as of `encodings_for`.

    Raises:
        ExportError: with the reason and the alternative.
    """
    if encoding == "dense" or encoding in encodings_for(dtype, structure, shape, values):
        return
    what = f"A {structure} with {dtype} weights of shape {shape} cannot be stored as {encoding!r}"
    for rule in RULES:
        if (rule.dtype, rule.structure, rule.encoding) == (dtype, structure, encoding):
            reason = rule.broken(shape, values) if rule.allowed else rule.reason
            raise ExportError(f"{what}: {reason}. Use instead: {rule.alternative or 'dense'}.")
    raise ExportError(f"{what}: it was never seen to run. Use instead: dense.")
