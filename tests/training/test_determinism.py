"""Same seed, same machine, same result, bit for bit: weights, masks, sensitivities, records and the exported file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def start(folder, *arguments):
    program = Path(__file__).with_name("one_run.py")
    folder.mkdir()
    # Python's hashes differ, so nothing may depend on the order of a set.
    environment = {**os.environ, "PYTHONHASHSEED": str(len(list(folder.parent.iterdir())))}
    command = [sys.executable, str(program), str(folder), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def result(process):
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.split("RESULT")[1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    one = start(folder / "one", "specific:0", "unspecific:0", "specific:1")
    two = start(folder / "two", "specific:0", "unspecific:0")
    return result(one), result(two)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["specific:0", "unspecific:0"])
def test_two_processes_with_one_seed_give_equal_bits(setting, runs):
    one, two = runs
    assert one[setting] == two[setting]


@pytest.mark.slow
@pytest.mark.parametrize("other", ["unspecific:0", "specific:1"])
def test_what_is_compared_depends_on_seed_and_sensitivity(other, runs):
    one, two = runs[0]["specific:0"], runs[0][other]
    assert [name for name in one if one[name] == two[name]] == []


@pytest.mark.slow
def test_random_numbers_without_a_seed_are_refused(runs):
    assert runs[0]["unseeded"].startswith("Random ops require a seed to be set when determinism is enabled.")
