"""The search against a trial by hand; what is stopped goes on; what is wrong is said before training."""

from __future__ import annotations

import dataclasses
import sys
import warnings

import keras
import numpy as np
import pytest

from keras_sensprune import PruneAtEpochEnd, SearchSpace, SparsityTarget, record_text, search
from keras_sensprune.errors import ArgumentError, DataError, ExportError, MissingPackageError, TrainingError
from keras_sensprune.formulas.folds import stratified_folds
from keras_sensprune.formulas.pareto import pareto_front
from keras_sensprune.planning import search as module
from keras_sensprune.records import from_json, to_json
from tests.planning.small import WEIGHTS, Counted, X, Y, build, never

pytest.importorskip("optuna")

# From thresholds that prune nothing to those that leave one weight per tensor: neither may raise a warning.
SPACE = SearchSpace(strength=(1e-4, 1e-1), threshold=(1e-6, 5.0), learning_rate=(0.05, 0.5))
PLAN = {"epochs": 2, "batch_size": 10, "seed": 5}


def timeless(record):
    return dataclasses.replace(record, trials=tuple(dataclasses.replace(t, seconds=0.0) for t in record.trials))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("search") / "search.json"


@pytest.fixture(scope="module")
def found(path):
    return search(build, (X, Y), SPACE, **PLAN, trials=4, path=path, verbose=False)


@pytest.fixture
def pruned_at_once(monkeypatch):
    """In place of trainings: everything below the threshold goes, nothing is learned."""

    def fit(model, settings, examples, epochs, rule, sensitivity):
        for layer in model.layers:
            kernel = layer.kernel.numpy()
            keep = np.abs(kernel) >= min(rule, np.abs(kernel).max())
            layer.kernel.assign(kernel * keep)

    monkeypatch.setattr(module, "fit", fit)


def by_hand(rule, values, training, validation):
    keras.utils.set_random_seed(5)
    model = build(*values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(*training, batch_size=10, epochs=2, verbose=0, callbacks=[PruneAtEpochEnd(rule)])
    accuracy = model.evaluate(*validation, verbose=0, return_dict=True, batch_size=10)["accuracy"]
    nonzero = sum(np.count_nonzero(layer.kernel.numpy()) for layer in model.layers)
    return 100 * (1 - accuracy), nonzero


def test_a_trial_is_the_fit_done_by_hand(found):
    held_out = stratified_folds(Y, 10, seed=5) == 0
    assert held_out.sum() == 6
    parts = (X[~held_out], Y[~held_out]), (X[held_out], Y[held_out])
    for trial in found.trials[1:3]:
        strength, threshold, learning_rate = trial.values
        error, nonzero = by_hand(threshold, (strength, learning_rate), *parts)
        assert (trial.error, trial.size) == (error, nonzero)
        assert (trial.sparsity, trial.compression) == (1 - nonzero / WEIGHTS, WEIGHTS / nonzero)


def test_sparsities_are_searched_with_the_rule_for_them():
    space = SearchSpace(strength=(1e-3, 1e-3), sparsity=(0.3, 0.8))
    found = search(build, (X, Y), space, **PLAN, trials=1, validation_data=(X[:20], Y[:20]), verbose=False)
    (trial,) = found.trials
    assert trial.values[0] == 1e-3
    error, nonzero = by_hand(SparsityTarget(trial.values[1]), (1e-3,), (X, Y), (X[:20], Y[:20]))
    assert (trial.error, trial.size) == (error, nonzero)
    # exactly round(s n) weights go
    assert nonzero == WEIGHTS - round(trial.values[1] * WEIGHTS)


def test_the_front_is_that_of_error_and_size(found):
    points = [(trial.error, trial.size) for trial in found.trials]
    assert list(found.front) == pareto_front(points)
    assert found.dense_size == WEIGHTS
    assert found.size == "nonzero weights"


def test_resumed_is_uninterrupted_and_more_trials_may_be_asked_for(found, path, tmp_path, capsys):
    assert from_json(path.read_text()) == found
    other = tmp_path / "search.json"
    first = dataclasses.replace(found, trials=found.trials[:3], front=())
    other.write_text(
        to_json(dataclasses.replace(first, front=tuple(pareto_front([(t.error, t.size) for t in first.trials]))))
    )
    counted = Counted()
    again = search(counted, (X, Y), SPACE, **PLAN, trials=4, path=other)
    assert timeless(again) == timeless(found)
    assert len(counted.calls) == 2  # the look at the model, and one trial
    line = capsys.readouterr().out
    assert line.startswith("trial 3 (4 of 4): strength ")
    assert f"{found.trials[3].compression:.4g}x smaller, " in line


def test_a_finished_search_trains_nothing(found, path):
    counted = Counted()
    assert search(counted, (X, Y), SPACE, **PLAN, trials=2, path=path, verbose=False) == found
    assert len(counted.calls) == 1


def test_ctrl_c_returns_the_finished_trials(pruned_at_once, tmp_path, monkeypatch, capsys):
    path = tmp_path / "search.json"
    fit, calls = module.fit, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        fit(*arguments)

    monkeypatch.setattr(module, "fit", stopped)
    found = search(build, (X, Y), SPACE, **PLAN, trials=9, path=path)
    assert len(found.trials) == 2
    assert capsys.readouterr().out.endswith("Stopped; 2 trials are finished.\n")
    assert from_json(path.read_text()) == found
    whole = search(build, (X, Y), SPACE, **PLAN, trials=3, path=path, verbose=False)
    assert whole.trials[:2] == found.trials
    calls.clear()
    calls += [None, None]
    with pytest.raises(KeyboardInterrupt):  # nothing is finished, so there is nothing to return
        search(build, (X, Y), SPACE, **PLAN, trials=3, verbose=False)


def test_minutes_end_a_search_after_at_least_one_trial(pruned_at_once):
    found = search(build, (X, Y), SPACE, **PLAN, minutes=1e-6, verbose=False)
    assert len(found.trials) == 1


def test_the_second_objective_may_be_any_size(pruned_at_once):
    def kibibytes(model):
        return 1 + sum(np.count_nonzero(w) for w in model.get_weights()) / 1024

    found = search(build, (X, Y), SPACE, **PLAN, trials=2, size_of=kibibytes, verbose=False)
    assert found.size == "kibibytes"
    assert found.dense_size == 1 + WEIGHTS / 1024  # biases begin at zero
    assert all(trial.size < found.dense_size for trial in found.trials if trial.sparsity)
    assert [trial.compression for trial in found.trials] == [found.dense_size / trial.size for trial in found.trials]


def test_a_trial_that_diverges_is_told_and_the_search_goes_on(pruned_at_once, monkeypatch, capsys):
    fit, calls = module.fit, []

    def diverging(*arguments):
        calls.append(arguments)
        if len(calls) % 2:
            raise TrainingError("step 3: NaN in the loss")
        fit(*arguments)

    monkeypatch.setattr(module, "fit", diverging)
    found = search(build, (X, Y), SPACE, **PLAN, trials=4)
    assert [bool(trial.failure) for trial in found.trials] == [True, False] * 2
    assert set(found.front) <= {1, 3}
    assert "failed after" in capsys.readouterr().out
    assert record_text(found).startswith("Search: 4 trials, 2 failed, ")
    monkeypatch.setattr(module, "fit", lambda *arguments: calls.clear() or diverging(*arguments))
    with pytest.raises(TrainingError, match=r"All 2 trials failed\. The last one: step 3: NaN in the loss"):
        search(build, (X, Y), SPACE, **PLAN, trials=2, verbose=False)


def test_a_file_that_cannot_be_made_fails_its_trial_only(pruned_at_once):
    asked = []

    def size_of(model):
        asked.append(model)
        if len(asked) == 2:  # after the look at the dense network
            raise ExportError("the file does not agree")
        return 1000.0

    found = search(build, (X, Y), SPACE, **PLAN, trials=2, size_of=size_of, verbose=False)
    assert [trial.failure for trial in found.trials] == ["the file does not agree", ""]


WRONG = {
    "space": ({"space": (1e-3, 1e-2)}, "Argument `space` must be a SearchSpace."),
    "no limit": ({"trials": None}, "Argument `trials` must be an integer of at least 1 if `minutes` is None."),
    "trials": ({"trials": 0}, "Argument `trials` must be an integer of at least 1. Received: 0."),
    "minutes": ({"minutes": 0}, "Argument `minutes` must be a finite number above 0. Received: 0."),
    "data": ({"data": None}, "Argument `data` must be a pair (x, y) of arrays of numbers"),
    "few": ({"data": (X[:9], Y[:9])}, "Argument `data` must be of at least 10 examples if there are no `validation"),
    "validation": ({"validation_data": X}, "Argument `validation_data` must be a pair (x, y) of arrays of numbers"),
    "epochs": ({"epochs": 1.5}, "Argument `epochs` must be an integer of at least 1. Received: 1.5."),
    "size_of": ({"size_of": "bytes"}, "Argument `size_of` must be a function from a model to a positive number"),
    "seed": ({"seed": -1}, "Argument `seed` must be an integer of at least 0. Received: -1."),
    "build": ({"build": 3}, "Argument `build` must be a function that returns a new, compiled Keras model."),
    "path": ({"path": "missing/search.json"}, "Argument `path` must be the path of a file in an existing, writable"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_before_any_model_is_built(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed, message = WRONG[name]
    arguments = {"build": never, "data": (X, Y), "space": SPACE, **PLAN, "trials": 1, **changed}
    with pytest.raises(ArgumentError) as caught:
        search(**arguments)
    assert str(caught.value).startswith(message.removesuffix("."))
    assert not list(tmp_path.iterdir())


def test_a_sparsity_that_would_empty_a_tensor_is_refused_before_any_training():
    space = SearchSpace(strength=(1e-3, 1e-2), sparsity=(0.5, 0.99))  # round(0.99 * 56) = 55 of 56, two tensors
    with pytest.raises(ArgumentError, match=r"Argument `sparsity` must be at most 0.964286: a tensor is never emptied"):
        search(build, (X, Y), space, **PLAN, trials=1)


@pytest.mark.parametrize("size", [0, -1.0, float("nan"), "small", None])
def test_a_size_that_is_none_is_refused_before_any_training(size):
    with pytest.raises(ArgumentError, match="Argument `size_of` must be a function that returns a finite number above"):
        search(build, (X, Y), SPACE, **PLAN, trials=1, size_of=lambda model: size)


def test_without_optuna_nothing_begins(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError, match="The search needs Optuna"):
        search(never, (X, Y), SPACE, **PLAN, trials=1)


def test_a_file_of_another_space_or_with_parts_that_do_not_fit_is_refused(found, path, tmp_path):
    before = path.read_bytes()
    space = dataclasses.replace(SPACE, threshold=(1e-6, 4.0))
    with pytest.raises(DataError, match="it belongs to a search with other settings: ranges was"):
        search(build, (X, Y), space, **PLAN, trials=4, path=path)
    assert path.read_bytes() == before
    other = tmp_path / "search.json"
    no_error = dataclasses.replace(found.trials[0], error=None)
    for damage in ({"front": ()}, {"trials": ()}, {"trials": (no_error, *found.trials[1:])}):
        other.write_text(to_json(dataclasses.replace(found, **damage)))
        with pytest.raises(DataError, match="its parts do not fit together"):
            search(build, (X, Y), SPACE, **PLAN, trials=4, path=other)
