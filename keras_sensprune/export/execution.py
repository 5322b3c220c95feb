"""How LiteRT runs a constant of a `.tflite` file: by a sparse kernel, expanded when loaded, dense, or not rightly.

The rules are the measurements behind `allowed.py`, read off a file that anybody may have written: the converter of
TensorFlow, for one, writes several of the kinds that fail.
"""

from __future__ import annotations

import dataclasses

from keras_sensprune.export.allowed import LARGEST_LEDGER
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


def uses_of(subgraph: Subgraph, tensor: int) -> list[Use]:
    """Every use of a tensor; what DENSIFY and DEQUANTIZE make of it counts as the tensor itself.

    Each tensor has one producer here, the last that writes it, so that the work over all constants stays linear.
    """
    found, seen, waiting = [], {tensor}, [(tensor, False, False)]
    while waiting:
        index, densified, dequantized = waiting.pop()
        for number in subgraph.consumers.get(index, ()):
            operator = subgraph.operators[number]
            onward = operator.outputs[0] if operator.name in ("DENSIFY", "DEQUANTIZE") and operator.outputs else -1
            if onward < 0:
                found.append(Use(number, operator.inputs.index(index), densified, dequantized))
            elif onward not in seen and subgraph.producers[onward] == number and operator.inputs[0] == index:
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
        return f"{UNSUPPORTED}{reason}" if reason else DENSIFIED
    reason = _direct_problem(operator, constant, encoding, use.position, _activations(subgraph, operator))
    return f"{UNSUPPORTED}{reason}" if reason else NATIVE


def _activations(subgraph: Subgraph, operator: Operator) -> str:
    """Number format of what an operator computes with."""
    return subgraph.tensors[operator.inputs[0]].dtype if operator.inputs[0] >= 0 else ""


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
    if dtype == "int8" and activations == "float32" and inputs > LARGEST_LEDGER:
        return f"the kernel for float activations is silently wrong above {LARGEST_LEDGER} inputs, here are {inputs}"
    if operator.version != SPARSE_VERSION:
        return (
            f"FULLY_CONNECTED has version {operator.version}, not {SPARSE_VERSION}: the default delegate takes it and "
            f"{_SHORT}"
        )
    return ""
