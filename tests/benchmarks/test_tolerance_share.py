"""The benchmark of the tolerance rule's share: it runs, and the seconds in the rule are those of its parts."""

import importlib
import json
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """The module of the benchmark."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("tolerance_share")


def test_the_seconds_of_the_rule_are_added_up(script, monkeypatch):
    class Rule:
        def check(self, session, moment):
            self.measure(session)

        def choose(self, session, families, moment):
            return [self.measure(session) for _ in range(3)]

        def measure(self, session):
            return session

    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    kind = script.timed(Rule)
    rule = kind()
    rule.check("session", "moment")
    assert rule.choose("session", [], "moment") == ["session"] * 3
    assert (kind.seconds, kind.evaluations) == (10 + 10, 1 + 3)


def test_the_page_says_what_was_measured():
    record = json.loads((BENCHMARKS / "results" / "tolerance-share-lenet-300-100.json").read_text())
    every, fifth, plateau = (f"{100 * row['share']:.0f} %" for row in record["runs"].values())
    text = " ".join((BENCHMARKS.parent / "docs" / "rules.md").read_text().split())
    assert (
        f"takes {every} of the training when it searches after every epoch, {fifth} after every fifth one, and" in text
    )
    assert f"and {plateau} when it waits for a plateau" in text


@pytest.mark.slow
def test_the_quick_mode_runs(script, mnist_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_SENSPRUNE_DATA", str(mnist_path))
    script.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["every epoch", "every fifth epoch", "at the plateau"]
    assert all(" s in the rule, " in line for line in lines)
