"""Which operators XNNPACK can run in channels-first layout, the one that its sparse convolutions need.

Read from XNNPACK's source (`xnn_check_nchw_compatibility` in src/subgraph.c) and from LiteRT's delegate, in our words.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from keras_sensprune.export.graph import Operator, Subgraph, TfliteFile

STEM, INSIDE, END, OUTSIDE = "stem", "inside", "end", "outside"
UNARY = frozenset(
    {
        "ABS",
        "CEIL",
        "COS",
        "ELU",
        "EXP",
        "FLOOR",
        "GELU",
        "HARD_SWISH",
        "LEAKY_RELU",
        "LOG",
        "LOGISTIC",
        "NEG",
        "RELU",
        "RELU6",
        "RELU_0_TO_1",
        "RELU_N1_TO_1",
        "ROUND",
        "RSQRT",
        "SIGN",
        "SIN",
        "SQRT",
        "SQUARE",
        "TANH",
    }
)
_STEM_RULE = (
    "a convolution larger than 1x1 must be the first one: 3x3, stride 2, 3 input channels, padded by 1 all round"
)
STEM_CHANGE = "Start with ZeroPadding2D(1) and Conv2D(n, 3, strides=2, padding='valid') on a 3-channel input."
_PAD_CHANGE = "Use ZeroPadding2D with the same number on all sides and padding='valid' (this changes the function)."


class Verdict(NamedTuple):
    """The part that an operator can have in a sparse cluster; if it is none, why, and what to change."""

    role: str
    reason: str = ""
    change: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """One subgraph with what the rules ask of it."""

    file: TfliteFile
    subgraph: Subgraph

    def source(self, tensor: int) -> int:
        """The constant that a tensor is made of by DENSIFY and DEQUANTIZE; the tensor itself if by nothing."""
        for _ in range(4):
            number = self.subgraph.producers.get(tensor, -1)
            operator = self.subgraph.operators[number] if number >= 0 else None
            if operator is None or operator.name not in ("DENSIFY", "DEQUANTIZE") or not operator.inputs:
                break
            tensor = operator.inputs[0]
        return tensor

    def constant(self, tensor: int) -> bool:
        """Whether a tensor is known before the model runs; an input that is not given is."""
        source = self.source(tensor) if tensor >= 0 else -1
        return source < 0 or len(self.file.stored(self.subgraph.tensors[source])) > 0

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Shape of a tensor, () for an input that is not given."""
        return self.subgraph.tensors[tensor].shape if tensor >= 0 else ()

    def integers(self, tensor: int) -> list[int]:
        """Values of an int32 constant, at most 64; [] of anything else."""
        stored = self.file.stored(self.subgraph.tensors[tensor]) if tensor >= 0 else np.empty(0, "<u1")
        fits = tensor >= 0 and self.subgraph.tensors[tensor].dtype == "int32" and len(stored) in range(4, 257, 4)
        return [int(value) for value in stored.view("<i4")] if fits else []

    def fused_padding(self, number: int) -> tuple[int, ...] | None:
        """(top, bottom, left, right) of a PAD operator that XNNPACK takes into the convolution `number`."""
        inputs = self.subgraph.operators[number].inputs
        before = self.subgraph.producers.get(inputs[0], -1) if inputs else -1
        if before < 0 or self.subgraph.operators[before].name != "PAD":
            return None
        pad = self.subgraph.operators[before]
        values = self.integers(pad.inputs[1]) if len(pad.inputs) > 1 else []
        alone = self.subgraph.consumers.get(inputs[0]) == [number] and inputs[0] not in self.subgraph.outputs
        if len(values) != 8 or any(values[:2] + values[6:]) or not alone:
            return None
        return tuple(values[2:6])

    def padding(self, number: int, kernel: tuple[int, int]) -> tuple[int, ...] | None:
        """(top, bottom, left, right) of a convolution; None for SAME with a stride, which depends on the input."""
        options = self.subgraph.operators[number].options
        if options.get("padding", 0) == 1:
            return self.fused_padding(number) or (0, 0, 0, 0)
        if (options.get("stride_h"), options.get("stride_w")) != (1, 1):
            return (0, 0, 0, 0) if kernel == (1, 1) else None
        high, wide = kernel[0] - 1, kernel[1] - 1
        return (high // 2, high - high // 2, wide // 2, wide - wide // 2)

    def verdict(self, number: int) -> Verdict:
        """What part operator `number` can have."""
        operator = self.subgraph.operators[number]
        tensors = [self.subgraph.tensors[t] for t in (*operator.inputs, *operator.outputs) if t >= 0]
        data = [t for t in operator.inputs if not self.constant(t)]
        if not operator.inputs or not operator.outputs or operator.inputs[0] < 0:
            return Verdict(OUTSIDE, "it has no input or no output", "Remove it.")
        quantized = [t.dtype for t in tensors if "int8" in t.dtype or "int16" in t.dtype]
        if quantized:
            return Verdict(
                OUTSIDE, f"it computes in {quantized[0]}; only float32 and float16 run sparsely", "Export floats."
            )
        rank4 = all(len(self.shape(t)) == 4 for t in (operator.inputs[0], *data))
        if not rank4:
            return Verdict(
                OUTSIDE, "its input has not four axes", "Keep (batch, height, width, channels) up to the mean."
            )
        if operator.name == "CONV_2D":
            return self._convolution(number, operator)
        if operator.name == "DEPTHWISE_CONV_2D":
            return self._depthwise(number, operator)
        return self._simple(operator)

    def _convolution(self, number: int, operator: Operator) -> Verdict:
        weight = self.shape(operator.inputs[1]) if len(operator.inputs) > 1 else ()
        if len(weight) != 4:
            return Verdict(OUTSIDE, "its weights have not four axes", "Use Conv2D.")
        options, kernel = operator.options, (weight[1], weight[2])
        strides = (options.get("stride_h", 0), options.get("stride_w", 0))
        if (options.get("dilation_h_factor", 1), options.get("dilation_w_factor", 1)) != (1, 1):
            return Verdict(OUTSIDE, "it is dilated", "Use dilation_rate=1.")
        channels = self.shape(operator.inputs[0])[3]
        if channels != weight[3]:
            return Verdict(OUTSIDE, "it has groups", "Use groups=1, or a depthwise convolution.")
        padding = self.padding(number, kernel)
        if kernel == (1, 1):
            if strides != (1, 1):
                return Verdict(
                    OUTSIDE, f"a 1x1 convolution must have stride 1, this one has {strides}", "Use strides=1."
                )
            if any(padding or ()):
                return Verdict(OUTSIDE, "a 1x1 convolution must not be padded", "Remove the padding.")
            return Verdict(INSIDE)
        if (kernel, strides, padding, channels) == ((3, 3), (2, 2), (1, 1, 1, 1), 3):
            return Verdict(STEM)
        shown = "SAME" if padding is None else padding
        found = f"this one is {kernel[0]}x{kernel[1]}, stride {strides}, {channels} input channels, padding {shown}"
        change = STEM_CHANGE if channels <= 4 else "Use a depthwise and a 1x1 convolution instead."
        return Verdict(OUTSIDE, f"{_STEM_RULE}; {found}", change)

    def _depthwise(self, number: int, operator: Operator) -> Verdict:
        weight = self.shape(operator.inputs[1]) if len(operator.inputs) > 1 else ()
        options = operator.options
        strides = (options.get("stride_h", 0), options.get("stride_w", 0))
        kernel = (weight[1], weight[2]) if len(weight) == 4 else (0, 0)
        if (options.get("dilation_h_factor", 1), options.get("dilation_w_factor", 1)) != (1, 1):
            return Verdict(OUTSIDE, "it is dilated", "Use dilation_rate=1.")
        if kernel not in ((3, 3), (5, 5)) or strides not in ((1, 1), (2, 2)):
            found = f"this one is {kernel[0]}x{kernel[1]}, stride {strides}"
            return Verdict(
                OUTSIDE,
                f"a depthwise convolution must be 3x3 or 5x5 with stride 1 or 2; {found}",
                "Use such a kernel and stride.",
            )
        if self.shape(operator.inputs[0])[3] != weight[3]:
            return Verdict(OUTSIDE, "it has a depth multiplier", "Use depth_multiplier=1.")
        padding, half = self.padding(number, kernel), kernel[0] // 2
        if padding != (half,) * 4:
            found = "SAME with a stride" if padding is None else f"{padding} (top, bottom, left, right)"
            return Verdict(OUTSIDE, f"it must be padded by {half} on each side, here it is {found}", _PAD_CHANGE)
        return Verdict(INSIDE)

    def _simple(self, operator: Operator) -> Verdict:
        if operator.name in UNARY:
            return Verdict(INSIDE)
        if operator.name in ("ADD", "MUL"):
            shapes = [(t, self.shape(t)) for t in operator.inputs]
            vectors = all(sum(n != 1 for n in shape) <= 1 for t, shape in shapes if self.constant(t))
            if all(len(shape) == 4 for _, shape in shapes) and vectors:
                return Verdict(INSIDE)
            return Verdict(
                OUTSIDE, "its constant is not a 4-D vector along one axis", "Fold the constant into a layer."
            )
        if operator.name == "RESIZE_BILINEAR":
            fits = min(self.shape(operator.inputs[0])[1:3]) > 1
            return Verdict(INSIDE) if fits else Verdict(OUTSIDE, "its input has one row or column", "Remove it.")
        if operator.name in ("MEAN", "SUM"):
            axes = self.integers(operator.inputs[1]) if len(operator.inputs) > 1 else []
            if sorted(axis % 4 for axis in axes) == [1, 2]:
                return Verdict(END)
            return Verdict(OUTSIDE, "it is not over height and width", "Use GlobalAveragePooling2D.")
        if operator.name == "DEPTH_TO_SPACE":
            return Verdict(END)
        return Verdict(
            OUTSIDE, f"{operator.name} has no form for channels-first layout", "Use another layer, or end before it."
        )
