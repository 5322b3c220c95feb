"""Cross-validation against the same steps by hand; resumed = uninterrupted; what is wrong is said before training."""

from __future__ import annotations

import dataclasses
import statistics

import keras
import numpy as np
import pytest

from keras_sensprune import PruneAtEpochEnd, cross_validate, record_text
from keras_sensprune.errors import ArgumentError, DataError, ModelError, TrainingError
from keras_sensprune.formulas.folds import stratified_folds
from keras_sensprune.planning import cross_validation
from keras_sensprune.records import from_json, to_json
from tests.planning.small import WEIGHTS, Counted, X, Y, build, never

STRENGTHS, THRESHOLDS = (1e-3, 0.05), (0.0, 0.2, 9.0)
PLAN = {"folds": 2, "epochs": 2, "batch_size": 10, "seed": 3}


def timeless(record):
    trainings = tuple(dataclasses.replace(training, seconds=0.0) for training in record.trainings)
    return dataclasses.replace(record, trainings=trainings)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("folds") / "folds.json"


@pytest.fixture(scope="module")
def found(path):
    return cross_validate(build, (X, Y), STRENGTHS, THRESHOLDS, **PLAN, path=path, verbose=False)


@pytest.fixture
def untrained(monkeypatch):
    """Trainings that do nothing: for tests of what happens around them."""
    monkeypatch.setattr(cross_validation, "fit", lambda *arguments: None)


def test_a_training_and_its_thresholds_are_those_done_by_hand(found):
    training = found.trainings[3]
    assert (training.strength, training.fold) == (0.05, 1)
    held_out = stratified_folds(Y, 2, seed=3) == 1
    keras.utils.set_random_seed(3 + 1)
    model = build(0.05)
    model.fit(X[~held_out], Y[~held_out], batch_size=10, epochs=2, verbose=0, callbacks=[PruneAtEpochEnd(0.0)])
    trained = model.get_weights()
    for threshold, error, sparsity in zip(THRESHOLDS, training.errors, training.sparsities, strict=True):
        pruned = [np.where(np.abs(w) < threshold, 0, w) if w.ndim == 2 else w for w in trained]
        for w, old in zip(pruned, trained, strict=True):
            if w.ndim == 2 and not w.any():  # the largest one stays
                w.flat[np.argmax(np.abs(old))] = old.flat[np.argmax(np.abs(old))]
        model.set_weights(pruned)
        accuracy = model.evaluate(X[held_out], Y[held_out], verbose=0, return_dict=True, batch_size=10)["accuracy"]
        assert error == 100 * (1 - accuracy)
        nonzero = sum(np.count_nonzero(w) for w in pruned if w.ndim == 2)
        assert sparsity == 1 - nonzero / WEIGHTS
    assert training.sparsities[0] < training.sparsities[1] < training.sparsities[2] == 1 - 2 / WEIGHTS


def test_results_are_means_and_deviations_over_the_folds(found):
    assert [(r.strength, r.threshold) for r in found.results] == [(s, t) for s in STRENGTHS for t in THRESHOLDS]
    for number, result in enumerate(found.results):
        trainings = found.trainings[2 * (number // 3) : 2 * (number // 3) + 2]
        errors = [training.errors[number % 3] for training in trainings]
        sparsities = [training.sparsities[number % 3] for training in trainings]
        expected = [f(values) for values in (errors, sparsities) for f in (statistics.fmean, statistics.stdev)]
        measured = [result.error, result.error_deviation, result.sparsity, result.sparsity_deviation]
        # Two values each: a few roundings of 2^-53 relative to numbers of at most 100.
        np.testing.assert_allclose(measured, expected, rtol=0, atol=1e-12)
    assert found.best.error == min(result.error for result in found.results)
    allowed = found.best.error + found.best.error_deviation / 2**0.5
    assert found.chosen.sparsity == max(r.sparsity for r in found.results if r.error <= allowed)


def test_the_file_holds_the_record_and_a_second_call_trains_nothing(found, path):
    assert from_json(path.read_text()) == found
    counted = Counted()
    assert cross_validate(counted, (X, Y), STRENGTHS, THRESHOLDS, **PLAN, path=path, verbose=False) == found
    assert counted.calls == [(STRENGTHS[0],)]  # the look at the model before anything else


def test_resumed_is_uninterrupted(found, tmp_path, capsys):
    path = tmp_path / "folds.json"
    cut = dataclasses.replace(found, trainings=found.trainings[:3], results=(), best=None, chosen=None)
    path.write_text(to_json(cut))
    counted = Counted()
    again = cross_validate(counted, (X, Y), STRENGTHS, THRESHOLDS, **PLAN, path=path)
    assert timeless(again) == timeless(found)
    assert counted.calls == [(1e-3,), (0.05,)]
    printed = capsys.readouterr().out
    assert printed.startswith("training 4/4: strength 0.05, fold 1: ")
    assert f" s; error at threshold 0: {found.trainings[3].errors[0]:.4g}, 0.2: " in printed


def test_fine_tuning_keeps_the_zeros_and_trains_the_rest_without_shrinkage(found):
    counted = Counted()
    tuned = cross_validate(counted, (X, Y), [0.05], [0.2], **PLAN, fine_tune_epochs=1, verbose=False)
    assert [values for (values,) in counted.calls] == [0.05, 0.05, 0.0, 0.05, 0.0]
    assert [t.sparsities[0] for t in tuned.trainings] == [t.sparsities[1] for t in found.trainings[2:]]
    assert [t.errors[0] for t in tuned.trainings] != [t.errors[1] for t in found.trainings[2:]]


def test_the_table_marks_the_best_and_the_chosen(found):
    lines = record_text(found).splitlines()
    assert lines[0] == "Cross-validation: 2 folds, 4 of 4 trainings done, 2 epochs each, 56 weights, seed 3"
    assert lines[1].split() == ["strength", "threshold", "error,", "%", "+-", "sparsity,", "%", "+-"]
    assert len(lines) == 8
    assert sum("best" in line for line in lines) == sum("chosen" in line for line in lines) == 1


def test_a_training_that_diverges_takes_its_strength_out(monkeypatch, capsys):
    def fit(model, *arguments):
        if model.layers[0].kernel.regularizer.strength == 0.05:
            raise TrainingError("step 3: NaN in the loss")

    monkeypatch.setattr(cross_validation, "fit", fit)
    found = cross_validate(build, (X, Y), STRENGTHS, THRESHOLDS, **PLAN)
    assert [result.strength for result in found.results] == [1e-3] * 3
    assert [training.failure for training in found.trainings] == ["", "", *["step 3: NaN in the loss"] * 2]
    assert "failed after" in capsys.readouterr().out
    assert record_text(found).splitlines()[-1] == "failed: strength 0.05, fold 1: step 3: NaN in the loss"


def test_with_no_strength_left_there_is_no_choice(monkeypatch, tmp_path):
    def fit(model, *arguments):
        model.layers[-1].kernel.assign(np.full((8, 3), np.nan))

    monkeypatch.setattr(cross_validation, "fit", fit)
    arguments = {**PLAN, "metric": "loss", "path": tmp_path / "folds.json", "verbose": False}
    with pytest.raises(TrainingError, match=r"a training failed\. The last one: The validation metric"):
        cross_validate(build, (X, Y), [1e-3], [0.0], **arguments)
    assert len(from_json((tmp_path / "folds.json").read_text()).trainings) == 2


def test_losses_are_errors_as_they_are_and_one_hot_targets_have_classes(untrained):
    def mean_squares(strength):
        model = build(strength)
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    targets = np.eye(3, dtype="float32")[Y]
    found = cross_validate(mean_squares, (X, targets), [1e-3], [0.0], **PLAN, metric="loss", verbose=False)
    assert found.settings.mode == "min"
    keras.utils.set_random_seed(3)
    held_out = stratified_folds(Y, 2, seed=3) == 0
    model = mean_squares(1e-3)
    measured = model.evaluate(X[held_out], targets[held_out], verbose=0, batch_size=10, return_dict=True)
    assert found.trainings[0].errors == (measured["loss"],)


WRONG = {
    "build": ({"build": None}, "Argument `build` must be a function that returns a new, compiled Keras model."),
    "data": ({"data": X}, "Argument `data` must be a pair (x, y) of arrays of numbers"),
    "lengths": ({"data": (X, Y[1:])}, "Argument `data` must be a pair (x, y) of arrays of numbers"),
    "words": ({"data": (X, ["a"] * 60)}, "Argument `data` must be a pair (x, y) of arrays of numbers"),
    "nothing": ({"data": (X[:0], Y[:0])}, "Argument `data` must be a pair (x, y) of arrays of numbers"),
    "strengths": ({"strengths": []}, "Argument `strengths` must be one or more different, finite numbers"),
    "negative": ({"strengths": [-1e-4]}, "Argument `strengths` must be one or more different, finite numbers"),
    "number": ({"strengths": 1e-4}, "Argument `strengths` must be one or more different, finite numbers"),
    "twice": ({"thresholds": [0.1, 0.1]}, "Argument `thresholds` must be one or more different, finite numbers"),
    "folds": ({"folds": 61}, "Argument `folds` must be at most the number of examples, 60. Received: 61."),
    "epochs": ({"epochs": 0}, "Argument `epochs` must be an integer of at least 1. Received: 0."),
    "fine-tune": ({"fine_tune_epochs": -1}, "Argument `fine_tune_epochs` must be an integer of at least 0."),
    "batch": ({"batch_size": 0}, "Argument `batch_size` must be an integer of at least 1. Received: 0."),
    "metric": ({"metric": 3}, "Argument `metric` must be 'loss' or the name of a compiled metric. Received: 3."),
    "mode": ({"mode": "up"}, "Argument `mode` must be one of 'auto', 'min', 'max'. Received: 'up'."),
    "sensitivity": ({"sensitivity": "auto"}, "Argument `sensitivity` must be a Sensitivity or None."),
    "seed": ({"seed": 2**31}, "Argument `seed` must be an integer below 2147483648. Received: 2147483648."),
    "path": ({"path": "missing/folds.json"}, "Argument `path` must be the path of a file in an existing, writable"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_before_any_model_is_built(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed, message = WRONG[name]
    arguments = {"build": never, "data": (X, Y), "strengths": [1e-3], "thresholds": [0.1], **PLAN, **changed}
    with pytest.raises(ArgumentError) as caught:
        cross_validate(**arguments)
    assert str(caught.value).startswith(message.removesuffix("."))
    assert not list(tmp_path.iterdir())


def uncompiled(strength):
    model = build(strength)
    return keras.Sequential([keras.Input((4,)), *model.layers])


def dense(strength):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse", metrics=["accuracy"])
    return model


SAME = build(1e-3)


@pytest.mark.parametrize(
    ("built", "arguments", "kind", "message"),
    [
        (lambda strength: None, {}, ArgumentError, "Argument `build` must be a function that returns a compiled"),
        (uncompiled, {}, ArgumentError, "Argument `build` must be a function that returns a compiled Keras model"),
        (lambda strength: SAME, {}, ArgumentError, "Argument `build` must be a function that makes a new model at"),
        (dense, {}, ModelError, "has no trainable weight with a SensitivityRegularizer"),
        (build, {"metric": "auc"}, ArgumentError, "Argument `metric` must be one of 'accuracy', 'loss'"),
        (build, {"data": (X[:, :3], Y)}, ArgumentError, "Argument `data` must be data on which the model can be"),
    ],
    ids=["none", "uncompiled", "same", "dense", "metric", "shape"],
)
def test_a_wrong_model_or_metric_is_found_before_any_training(built, arguments, kind, message, monkeypatch):
    def fit(*arguments):
        raise AssertionError("a training began")

    monkeypatch.setattr(cross_validation, "fit", fit)
    with pytest.raises(kind) as caught:
        cross_validate(built, arguments.pop("data", (X, Y)), [1e-3], [0.1], **{**PLAN, **arguments})
    assert message in str(caught.value)


def test_a_file_of_other_data_or_strengths_is_refused_and_kept(found, path, untrained):
    before = path.read_bytes()
    with pytest.raises(
        DataError, match=r"other settings: data was '60 examples, .*; strengths was \(0.001, 0.05\), now"
    ):
        cross_validate(build, (X + 1, Y), [1e-3], THRESHOLDS, **PLAN, path=path)
    assert path.read_bytes() == before


def test_trainings_that_do_not_fit_the_plan_are_damage(found, tmp_path, untrained):
    path = tmp_path / "folds.json"
    for trainings in (found.trainings[1:], (dataclasses.replace(found.trainings[0], errors=(1.0,)),)):
        path.write_text(to_json(dataclasses.replace(found, trainings=trainings)))
        with pytest.raises(DataError, match="its parts do not fit together"):
            cross_validate(build, (X, Y), STRENGTHS, THRESHOLDS, **PLAN, path=path)
