"""The benchmark of the tolerance rule's share: it runs, and the seconds in the rule are those of its parts."""

import importlib
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


def test_the_page_says_what_was_measured(script):
    assert script.fresh() == script.PAGE.read_text(encoding="utf-8"), (
        "Repair it with: python benchmarks/tolerance_share.py --page"
    )


@pytest.mark.slow
def test_the_quick_mode_runs(script, mnist_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_SENSPRUNE_DATA", str(mnist_path))
    script.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(script.WHEN)
    assert all(" s in the rule, " in line for line in lines)
