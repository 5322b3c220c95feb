"""The allow-list says what was seen to happen, and refuses the rest with a reason."""

import json
from pathlib import Path

import numpy as np
import pytest

from keras_sensprune.errors import ExportError
from keras_sensprune.export.allowed import RULES, check_allowed, encodings_for, fullest_row

MATRIX = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "runtime_matrix.json").read_text())


def cells(rule):
    key = (rule.dtype, rule.structure, rule.encoding)
    return [c for c in MATRIX["cells"] if (c["dtype"], c["structure"], c["encoding"]) == key]


def agrees(found):
    assert len(found["runs"]) == 4  # two runtimes, with and without the default delegate
    return all(run["ok"] for run in found["runs"].values())


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.dtype} {r.structure} {r.encoding}")
def test_every_rule_has_its_evidence(rule):
    found = [agrees(cell) for cell in cells(rule) if cell["conditions hold"]]
    assert found
    assert all(found) == rule.allowed
    if rule.structure == "transposed convolution":  # what the default delegate does depends on the batch
        assert [cell.get("batch") for cell in cells(rule)] == [None, 1]
    assert bool(rule.alternative) != rule.allowed


@pytest.mark.parametrize("rule", [r for r in RULES if r.multiple > 1], ids=lambda r: f"{r.dtype} {r.encoding}")
def test_a_condition_without_a_failure_behind_it_is_called_a_precaution(rule):
    broken = [cell for cell in cells(rule) if not cell["conditions hold"]]
    assert broken
    assert not any(cell["allowed"] for cell in broken)
    for cell in broken:
        if cell["inputs"] % rule.multiple:
            assert agrees(cell) == bool(rule.precaution)
        else:
            assert not agrees(cell)


def test_a_dynamic_row_of_more_blocks_than_a_byte_counts_is_refused_because_it_is_wrong():
    found = [c for c in MATRIX["cells"] if c["dtype"] == "dynamic" and c["inputs"] >= 4096]
    assert {(c["inputs"], c.get("fullest row")) for c in found} == {(4096, 256), (4112, None)}
    for cell in found:
        assert not cell["allowed"]
        assert {run["what"] for run in cell["runs"].values()} == {"wrong numbers"}


@pytest.mark.parametrize(("blocks", "encodings"), [(255, ("1x16",)), (256, ())])
def test_the_blocks_of_a_row_are_counted_in_the_weight_itself(blocks, encodings):
    values = np.zeros((3, 4096), np.int8)
    values[1, : 16 * blocks] = 1
    assert fullest_row(values, 16) == blocks
    assert encodings_for("dynamic", "dense layer", (3, 4096), values) == encodings
    assert encodings_for("int8", "dense layer", (3, 4096), values) == ("1x16",)
    if not encodings:
        with pytest.raises(ExportError) as caught:
            check_allowed("dynamic", "dense layer", "1x16", (3, 4096), values)
        assert str(caught.value).endswith(
            "one of its rows has 256 nonempty blocks, and the kernel counts to 255. Use instead: dense."
        )


@pytest.mark.parametrize(
    ("dtype", "structure", "shape", "encodings"),
    [
        ("float32", "dense layer", (10, 63), ("csr",)),
        ("float32", "dense layer", (10, 64), ("csr", "1x4")),
        ("float32", "convolution", (8, 3, 3, 16), ("csr + densify",)),
        ("float16", "dense layer", (10, 64), ("csr + densify",)),
        ("float32", "transposed convolution", (8, 3, 3, 16), ("csr + densify",)),
        ("dynamic", "dense layer", (10, 4080), ("1x16",)),
        ("dynamic", "dense layer", (10, 4096), ()),
        ("dynamic", "dense layer", (10, 4112), ()),
        ("dynamic", "dense layer", (10, 72), ()),
        ("dynamic", "convolution", (8, 3, 3, 16), ()),
        ("int8", "dense layer", (10, 4112), ("1x16",)),
        ("int8", "convolution", (8, 3, 3, 16), ("csr + densify",)),
        ("bfloat16", "dense layer", (10, 64), ()),
    ],
)
def test_what_a_weight_may_be(dtype, structure, shape, encodings):
    assert encodings_for(dtype, structure, shape) == encodings
    for encoding in ("dense", *encodings):
        check_allowed(dtype, structure, encoding, shape)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("dynamic", "dense layer", "csr", (10, 64)),
            "A dense layer with dynamic weights of shape (10, 64) cannot be stored as 'csr': the default delegate "
            "reads the short buffer as if it were dense. Use instead: 1x16 blocks, or dense int8 and gzip.",
        ),
        (
            ("dynamic", "dense layer", "1x16", (10, 4112)),
            "A dense layer with dynamic weights of shape (10, 4112) cannot be stored as '1x16': its 4112 inputs must "
            "be a multiple of 16 and be at most 4096. Use instead: dense.",
        ),
        (
            ("float32", "dense layer", "1x4", (10, 63)),
            "A dense layer with float32 weights of shape (10, 63) cannot be stored as '1x4': its 63 inputs must be a "
            "multiple of 4. Use instead: dense.",
        ),
        (
            ("float64", "dense layer", "csr", (10, 64)),
            "A dense layer with float64 weights of shape (10, 64) cannot be stored as 'csr': it was never seen to run. "
            "Use instead: dense.",
        ),
    ],
)
def test_a_refusal_says_why_and_what_else(arguments, message):
    with pytest.raises(ExportError) as caught:
        check_allowed(*arguments)
    assert str(caught.value) == message
