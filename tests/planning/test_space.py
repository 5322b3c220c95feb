"""The ranges of a search, and what is proposed in them: a function of the record alone."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest

from keras_sensprune import SearchSpace
from keras_sensprune.errors import ArgumentError, MissingPackageError
from keras_sensprune.planning.space import import_optuna, proposal
from keras_sensprune.records import FitSettings, SearchRecord, SearchTrial

optuna = pytest.importorskip("optuna")

SETTINGS = FitSettings("60 examples", 100, 5, 32, "accuracy", "max", "kind=auto", 0)
SPACE = SearchSpace(strength=(1e-4, 1e-2), sparsity=(0.5, 0.99), learning_rate=(0.1, 0.1))


def searched(space, trials, seed=0):
    """A record after so many trials, whose error grows with the strength and whose size is what the sparsity says."""
    settings = dataclasses.replace(SETTINGS, seed=seed)
    record = SearchRecord(settings, space.ranges(), "nonzero weights", 100)
    for number in range(trials):
        values = proposal(record)
        if number % 5 == 4:
            trial = SearchTrial(values, None, None, None, None, 1.0, "diverged")
        else:
            size = 100 * (1 - values[1])
            trial = SearchTrial(values, 5 + math.log10(values[0]), size, values[1], 100 / size, 1.0)
        record = dataclasses.replace(record, trials=(*record.trials, trial))
    return record


def test_ranges_come_in_the_order_of_the_fields():
    assert [r.name for r in SPACE.ranges()] == ["strength", "sparsity", "learning_rate"]
    assert [r.name for r in SearchSpace((1, 2), threshold=(0.1, 0.2)).ranges()] == ["strength", "threshold"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": None}, "Argument `threshold` must be a range if `sparsity` is None, and None if it is not."),
        (
            {"sparsity": (0.5, 0.9)},
            "Argument `threshold` must be a range if `sparsity` is None, and None if it is not.",
        ),
        ({"strength": None}, "Argument `strength` must be a pair (low, high) of finite numbers with 0 < low <= high."),
        ({"strength": 1e-3}, "Argument `strength` must be a pair (low, high) of finite numbers with 0 < low <= high."),
        ({"threshold": (0.0, 0.1)}, "Argument `threshold` must be a pair (low, high) of finite numbers with 0 < low"),
        ({"learning_rate": (0.2, 0.1)}, "Argument `learning_rate` must be a pair (low, high) of finite numbers with"),
        ({"learning_rate": (0.2, math.inf)}, "Argument `learning_rate` must be a pair (low, high) of finite numbers"),
        (
            {"threshold": None, "sparsity": (50, 99)},
            "Argument `sparsity` must be a fraction in [0, 1). Received: 99.0.",
        ),
    ],
)
def test_ranges_that_are_none_are_refused(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        SearchSpace(**{"strength": (1e-4, 1e-2), "threshold": (0.01, 0.1), **arguments})
    assert str(caught.value).startswith(message)


def test_proposals_lie_in_their_ranges_and_repeat():
    record = searched(SPACE, 25)  # the first ten are random, the others are drawn by the model of the trials
    for trial in record.trials:
        for value, bounds in zip(trial.values, record.ranges, strict=True):
            # a sparsity is 1 - density: one rounding of 2^-53
            assert bounds.low - 2**-53 <= value <= bounds.high + 2**-53
    assert len({trial.values for trial in record.trials}) == 25
    assert searched(SPACE, 25) == record
    assert searched(SPACE, 3, seed=1).trials[0].values != record.trials[0].values


def test_a_proposal_depends_on_the_record_alone():
    """So a search that was stopped after any number of trials makes the same trials as one that was not."""
    record = searched(SPACE, 16)
    for done in (0, 4, 11, 15):
        cut = dataclasses.replace(record, trials=record.trials[:done])
        assert proposal(cut) == record.trials[done].values


def test_later_proposals_are_better_than_the_random_ones():
    """Here the error depends on the strength alone, so a good search turns to small ones."""
    record = searched(SearchSpace(strength=(1e-4, 1e-2), threshold=(0.5, 0.5)), 40)
    logs = [math.log10(trial.values[0]) for trial in record.trials]
    assert sum(logs[20:]) / 20 < sum(logs[:10]) / 10


def test_optuna_says_nothing_and_is_left_as_it_was(capfd):
    before = optuna.logging.get_verbosity()
    searched(SPACE, 2)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before


def test_without_optuna_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError) as caught:
        import_optuna()
    assert str(caught.value) == 'The search needs Optuna: pip install "keras-sensprune[search]"'
