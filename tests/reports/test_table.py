"""Tables are compared as whole text: alignment is what they are for."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

from keras_sensprune.records import LayerRecord, SparsityReport, from_json, to_json
from keras_sensprune.reports.table import report_markdown, report_text

FC1 = LayerRecord("lenet/fc1", "Dense", (784, 300), 235_200, 11_760, 300, 250, 300, 120, True)
NORM = LayerRecord("lenet/norm", "BatchNormalization", (300,), 0, 0, 600, 300, 0, 0, False)
FC2 = LayerRecord("lenet/fc2", "Dense", (300, 10), 3_000, 150, 10, 10, 10, 0, True)
REPORT = SparsityReport("lenet", (FC1, NORM, FC2))

# 11,760 / 235,200 = 5 %; weights 238,200 / 11,910 = 20; with biases 239,110 / 12,470 = 19.175, 100 / 19.175 = 5.215
TEXT = """\
Model: lenet
layer             kind                shape    weights  nonzero  % left  dead units
-----------------------------------------------------------------------------------
lenet/fc1         Dense               784x300  235,200   11,760    5.00     120/300
lenet/norm        BatchNormalization  300            0        0       -           -
lenet/fc2         Dense               300x10     3,000      150    5.00        0/10
-----------------------------------------------------------------------------------
weights                                        238,200   11,910    5.00
weights + biases                               239,110   12,470    5.22
compression: 20.00x (weights), 19.17x (weights + biases)"""

MARKDOWN = """\
**Model: lenet**

| layer | kind | shape | weights | nonzero | % left | dead units |
|---|---|---|--:|--:|--:|--:|
| lenet/fc1 | Dense | 784x300 | 235,200 | 11,760 | 5.00 | 120/300 |
| lenet/norm | BatchNormalization | 300 | 0 | 0 | - | - |
| lenet/fc2 | Dense | 300x10 | 3,000 | 150 | 5.00 | 0/10 |
| weights |  |  | 238,200 | 11,910 | 5.00 |  |
| weights + biases |  |  | 239,110 | 12,470 | 5.22 |  |

compression: 20.00x (weights), 19.17x (weights + biases)"""


def test_text_table_as_a_whole():
    assert report_text(REPORT) == TEXT


def test_markdown_table_as_a_whole():
    assert report_markdown(REPORT) == MARKDOWN


def test_report_read_from_json_prints_the_same():
    assert report_text(from_json(to_json(REPORT))) == TEXT


def test_report_without_layers_says_so():
    empty = SparsityReport("empty", ())
    assert report_text(empty) == "Model: empty\nNo layer has weights."
    assert report_markdown(empty) == "**Model: empty**\n\nNo layer has weights."


def test_model_pruned_to_nothing_has_infinite_compression():
    dead = dataclasses.replace(FC2, nonzero_weights=0, nonzero_biases=0, dead_units=10)
    lines = report_text(SparsityReport("dead", (dead,))).splitlines()
    assert lines[-3:] == [
        "weights                            3,000        0    0.00",
        "weights + biases                   3,010        0    0.00",
        "compression: inf (weights), inf (weights + biases)",
    ]
    assert report_markdown(SparsityReport("dead", (dead,))).endswith("\n" + lines[-1])


def test_only_biases_left_is_finite_with_biases():
    dead = dataclasses.replace(FC2, nonzero_weights=0)
    last = report_text(SparsityReport("dead", (dead,))).splitlines()[-1]
    assert last == "compression: inf (weights), 301.00x (weights + biases)"  # 3,010 / 10


def test_long_path_loses_its_middle_in_text_but_not_in_markdown():
    path = "model/" + "block/" * 20 + "conv"
    report = SparsityReport("deep", (dataclasses.replace(FC2, path=path),))
    row = report_text(report).splitlines()[3]
    assert row.split()[0] == "model/block/block/...ck/block/block/conv"
    assert len(row.split()[0]) == 40
    assert f"| {path} |" in report_markdown(report)


def test_hostile_names_cannot_break_the_table():
    report = SparsityReport("a\nb", (dataclasses.replace(FC2, path="x|y\n| z |"),))
    lines = report_markdown(report).splitlines()
    assert lines[0] == "**Model: a b**"
    assert lines[4].startswith("| x\\|y \\| z \\| | Dense |")
    assert len(lines) == len(MARKDOWN.splitlines()) - 2  # two layers fewer
    assert len(report_text(report).splitlines()) == len(TEXT.splitlines()) - 2


def test_tables_need_neither_keras_nor_numpy():
    code = (
        "import sys, keras_sensprune.reports.table; sys.exit(bool({'keras', 'tensorflow', 'numpy'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
