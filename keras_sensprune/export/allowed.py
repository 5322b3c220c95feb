"""Which sparse encoding may be written where: (number format, structure, encoding), each with its reason.

The evidence is `benchmarks/results/runtime_matrix.json`: `python benchmarks/runtime_matrix.py` writes one small file
per row, runs it in both runtimes with and without the default delegate, and notes what happened. A test compares that
file with this table: what is allowed here agreed in all four runs, what is refused failed in at least one.
"""

from __future__ import annotations

import dataclasses
import math

from keras_sensprune.errors import ExportError

LARGEST_LEDGER = 4096  # inputs of a dynamic layer in 1x16 blocks: its kernel counts the blocks of a row in one byte


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
        dtype: "float32", "float16" (weights only), "dynamic" (int8 weights), "int8" (weights and activations),
            "int16x8".
        structure: "dense layer" or "convolution".
        encoding: how the weight is stored.
        allowed: whether it may be written.
        reason: why, or why not.
        alternative: what to do instead, if it is refused.
        multiple: the inputs of the layer must be a multiple of this.
        largest: the inputs must not be more than this.
    """

    dtype: str
    structure: str
    encoding: str
    allowed: bool
    reason: str
    alternative: str = ""
    multiple: int = 1
    largest: float = math.inf

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of this shape meets the conditions."""
        return shape[-1] % self.multiple == 0 and shape[-1] <= self.largest


_NO_KERNEL = "no kernel takes it"
_SHORT = "the default delegate reads the short buffer as if it were dense"
_NOT_LOADED = "with the default delegate the file does not load"
_FC, _CONV = "dense layer", "convolution"
RULES = (
    Rule("float32", _FC, "csr", True, "native kernel, version 8 of FULLY_CONNECTED"),
    Rule("float32", _FC, "1x4", True, "native kernel, version 8 of FULLY_CONNECTED", multiple=4),
    Rule("float32", _FC, "1x16", False, _NO_KERNEL, "1x4 blocks"),
    Rule("float32", _CONV, "csr + densify", True, "expanded when the file is loaded: saves bytes, not time"),
    Rule("float32", _CONV, "csr", False, "convolution kernels read the short buffer as if it were dense", "DENSIFY"),
    Rule("float16", _FC, "1x4", False, "DEQUANTIZE reads the short buffer as if it were dense", "dense float16"),
    Rule(
        "dynamic", _FC, "1x16", True, "native kernel, version 8 of FULLY_CONNECTED", multiple=16, largest=LARGEST_LEDGER
    ),
    Rule("dynamic", _FC, "csr", False, _SHORT, "1x16 blocks, or dense int8 and gzip"),
    Rule("dynamic", _FC, "csr + densify", False, _NOT_LOADED, "1x16 blocks, or dense int8 and gzip"),
    Rule("dynamic", _CONV, "csr + densify", False, _NOT_LOADED, "dense int8 and gzip"),
    Rule("int8", _FC, "1x16", True, "native kernel, version 8 of FULLY_CONNECTED", multiple=16),
    Rule("int8", _FC, "csr", False, _NO_KERNEL, "1x16 blocks, or dense int8 and gzip"),
    Rule("int8", _FC, "csr + densify", False, _NOT_LOADED, "1x16 blocks, or dense int8 and gzip"),
    Rule("int8", _CONV, "csr + densify", True, "expanded when the file is loaded: saves bytes, not time"),
    Rule("int16x8", _CONV, "csr + densify", False, "the converter's files are wrong or do not load", "int8"),
)


def encodings_for(dtype: str, structure: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The sparse encodings that a weight may have; it may always be dense.

    Args:
        dtype: as in `Rule`.
        structure: as in `Rule`.
        shape: of the weight in the file, inputs last.
    """
    rows = (rule for rule in RULES if (rule.dtype, rule.structure) == (dtype, structure))
    return tuple(rule.encoding for rule in rows if rule.allowed and rule.fits(shape))


def check_allowed(dtype: str, structure: str, encoding: str, shape: tuple[int, ...]) -> None:
    """Refuse what is not known to run and agree.

    Raises:
        ExportError: with the reason and the alternative.
    """
    if encoding == "dense" or encoding in encodings_for(dtype, structure, shape):
        return
    what = f"A {structure} with {dtype} weights of shape {shape} cannot be stored as {encoding!r}"
    for rule in RULES:
        if (rule.dtype, rule.structure, rule.encoding) == (dtype, structure, encoding):
            reason = rule.reason
            if rule.allowed:
                limit = "" if math.isinf(rule.largest) else f" and be at most {rule.largest}"
                reason = f"its {shape[-1]} inputs must be a multiple of {rule.multiple}{limit}"
            raise ExportError(f"{what}: {reason}. Use instead: {rule.alternative or 'dense'}.")
    raise ExportError(f"{what}: it was never seen to run. Use instead: dense.")
