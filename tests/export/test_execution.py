"""The rules of how a constant runs, on small graphs by hand: they agree with the table of what may be written."""

import dataclasses
import time

import numpy as np
import pytest

from keras_sensprune.export.allowed import RULES
from keras_sensprune.export.execution import Use, execution_of, uses_of
from keras_sensprune.export.graph import Dimension, Operator, Sparsity, Subgraph, Tensor
from keras_sensprune.export.schema import TYPES

NAMES = [name for name, _, _ in TYPES]


def tensor(dtype, *shape):
    nothing = np.empty(0)
    return Tensor("t", NAMES.index(dtype), shape, shape, 0, False, nothing, nothing, None, 0)


def graph(name, weight, activations="float32", *, version=8, between=()):
    """Tensors: 0 activations, 1 weight, 2 result, then what the operators between make of the weight."""
    tensors = [tensor(activations, 1, 64), weight, tensor(activations, 1, 16)]
    operators, current = [], 1
    for middle in between:
        tensors.append(tensor("float32", *weight.shape))
        operators.append(Operator(middle, 1, (current,), (len(tensors) - 1,), {}))
        current = len(tensors) - 1
    inputs = (-1, current, 0) if name == "TRANSPOSE_CONV" else (0, current, -1)
    operators.append(Operator(name, version, inputs, (2,), {}))
    return Subgraph("main", tuple(tensors), tuple(operators), (0,), (2,))


def execution(subgraph, encoding):
    return execution_of(subgraph, 1, encoding, uses_of(subgraph, 1))


# allowed.py's name of a format -> that of the stored weight and of the activations
FORMATS = {
    "float32": ("float32", "float32"),
    "float16": ("float16", "float32"),
    "dynamic": ("int8", "float32"),
    "int8": ("int8", "int8"),
    "int16x8": ("int8", "int16"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.dtype}-{rule.structure}-{rule.encoding}")
def test_what_may_be_written_is_supported_and_what_is_refused_is_not(rule):
    stored, activations = FORMATS[rule.dtype]
    names = {"dense layer": "FULLY_CONNECTED", "convolution": "CONV_2D", "transposed convolution": "TRANSPOSE_CONV"}
    weight = tensor(stored, 16, 64) if rule.structure == "dense layer" else tensor(stored, 16, 3, 3, 64)
    between = ("DENSIFY",) if rule.encoding.endswith("densify") else ()
    if rule.dtype == "float16":
        between = (*between, "DEQUANTIZE")
    built = graph(names[rule.structure], weight, activations, between=between)
    found = execution(built, rule.encoding.removesuffix(" + densify"))
    if not rule.allowed:
        assert found.startswith("unsupported: ")
    else:
        assert found == ("densified at load" if between else "native sparse kernel")


@pytest.mark.parametrize(
    ("inputs", "activations", "runs"),
    [(4096, "float32", True), (4112, "float32", False), (4112, "int8", True), (4100, "int8", False)],
)
def test_sizes_that_the_int8_kernel_takes(inputs, activations, runs):
    found = execution(graph("FULLY_CONNECTED", tensor("int8", 2, inputs), activations), "1x16")
    assert (found == "native sparse kernel") == runs


def test_a_row_of_more_blocks_than_a_byte_counts_is_unsupported():
    """For float activations; the kernel for int8 ones has no such list."""
    for blocks in (255, 256):
        levels = [Dimension(False, 2, np.empty(0), np.empty(0))]
        levels.append(Dimension(True, 0, np.array([0, 3, 3 + blocks], np.uint16), np.zeros(3 + blocks, np.uint8)))
        levels.append(Dimension(False, 16, np.empty(0), np.empty(0)))
        weight = dataclasses.replace(tensor("int8", 2, 4096), sparsity=Sparsity((0, 1, 2), (1,), tuple(levels)))
        for activations in ("float32", "int8"):
            found = execution(graph("FULLY_CONNECTED", weight, activations), "1x16")
            assert (found == "native sparse kernel") == (blocks == 255 or activations == "int8")
            assert found == "native sparse kernel" or "a row has 256 blocks" in found


def test_only_version_8_reaches_the_sparse_kernel():
    """The converter of TensorFlow writes version 12 for int8 with float activations: garbage."""
    found = execution(graph("FULLY_CONNECTED", tensor("int8", 2, 64), version=12), "1x16")
    assert "version 12, not 8" in found


def test_uses_are_followed_through_what_expands_a_constant():
    built = graph("FULLY_CONNECTED", tensor("float16", 2, 64), between=("DENSIFY", "DEQUANTIZE"))
    assert uses_of(built, 1) == [Use(2, 1, densified=True, dequantized=True)]
    assert execution(built, "csr") == "densified at load"
    assert uses_of(built, 0) == [Use(2, 0)]
    assert uses_of(built, 2) == []


def test_the_worst_of_several_uses_counts():
    built = graph("FULLY_CONNECTED", tensor("float32", 2, 64))
    both = (*built.operators, Operator("BATCH_MATMUL", 1, (0, 1), (2,), {}))
    found = execution(Subgraph("main", built.tensors, both, (0,), (2,)), "csr")
    assert "BATCH_MATMUL has no sparse kernel" in found


def test_a_circle_of_operators_ends():
    weight = tensor("float32", 2, 64)
    operators = (Operator("DENSIFY", 1, (1,), (2,), {}), Operator("DENSIFY", 1, (2,), (1,), {}))
    built = Subgraph("main", (tensor("float32", 1), weight, weight), operators, (), ())
    assert uses_of(built, 1) == []
    assert "no operator uses it" in execution(built, "csr")
    assert execution(built, "dense") == "dense"


def test_chains_and_long_lists_of_constants_cost_linear_time():
    """A chain of DENSIFY whose results are constants too, then many readers; and one operator that reads them all."""
    count = 30_000
    weight = tensor("float32", 1)
    chain = [Operator("DENSIFY", 1, (i,), (i + 1,), {}) for i in range(count)]
    readers = [Operator("NEG", 1, (count,), (count + 1,), {})] * count
    everything = Operator("CONCATENATION", 1, tuple(range(count)), (count + 1,), {})
    built = Subgraph("main", (weight,) * (count + 2), (*chain, *readers, everything), (), (count + 1,))
    constants = dict.fromkeys(range(count + 1))
    begun = time.perf_counter()
    found = [uses_of(built, constant, constants) for constant in constants]
    # 0.2 s here; with work that grows with the square it would be minutes
    assert time.perf_counter() - begun < 10
    assert sum(map(len, found)) == count + count
    assert found[7] == [Use(len(built.operators) - 1, 7)]
    assert len(found[count]) == count
