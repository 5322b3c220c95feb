"""Table and picture of a search from a record; no model is needed."""

from __future__ import annotations

import dataclasses

import pytest

from keras_sensprune.errors import ArgumentError
from keras_sensprune.records import (
    CrossValidationRecord,
    FitSettings,
    FoldTraining,
    SearchRange,
    SearchRecord,
    SearchTrial,
    SettingRecord,
    from_json,
    to_json,
)
from keras_sensprune.reports.files import record_text
from keras_sensprune.reports.plot_search import plot_search

SETTINGS = FitSettings("60 examples", 1000, 5, 32, "accuracy", "max", "kind=auto", 0)
TRIALS = (
    SearchTrial((1e-3, 0.02), 3.0, 100, 0.9, 10.0, 2.0),
    SearchTrial((2e-3, 0.05), 4.5, 1000, 0.0, 1.0, 2.0),
    SearchTrial((3e-3, 0.01), None, None, None, None, 1.0, "diverged"),
    SearchTrial((1e-4, 0.04), 2.0, 500, 0.5, 2.0, 2.5),
)
RANGES = (SearchRange("strength", 1e-5, 1e-2), SearchRange("threshold", 0.01, 0.1))
RECORD = SearchRecord(SETTINGS, RANGES, "nonzero weights", 1000, TRIALS, (3, 0))
BEST, CHOSEN = SettingRecord(1e-4, 0.01, 2.0, 0.5, 0.5, 0.01), SettingRecord(1e-4, 0.05, 2.25, 0.25, 0.9, 0.002)
FOLDS = CrossValidationRecord(
    SETTINGS,
    (1e-4, 1.0),
    (0.01, 0.05),
    2,
    0,
    (
        FoldTraining(1e-4, 0, (2.0, 2.25), (0.5, 0.9), 3.0),
        FoldTraining(1e-4, 1, (2.0, 2.25), (0.5, 0.9), 3.0),
        FoldTraining(1.0, 0, (), (), 1.0, "NaN"),
    ),
    (BEST, CHOSEN),
    BEST,
    CHOSEN,
)


def test_the_front_as_a_table():
    assert record_text(RECORD) == (
        "Search: 4 trials, 1 failed, 8 s, 5 epochs each, 1,000 weights, seed 0\n"
        "Pareto front of error and nonzero weights: 2 trials\n"
        "trial  strength  threshold  error, %  nonzero weights  sparsity, %  smaller\n"
        "3      0.0001    0.04              2              500        50.00    2.00x\n"
        "0      0.001     0.02              3              100        90.00   10.00x"
    )
    assert record_text(from_json(to_json(RECORD))) == record_text(RECORD)


def test_a_search_of_losses_names_them_and_one_without_a_front_has_no_table():
    settings = dataclasses.replace(SETTINGS, metric="loss", mode="min")
    lines = record_text(dataclasses.replace(RECORD, settings=settings)).splitlines()
    assert lines[2].split()[3] == "loss"
    assert len(record_text(dataclasses.replace(RECORD, front=())).splitlines()) == 2


def test_folds_as_a_table():
    assert record_text(FOLDS) == (
        "Cross-validation: 2 folds, 3 of 4 trainings done, 5 epochs each, 1,000 weights, seed 0\n"
        "strength  threshold  error, %    +-  sparsity, %    +-\n"
        "0.0001    0.01              2   0.5        50.00  1.00  best\n"
        "0.0001    0.05           2.25  0.25        90.00  0.20  chosen\n"
        "failed: strength 1, fold 0: NaN"
    )
    unfinished = dataclasses.replace(FOLDS, results=(), best=None, chosen=None)
    assert len(record_text(unfinished).splitlines()) == 2


def test_the_picture_shows_all_finished_trials_and_the_front_as_steps():
    axes = plot_search(RECORD).axes[0]
    assert sorted(axes.collections[0].get_offsets().tolist()) == [[1.0, 4.5], [2.0, 2.0], [10.0, 3.0]]
    line = axes.lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([2.0, 10.0], [2.0, 3.0])
    # between two trials, an error at which at least this compression can be had
    assert line.get_drawstyle() == "steps-pre"
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "validation error, %"
    assert axes.get_title() == "4 trials, 2 on the Pareto front"


def test_the_picture_is_written_and_a_search_without_a_front_is_refused(tmp_path):
    path = tmp_path / "search.png"
    assert plot_search(RECORD, path, title="Mine") == path
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentError, match="overwrite=True"):
        plot_search(RECORD, path)
    with pytest.raises(
        ArgumentError, match="Argument `record` must be a SearchRecord with at least one finished trial"
    ):
        plot_search(dataclasses.replace(RECORD, front=()), overwrite=True)
