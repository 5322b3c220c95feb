"""What the trainings of a search share: checked data, fresh models, one `fit`, the error on held-out examples."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_sensprune.errors import ModelError, TrainingError, argument_error, integer_argument
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.planning.feed import digest, evaluable
from keras_sensprune.records import FitSettings
from keras_sensprune.training.budget import direction
from keras_sensprune.training.callback import PruneAtEpochEnd
from keras_sensprune.training.rules import PruningRule
from keras_sensprune.training.targets import prunable_weights
from keras_sensprune.training.tolerance import ToleranceThreshold

Build = Callable[..., Any]
# What single trainings say of an unlucky setting is seen in the table of all of them.
_EXPECTED = (r"PruneAtEpochEnd\(.*\) pruned nothing", r"All weights of .* are below the threshold")


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets of the same examples."""

    x: np.ndarray
    y: np.ndarray

    def part(self, chosen: np.ndarray) -> Examples:
        """Those that a boolean array of shape (examples,) chooses."""
        return Examples(self.x[chosen], self.y[chosen])

    def classes(self) -> np.ndarray:
        """Class of each example: integer or one-hot targets; all the same for anything else."""
        y = self.y.reshape(len(self.y), -1)
        if y.shape[1] == 1 and y.dtype.kind in "iub":
            return y[:, 0]
        one_hot = y.shape[1] > 1 and np.all((y == 0) | (y == 1)) and np.all(np.sum(y != 0, axis=1) == 1)
        return np.argmax(y, axis=1) if one_hot else np.zeros(len(y), np.int64)


def examples_argument(name: str, data: Any) -> Examples:
    """`data` as examples, if it is a pair of arrays of numbers of the same length, which is not 0.

    Raises:
        ArgumentError: if it is not.
    """
    allowed = "a pair (x, y) of arrays of numbers with as many examples in y as in x"
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise argument_error(name, allowed, data)
    try:
        x, y = (np.asarray(array) for array in data)
    except ValueError:  # rows of different lengths
        raise argument_error(name, allowed, data) from None
    if any(a.ndim == 0 or a.dtype.kind not in "iufb" for a in (x, y)) or len(x) != len(y) or not len(x):
        shown = ", ".join(f"{array.dtype} of shape {array.shape}" for array in (x, y))
        raise argument_error(name, allowed, shown)
    return Examples(x, y)


def fit_settings(
    sets: list[Examples],
    *,
    epochs: int,
    batch_size: int,
    metric: str,
    mode: str,
    sensitivity: Sensitivity | None,
    seed: int,
) -> FitSettings:
    """The settings that all trainings share, checked; what only a model can tell is not known yet: see `tried`.

    Raises:
        ArgumentError: if one of them is not allowed.
    """
    integer_argument("epochs", epochs, 1)
    if integer_argument("seed", seed, 0) >= 2**31:
        raise argument_error("seed", "an integer below 2147483648", seed)
    if sensitivity is not None and not isinstance(sensitivity, Sensitivity):
        raise argument_error("sensitivity", "a Sensitivity or None", sensitivity)
    ToleranceThreshold((sets[0].x, sets[0].y), 0.0, metric, mode=mode, batch_size=batch_size)  # checks them
    data = "; ".join(f"{len(each.x)} examples, {digest((each.x, each.y))}" for each in sets)
    chosen = sensitivity or Sensitivity()
    parts = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    shown = ", ".join(f"{k}={getattr(v, '__qualname__', v)}" for k, v in parts.items() if v is not None)
    return FitSettings(data, 0, epochs, batch_size, metric, mode, shown, seed)


class Builder:
    """The user's function that builds a model, with what it returns checked.

    Args:
        build: settings -> a new, compiled Keras model.

    Raises:
        ArgumentError: if it is no function.
    """

    def __init__(self, build: Build):
        if not callable(build):
            raise argument_error("build", "a function that returns a new, compiled Keras model", build)
        self._build = build
        self._last: Any = None

    def __call__(self, values: tuple[float, ...], seed: int) -> Any:
        """A model, built after the random state of Python, NumPy and Keras was set.

        Raises:
            ArgumentError: if it is no compiled Keras model, or the one of the call before.
            ModelError: if it has nothing to prune.
        """
        keras.utils.set_random_seed(seed)
        try:
            inspect.signature(self._build).bind(*values)
        except TypeError as error:
            allowed = f"a function that can be called with {len(values)} argument(s)"
            raise argument_error("build", allowed, self._build, f"Python says: {error}.") from None
        except ValueError:  # it has no signature
            pass
        model = self._build(*values)
        if not isinstance(model, keras.Model) or not model.compiled:
            raise argument_error("build", "a function that returns a compiled Keras model", model)
        if model is self._last:
            raise argument_error("build", "a function that makes a new model at each call", model)
        prunable_weights(model)
        self._last = model
        return model


def tried(model: Any, settings: FitSettings, *examples: Examples) -> FitSettings:
    """The settings with the number of prunable weights and the direction of the metric, after a look at the model.

    Raises:
        ArgumentError: if the model cannot be evaluated on the data, has no such metric, nothing tells its direction, or
            it is the loss and contains a penalty.
    """
    for each in examples:
        first = Examples(each.x[: settings.batch_size], each.y[: settings.batch_size])
        with contextlib.suppress(TrainingError):  # not finite before training: that says nothing
            evaluable("data", functools.partial(error_of, model, settings, first))
    if settings.metric == "loss" and not all(t.regularizer.decoupled for t in prunable_weights(model)):
        allowed = "the name of a compiled metric where decoupled=False"
        raise argument_error("metric", allowed, "loss", "The loss contains the penalty.")
    weights = sum(math.prod(t.variable.shape) for t in prunable_weights(model))
    return dataclasses.replace(settings, weights=weights, mode=direction(settings.metric, settings.mode, model))


def fit(
    model: Any, settings: FitSettings, examples: Examples, epochs: int, rule: float | PruningRule, sensitivity: Any
) -> None:
    """One ordinary, silent `fit` with the pruning callback.

    Raises:
        TrainingError: if the training met a value that is not finite.
    """
    with warnings.catch_warnings():
        for text in _EXPECTED:
            warnings.filterwarnings("ignore", text, UserWarning)
        prune = PruneAtEpochEnd(rule, sensitivity)
        model.fit(examples.x, examples.y, batch_size=settings.batch_size, epochs=epochs, verbose=0, callbacks=[prune])


def error_of(model: Any, settings: FitSettings, examples: Examples) -> float:
    """The metric as an error, of which less is better.

    Raises:
        ArgumentError: if the model has no such metric.
        TrainingError: if it is not finite.
    """
    found = model.evaluate(examples.x, examples.y, batch_size=settings.batch_size, verbose=0, return_dict=True)
    if settings.metric not in found:
        raise argument_error("metric", f"one of {', '.join(map(repr, found))}", settings.metric)
    value = float(found[settings.metric])
    if not math.isfinite(value):
        raise TrainingError(f"The validation metric {settings.metric!r} is {value}: the training diverged.")
    return 100.0 * (1.0 - value) if settings.mode == "max" else value


def nonzero_weights(model: Any) -> int:
    """Prunable weights that are not zero."""
    return sum(int(np.count_nonzero(target.variable.numpy())) for target in prunable_weights(model))


def copy_weights(model: Any, other: Any) -> None:
    """Gives `other` the weights of `model`.

    Raises:
        ModelError: if they do not fit.
    """
    try:
        other.set_weights(model.get_weights())
    except ValueError as error:
        raise ModelError(f"`build` must return models of one shape, whatever the strength. {error}") from None
