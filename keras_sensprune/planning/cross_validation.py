"""Cross-validation of strength and threshold: one training per strength and fold, the thresholds afterwards."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sensprune.errors import TrainingError, argument_error, integer_argument, number_argument
from keras_sensprune.formulas.folds import one_standard_error, stratified_folds
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.formulas.thresholds import threshold_mask
from keras_sensprune.planning.record_file import RecordFile
from keras_sensprune.planning.trials import (
    Build,
    Builder,
    Examples,
    copy_weights,
    error_of,
    examples_argument,
    fit,
    fit_settings,
    nonzero_weights,
    tried,
)
from keras_sensprune.records import CrossValidationRecord, FoldTraining, SettingRecord
from keras_sensprune.training.targets import prunable_weights


def cross_validate(
    build: Build,
    data: Any,
    strengths: Sequence[float],
    thresholds: Sequence[float],
    folds: int = 5,
    *,
    epochs: int,
    fine_tune_epochs: int = 0,
    batch_size: int = 32,
    metric: str = "accuracy",
    mode: str = "auto",
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> CrossValidationRecord:
    r"""Chooses a strength and a threshold by k-fold cross-validation.

    For each strength and fold a new model is trained once on the other folds, with the shrinkage and without pruning.
    Then each threshold is tried on its weights: every prunable $|w| < T$ becomes 0 (the largest one of a tensor stays,
    if it would be emptied), and the error $e$ is measured on the fold. Of all settings, the sparsest one is chosen
    whose mean error is at most $\bar e_b + \sigma_b / \sqrt k$, with $\bar e_b$ the lowest mean error and $\sigma_b$
    the standard deviation of that setting's errors over the $k$ folds. The error is the metric itself where less of it
    is better, and $100\,(1 - m)$ percent where more of the metric $m$ is better.

    The folds are drawn at random, by class where `y` holds integers (one per example) or one-hot rows. Training and
    weights of fold $i$ have the seed `seed` + $i$; the random state of Python, NumPy and Keras is set. A training that
    meets a value that is not finite takes its strength out of the choice.

    Args:
        build: a function `build(strength)` that returns a new, compiled model with `SensitivityRegularizer(strength)`
            on what shall be pruned. For fine-tuning it is called with 0.
        data: $(x, y)$, arrays of numbers of $n$ examples. Test data have no place here.
        strengths: those to be tried.
        thresholds: $T \ge 0$, those to be tried at each strength; 0 prunes nothing.
        folds: $k$, at least 2.
        epochs: of each training.
        fine_tune_epochs: further epochs at each threshold, with its zeros kept, without shrinkage and with a new
            optimizer; 0 for none.
        batch_size: examples per step, and per step of the evaluation.
        metric: `"loss"` or the name of a metric with which the model was compiled.
        mode: `"min"` if less is better, `"max"`, or `"auto"`: a loss falls, a metric says it itself, as in Keras.
        sensitivity: which sensitivity the rule uses; None means `Sensitivity()`.
        seed: of folds, weights and training; below $2^{31}$.
        path: a JSON file that is replaced after each training. If it exists, the cross-validation goes on from there.
        verbose: whether a line is printed after each training.

    Returns:
        A `CrossValidationRecord`; `record_text` prints it as a table. Its `chosen` holds strength and threshold.

    Raises:
        ArgumentError: before any training, if an argument is not allowed, there is no such metric, or `build` returns
            something else.
        ModelError: before any training, if the model has nothing to prune.
        DataError: before any training, if the file at `path` is damaged or belongs to other settings; later, if it
            cannot be written.
        TrainingError: if a training failed at every strength.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import SensitivityRegularizer, cross_validate
        >>> def build(strength):
        ...     layer = keras.layers.Dense(2, kernel_regularizer=SensitivityRegularizer(strength))
        ...     model = keras.Sequential([keras.Input((4,)), layer])
        ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ...     model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        ...     return model
        >>> x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int32")
        >>> found = cross_validate(build, (x, y), [1e-3], [0.0, 0.3], folds=2, epochs=3, verbose=False)
        >>> found.chosen.strength, len(found.results)
        (0.001, 2)

    Reference: Breiman et al., "Classification and Regression Trees", 1984, for the rule of one standard error.
    """
    make, examples = Builder(build), examples_argument("data", data)
    settings = fit_settings(
        [examples],
        epochs=epochs,
        batch_size=batch_size,
        metric=metric,
        mode=mode,
        sensitivity=sensitivity,
        seed=seed,
    )
    tuples = _grid("strengths", strengths), _grid("thresholds", thresholds)
    fold_of = stratified_folds(examples.classes(), folds, seed)
    integer_argument("fine_tune_epochs", fine_tune_epochs, 0)
    file = RecordFile(path)
    settings = tried(make((tuples[0][0],), seed), settings, examples)
    plan = CrossValidationRecord(settings, *tuples, folds, fine_tune_epochs)
    record = file.resumed(plan, _consistent)
    for strength, fold in _order(record)[len(record.trainings) :]:
        training = _training(make, record, sensitivity, (strength, fold), _split(examples, fold_of == fold))
        record = dataclasses.replace(record, trainings=(*record.trainings, training))
        file.write(record)
        if verbose:
            print(_line(record))
    record = _concluded(record)
    file.write(record)
    return record


def _grid(name: str, values: Any) -> tuple[float, ...]:
    """The values as different, finite floats of at least 0, at least one."""
    allowed = "one or more different, finite numbers of at least 0"
    try:
        numbers = tuple(number_argument(name, value, allowed) for value in values)
    except TypeError:
        raise argument_error(name, allowed, values) from None
    if not numbers or len(set(numbers)) < len(numbers):
        raise argument_error(name, allowed, values)
    return numbers


def _order(record: CrossValidationRecord) -> list[tuple[float, int]]:
    return list(itertools.product(record.strengths, range(record.folds)))


def _consistent(record: CrossValidationRecord) -> bool:
    """Whether the trainings are the first ones in order, each complete or failed."""
    done, lengths = record.trainings, {len(record.thresholds)}
    complete = all(t.failure or {len(t.errors), len(t.sparsities)} == lengths for t in done)
    finite = all(math.isfinite(value) for t in done for value in (*t.errors, *t.sparsities))
    return complete and finite and [(t.strength, t.fold) for t in done] == _order(record)[: len(done)]


def _split(examples: Examples, held_out: np.ndarray) -> tuple[Examples, Examples]:
    return examples.part(~held_out), examples.part(held_out)


def _training(
    make: Builder,
    record: CrossValidationRecord,
    sensitivity: Sensitivity | None,
    cell: tuple[float, int],
    examples: tuple[Examples, Examples],
) -> FoldTraining:
    """One training and all thresholds on its weights."""
    begun, errors, failure = time.perf_counter(), [], ""
    try:
        errors = _swept(make, record, sensitivity, cell, examples)
    except TrainingError as error:
        failure = str(error)
    seconds = time.perf_counter() - begun
    return FoldTraining(*cell, tuple(e for e, _ in errors), tuple(s for _, s in errors), seconds, failure)


def _swept(
    make: Builder,
    record: CrossValidationRecord,
    sensitivity: Sensitivity | None,
    cell: tuple[float, int],
    examples: tuple[Examples, Examples],
) -> list[tuple[float, float]]:
    """(error, sparsity) at each threshold."""
    (strength, fold), (train, held_out), settings = cell, examples, record.settings
    seed = settings.seed + fold
    model = make((strength,), seed)
    fit(model, settings, train, settings.epochs, 0.0, sensitivity)
    trained = model.get_weights()
    found = []
    for threshold in record.thresholds:
        model.set_weights(trained)
        _remove_below(model, threshold)
        pruned = model
        if record.fine_tune_epochs:
            pruned = make((0.0,), seed)
            copy_weights(model, pruned)
            fit(pruned, settings, train, record.fine_tune_epochs, 0.0, Sensitivity("none"))
        left = nonzero_weights(pruned) / settings.weights
        found.append((error_of(pruned, settings, held_out), 1.0 - left))
    return found


def _remove_below(model: Any, threshold: float) -> None:
    """Sets every prunable |w| < T to zero, as the callback does."""
    for target in prunable_weights(model):
        value = target.variable.numpy()
        if value.any():
            mask, _ = threshold_mask(value, threshold, value != 0)
            target.variable.assign(np.where(mask, value, np.zeros((), value.dtype)))


def _line(record: CrossValidationRecord) -> str:
    last, done = record.trainings[-1], len(record.trainings)
    head = f"training {done}/{len(_order(record))}: strength {last.strength:g}, fold {last.fold}"
    if last.failure:
        return f"{head}: failed after {last.seconds:.1f} s: {last.failure}"
    shown = ", ".join(f"{t:g}: {e:.4g}" for t, e in zip(record.thresholds, last.errors, strict=True))
    return f"{head}: {last.seconds:.1f} s; error at threshold {shown}"


def _concluded(record: CrossValidationRecord) -> CrossValidationRecord:
    """The record with means, deviations and the choice."""
    by_strength = [record.trainings[i : i + record.folds] for i in range(0, len(record.trainings), record.folds)]
    good = [trainings for trainings in by_strength if not any(training.failure for training in trainings)]
    if not good:
        failures = [training.failure for training in record.trainings if training.failure]
        raise TrainingError(f"At every strength a training failed. The last one: {failures[-1]}")
    # (strengths, folds, thresholds) -> (settings, folds)
    errors, sparsities = (
        np.array([[getattr(t, name) for t in trainings] for trainings in good]).swapaxes(1, 2).reshape(-1, record.folds)
        for name in ("errors", "sparsities")
    )
    settings = itertools.product([trainings[0].strength for trainings in good], record.thresholds)
    results = tuple(
        SettingRecord(*setting, float(e.mean()), float(e.std(ddof=1)), float(s.mean()), float(s.std(ddof=1)))
        for setting, e, s in zip(settings, errors, sparsities, strict=True)
    )
    chosen, best = one_standard_error(errors, sparsities)
    return dataclasses.replace(record, results=results, best=results[best], chosen=results[chosen])
