"""Search among settings for two objectives at once: the validation error and the size of the network."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any

from keras_sensprune.errors import ExportError, TrainingError, argument_error, integer_argument, number_argument
from keras_sensprune.formulas.allocation import zeros_asked
from keras_sensprune.formulas.folds import stratified_folds
from keras_sensprune.formulas.pareto import pareto_front
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.planning.record_file import RecordFile
from keras_sensprune.planning.space import SearchSpace, import_optuna, proposal
from keras_sensprune.planning.trials import (
    Build,
    Builder,
    Examples,
    error_of,
    examples_argument,
    fit,
    fit_settings,
    nonzero_weights,
    tried,
)
from keras_sensprune.records import FitSettings, SearchRecord, SearchTrial
from keras_sensprune.training.rules import PruningRule, SparsityTarget
from keras_sensprune.training.size import size_in_bytes
from keras_sensprune.training.targets import prunable_weights

_HELD_OUT = 10  # one example of so many, if there are no validation data


def search(
    build: Build,
    data: Any,
    space: SearchSpace,
    *,
    epochs: int,
    trials: int | None = None,
    minutes: float | None = None,
    validation_data: Any = None,
    size_of: Callable[[Any], float] | None = None,
    batch_size: int = 32,
    metric: str = "accuracy",
    mode: str = "auto",
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> SearchRecord:
    r"""Searches for the settings that give the best trade between validation error and size.

    Each trial is an ordinary `fit` of a new model with `PruneAtEpochEnd`, and ends with its error on validation data
    and its size. Optuna's TPE sampler proposes the settings of the next one. The result is the Pareto front: the
    trials that no other trial beats in both objectives (see `pareto_front`). The error is the metric itself where less
    of it is better, and $100\,(1 - m)$ percent where more of the metric $m$ is better.

    All trials have the same seed, so that they differ in their settings alone; the random state of Python, NumPy and
    Keras is set. A trial that meets a value that is not finite is recorded as failed. Ctrl-C ends the search: the
    trials that are finished are returned.

    Args:
        build: a function `build(strength)`, or `build(strength, learning_rate)` if the space has learning rates, that
            returns a new, compiled model with `SensitivityRegularizer(strength)` on what shall be pruned.
        data: $(x, y)$, arrays of numbers of $n$ examples.
        space: the ranges of the settings.
        epochs: of each trial.
        trials: how many in all, those in the file included; None for no limit.
        minutes: no trial is begun that would, taking as long as the longest one up to now, end later than this after
            the call; None for no limit. At least one is made.
        validation_data: $(x, y)$; None holds out a tenth of the examples, drawn at random, by class where `y` holds
            integers (one per example) or one-hot rows. Test data have no place here.
        size_of: a function from the trained model to a positive number, for example the bytes of its exported file;
            None counts the prunable weights that are not zero.
        batch_size: examples per step, and per step of the evaluation.
        metric: `"loss"` or the name of a metric with which the model was compiled.
        mode: `"min"` if less is better, `"max"`, or `"auto"`: a loss falls, a metric says it itself, as in Keras.
        sensitivity: which sensitivity the rule uses; None means `Sensitivity()`.
        seed: of held-out examples, weights, training and proposals; below $2^{31}$.
        path: a JSON file that is replaced after each trial. If it exists, the search goes on from there; `trials` and
            `minutes` may be others than before.
        verbose: whether a line is printed after each trial.

    Returns:
        A `SearchRecord`; `record_text` prints its front as a table, `plot_search` draws it.

    Raises:
        MissingPackageError: if Optuna is not installed.
        ArgumentError: before any training, if an argument is not allowed, there is no such metric, or `build` returns
            something else.
        ModelError: before any training, if the model has nothing to prune.
        DataError: before any training, if the file at `path` is damaged or belongs to other settings; later, if it
            cannot be written.
        TrainingError: if every trial failed.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import SearchSpace, SensitivityRegularizer, search
        >>> def build(strength):
        ...     layer = keras.layers.Dense(2, kernel_regularizer=SensitivityRegularizer(strength))
        ...     model = keras.Sequential([keras.Input((4,)), layer])
        ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ...     model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        ...     return model
        >>> x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int32")
        >>> space = SearchSpace(strength=(1e-4, 1e-2), threshold=(0.01, 0.5))
        >>> found = search(build, (x, y), space, epochs=2, trials=2, verbose=False)
        >>> len(found.trials), found.dense_size
        (2, 8)

    Reference: Ozaki et al., "Multiobjective tree-structured Parzen estimator", JAIR 73, 2022, for the sampler.
    """
    import_optuna()
    if not isinstance(space, SearchSpace):
        raise argument_error("space", "a SearchSpace", space)
    limits = _Limits(trials, minutes)
    examples = _split(data, validation_data, seed)
    settings = fit_settings(
        list(examples),
        epochs=epochs,
        batch_size=batch_size,
        metric=metric,
        mode=mode,
        sensitivity=sensitivity,
        seed=seed,
    )
    task = _Task(Builder(build), space, *examples, sensitivity, size_of)
    file = RecordFile(path)
    record = file.resumed(task.plan(settings), _consistent)
    try:
        while limits.allow(record):
            record = _with(record, task.trial(record))
            file.write(record)
            if verbose:
                print(_line(record, trials))
    except KeyboardInterrupt:
        if not record.front:
            raise
        if verbose:
            print(f"Stopped; {len(record.trials)} trials are finished.")
    if not record.front:
        raise TrainingError(f"All {len(record.trials)} trials failed. The last one: {record.trials[-1].failure}")
    return record


class _Limits:
    """When a search ends.

    Args:
        trials: how many in all, or None.
        minutes: from now, or None.

    Raises:
        ArgumentError: if one of them is not allowed, or both are None.
    """

    def __init__(self, trials: int | None, minutes: float | None):
        if trials is None and minutes is None:
            raise argument_error("trials", "an integer of at least 1 if `minutes` is None", None)
        if trials is not None:
            integer_argument("trials", trials, 1)
        allowed = "a finite number above 0"
        if minutes is not None and number_argument("minutes", minutes, allowed) == 0:
            raise argument_error("minutes", allowed, minutes)
        self._trials, self._minutes = trials, minutes
        self._begun = time.monotonic()
        self._before: int | None = None  # trials in the file

    def allow(self, record: SearchRecord) -> bool:
        """Whether one more trial may begin."""
        done = len(record.trials)
        if self._before is None:
            self._before = done
        if self._trials is not None and done >= self._trials:
            return False
        longest = max((trial.seconds for trial in record.trials), default=0.0)
        ends = time.monotonic() - self._begun + longest
        return self._minutes is None or done == self._before or ends <= 60.0 * self._minutes


def _split(data: Any, validation_data: Any, seed: Any) -> tuple[Examples, Examples]:
    """(training, validation) examples."""
    examples = examples_argument("data", data)
    if validation_data is not None:
        return examples, examples_argument("validation_data", validation_data)
    if len(examples.x) < _HELD_OUT:
        allowed = f"of at least {_HELD_OUT} examples if there are no `validation_data`"
        raise argument_error("data", allowed, len(examples.x))
    held_out = stratified_folds(examples.classes(), _HELD_OUT, seed) == 0
    return examples.part(~held_out), examples.part(held_out)


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """What every trial does."""

    make: Builder
    space: SearchSpace
    train: Examples
    validation: Examples
    sensitivity: Sensitivity | None
    size_of: Callable[[Any], float] | None

    def plan(self, settings: FitSettings) -> SearchRecord:
        """The record before the first trial, after a look at a model; raises what can be known before training."""
        if self.size_of is not None and not callable(self.size_of):
            raise argument_error("size_of", "a function from a model to a positive number, or None", self.size_of)
        ranges = self.space.ranges()
        model = self._model(tuple(r.low for r in ranges), settings)
        settings = tried(model, settings, self.validation, self.train)
        tensors, sparsity = len(prunable_weights(model)), self.space.sparsity
        if sparsity is not None and zeros_asked(sparsity[1], settings.weights) > settings.weights - tensors:
            allowed = f"at most {1.0 - tensors / settings.weights:.6g}: a tensor is never emptied"
            raise argument_error("sparsity", allowed, sparsity)
        if self.size_of is None:  # all weights count, whatever their initial values
            return SearchRecord(settings, ranges, "nonzero weights", settings.weights)
        return SearchRecord(settings, ranges, getattr(self.size_of, "__name__", "size"), self._size(model))

    def trial(self, record: SearchRecord) -> SearchTrial:
        """One trial with the settings that are proposed next."""
        values, settings = proposal(record), record.settings
        rule: float | PruningRule = values[1] if self.space.sparsity is None else SparsityTarget(values[1])
        begun = time.perf_counter()
        try:
            model = self._model(values, settings)
            fit(model, settings, self.train, settings.epochs, rule, self.sensitivity)
            error, size = error_of(model, settings, self.validation), self._size(model)
        except (TrainingError, ExportError) as failure:  # the same proposal would fail again: the others shall go on
            return SearchTrial(values, None, None, None, None, time.perf_counter() - begun, str(failure))
        sparsity = 1.0 - nonzero_weights(model) / settings.weights
        return SearchTrial(values, error, size, sparsity, record.dense_size / size, time.perf_counter() - begun)

    def _model(self, values: tuple[float, ...], settings: FitSettings) -> Any:
        strength, _, *learning_rate = values
        return self.make((strength, *learning_rate), settings.seed)

    def _size(self, model: Any) -> float:
        if self.size_of is None:
            return nonzero_weights(model)
        return size_in_bytes(self.size_of, model)


def _with(record: SearchRecord, trial: SearchTrial) -> SearchRecord:
    """The record with one more trial, and its new front."""
    trials = (*record.trials, trial)
    finished = [(number, t.error, t.size) for number, t in enumerate(trials) if not t.failure]
    front = pareto_front([(error, size) for _, error, size in finished])
    return dataclasses.replace(record, trials=trials, front=tuple(finished[place][0] for place in front))


def _consistent(record: SearchRecord) -> bool:
    """Whether all trials are complete or failed, and the front is theirs."""
    for trial in record.trials:
        found = [trial.error, trial.size, trial.sparsity, trial.compression]
        numbers = [*trial.values, *(() if trial.failure else found)]
        if (trial.failure and found != [None] * 4) or len(trial.values) != len(record.ranges):
            return False
        if not all(n is not None and math.isfinite(n) for n in numbers) or (trial.size is not None and trial.size <= 0):
            return False
    if not record.trials:
        return not record.front
    return _with(dataclasses.replace(record, trials=record.trials[:-1]), record.trials[-1]) == record


def _line(record: SearchRecord, trials: int | None) -> str:
    last, done = record.trials[-1], len(record.trials)
    names = [r.name.replace("_", " ") for r in record.ranges]
    head = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, last.values, strict=True))
    head = f"trial {done - 1}" + (f" ({done} of {trials})" if trials else "") + f": {head}: "
    if last.failure:
        return f"{head}failed after {last.seconds:.1f} s: {last.failure}"
    unit = " %" if record.settings.mode == "max" else ""
    where = ", on the front" if done - 1 in record.front else ""
    return f"{head}error {last.error:.4g}{unit}, {last.compression:.4g}x smaller, {last.seconds:.1f} s{where}"
