"""The table of layers in docs/tfmot.md is the one in the code."""

import re
from pathlib import Path

from keras_sensprune.tfmot.layers import TABLE
from keras_sensprune.tfmot.qat import WEIGHTED, WEIGHTLESS


def test_the_page_says_what_the_code_does():
    page = (Path(__file__).parents[2] / "docs" / "tfmot.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \| yes \| ([\w\- ]+) \|$", page, re.MULTILINE))
    assert list(rows) == list(TABLE)
    for kind, said in rows.items():
        expected = WEIGHTED.get(kind) or ("yes" if kind in WEIGHTLESS else "error")
        assert said == ("after a layer" if kind == "BatchNormalization" else expected), kind
