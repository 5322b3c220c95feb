"""How LiteRT runs a constant of a `.tflite` file: by a sparse kernel, expanded when loaded, dense, or not rightly.

The rules are the measurements behind `allowed.py`, read off a file that anybody may have written: the converter of
TensorFlow, for one, writes several of the kinds that fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from keras_sensprune.export.allowed import LARGEST_LEDGER, MOST_BLOCKS
from keras_sensprune.export.graph import Operator, Subgraph, Tensor
from keras_sensprune.export.layout import trailing_inputs

NATIVE, DENSIFIED, DENSE = "native sparse kernel", "densified at load", "dense"
UNSUPPORTED = "unsupported: "
SPARSE_VERSION = 8
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
_SHORT = "reads the short buffer as if it were dense"


@dataclasses.dataclass(frozen=True)
class Use:
    """One operator that a constant feeds, directly or through DENSIFY and DEQUANTIZE.

    Attributes:
        operator: its number in the subgraph.
        position: which of its inputs.
        densified: whether DENSIFY is between.
        dequantized: whether DEQUANTIZE is between.
    """

    operator: int
    position: int
    densified: bool = False
    dequantized: bool = False


def uses_of(subgraph: Subgraph, tensor: int, constants: Collection[int] = ()) -> list[Use]:
    """Every use of a tensor; what DENSIFY and DEQUANTIZE make of it counts as the tensor itself.

    Each tensor has one producer here, the last that writes it, and what is itself a constant is not followed: so what
    is found for different constants is disjoint, and the work over all of them stays linear.

    Args:
        subgraph: where it is.
        tensor: its number there.
        constants: the tensors that have content of their own.
    """
    found, seen, waiting = [], {tensor}, [(tensor, False, False)]
    while waiting:
        index, densified, dequantized = waiting.pop()
        for number, position in subgraph.uses.get(index, ()):
            operator = subgraph.operators[number]
            onward = operator.outputs[0] if operator.name in ("DENSIFY", "DEQUANTIZE") and operator.outputs else -1
            if onward < 0:
                found.append(Use(number, position, densified, dequantized))
            elif onward in seen or onward in constants:
                continue
            elif subgraph.producers[onward] == number and position == 0:
                seen.add(onward)
                expanded = densified or operator.name == "DENSIFY"
                waiting.append((onward, expanded, dequantized or operator.name == "DEQUANTIZE"))
    return found


def execution_of(subgraph: Subgraph, tensor: int, encoding: str, uses: list[Use]) -> str:
    """How a constant is run, the worst of its uses.

    Args:
        subgraph: where it is.
        tensor: its number there.
        encoding: how it is stored, without " + densify".
        uses: what `uses_of` found.

    Returns:
        "native sparse kernel", "densified at load", "dense", or "unsupported: " and the reason.
    """
    if encoding == "dense":
        return DENSE
    if not uses:
        return f"{UNSUPPORTED}it is stored sparse and no operator uses it"
    found = {_execution(subgraph, tensor, encoding, use) for use in uses}
    bad = sorted(item for item in found if item.startswith(UNSUPPORTED))
    return bad[0] if bad else DENSIFIED if DENSIFIED in found else NATIVE


def _execution(subgraph: Subgraph, tensor: int, encoding: str, use: Use) -> str:
    operator, constant = subgraph.operators[use.operator], subgraph.tensors[tensor]
    if trailing_inputs(constant.shape, encoding):
        return (
            f"{UNSUPPORTED}its {constant.shape[-1]} inputs do not fill blocks of {encoding}, the last ones are dropped "
            "without an error"
        )
    if use.dequantized and not use.densified:
        return f"{UNSUPPORTED}DEQUANTIZE {_SHORT}: NaN or a crash"
    if use.densified:
        reason = _densify_problem(subgraph, operator, constant.dtype)
        if use.dequantized and operator.name == "TRANSPOSE_CONV":
            reason = (
                f"{operator.name} behind DENSIFY and DEQUANTIZE is wrong with the default delegate if the batch is free"
            )
        return f"{UNSUPPORTED}{reason}" if reason else DENSIFIED
    reason = _direct_problem(operator, constant, encoding, use.position, _activations(subgraph, operator))
    return f"{UNSUPPORTED}{reason}" if reason else NATIVE


def _activations(subgraph: Subgraph, operator: Operator) -> str:
    """Number format of what an operator computes with."""
    position = 2 if operator.name == "TRANSPOSE_CONV" else 0  # its first input is the shape of the result
    index = operator.inputs[position] if position < len(operator.inputs) else -1
    return subgraph.tensors[index].dtype if index >= 0 else ""


def _densify_problem(subgraph: Subgraph, operator: Operator, dtype: str) -> str:
    """Why a constant behind DENSIFY does not run, or ""."""
    activations = _activations(subgraph, operator)
    if dtype != "int8" or operator.name not in ("FULLY_CONNECTED", *_CONVOLUTIONS):
        return ""
    if activations == "int16":
        return "files with int16 activations and sparse weights are wrong or do not load"
    if activations.startswith("float"):
        return f"{operator.name} with float activations does not load with the default delegate when DENSIFY feeds it"
    if operator.name == "FULLY_CONNECTED":
        return "an int8 FULLY_CONNECTED does not load with LiteRT's default delegate when DENSIFY feeds it"
    return ""


def _fullest_row(constant: Tensor) -> int:
    """The largest number of blocks that a row stores."""
    levels = () if constant.sparsity is None else constant.sparsity.dimensions
    return max(
        (int(np.max(np.diff(d.segments.astype(np.int64)), initial=0)) for d in levels if d.compressed), default=0
    )


def _direct_problem(operator: Operator, constant: Tensor, encoding: str, position: int, activations: str) -> str:
    """Why a sparse constant that an operator reads itself does not run, or ""."""
    dtype, kind = constant.dtype, (constant.dtype, encoding)
    if operator.name != "FULLY_CONNECTED" or position != 1:
        return f"{operator.name} has no sparse kernel and {_SHORT}"
    if kind == ("int8", "csr"):
        return f"FULLY_CONNECTED has no kernel for single int8 zeros: an error, or the delegate {_SHORT}"
    if kind not in (("float32", "csr"), ("float32", "1x4"), ("int8", "1x16")):
        return f"FULLY_CONNECTED has no kernel for {encoding} of {dtype}"
    if activations not in ("float32", dtype):
        return f"FULLY_CONNECTED has no kernel for {encoding} of {dtype} with {activations} activations"
    inputs = constant.shape[-1]
    if dtype == "int8" and activations == "float32":
        if inputs > LARGEST_LEDGER:
            return (
                f"the kernel for float activations is silently wrong above {LARGEST_LEDGER} inputs, here are {inputs}"
            )
        fullest = _fullest_row(constant)
        if fullest > MOST_BLOCKS:
            return (
                f"a row has {fullest} blocks, and the kernel for float activations counts to {MOST_BLOCKS} without an "
                "error"
            )
    if operator.version != SPARSE_VERSION:
        return (
            f"FULLY_CONNECTED has version {operator.version}, not {SPARSE_VERSION}: the default delegate takes it and "
            f"{_SHORT}"
        )
    return ""
