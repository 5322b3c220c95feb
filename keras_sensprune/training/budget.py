"""A validation metric and by how much it may become worse: what rules that ask validation data share."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_sensprune.errors import argument_error, choice_argument, integer_argument, number_argument
from keras_sensprune.training.moment import Moment

MODES = ("auto", "min", "max")
# Parts of names that tell a direction where the metric itself does not.
_ACCURACY = re.compile(r"(^|_)acc(uracy)?(_|\d|$)")  # not within a word, as in "inaccuracy" or "accel"
_GROWS = ("auc", "precision", "recall", "f1", "fbeta", "iou", "io_u", "r2", "sparsity", "compression")
_FALLS = ("loss", "error", "entropy", "divergence", "hinge", "poisson", "perplexity", "penalty", "mse", "mae", "mape")


def direction(name: str, mode: str = "auto", model: Any = None) -> str:
    """Whether less or more of a quantity is better.

    A given mode decides. For `"auto"`, a loss falls; a compiled metric is asked for its `_direction`, as Keras does in
    its callbacks; where it has none (a function, a metric of one's own) or there is no model, the name decides.

    Args:
        name: of the quantity, in the logs or in what `evaluate` returns; `val_` before it changes nothing.
        mode: `"auto"`, `"min"` or `"max"`.
        model: the compiled model. Keras builds its metrics with the first batch: before that, they cannot be asked.

    Returns:
        `"min"` or `"max"`.

    Raises:
        ArgumentError: if `mode` is none of the three, or neither the model nor the name tells.

    Example:
        >>> from keras_sensprune.training.budget import direction
        >>> direction("val_loss"), direction("accuracy"), direction("score", "max")
        ('min', 'max', 'max')
    """
    choice_argument("mode", mode, MODES)
    watched = name.removeprefix("val_")
    if mode != "auto":
        return mode
    if watched == "loss":
        return "min"
    told = getattr(_compiled_metric(model, watched), "_direction", None)
    found = {"up": "max", "down": "min"}.get(told or "") or _direction_of_name(watched)
    if found is None:
        raise argument_error(
            "mode",
            f"'min' or 'max' for {name!r}",
            mode,
            "Neither the metric nor its name tells whether more of it is better.",
        )
    return found


def _direction_of_name(name: str) -> str | None:
    """`"min"` or `"max"`; None if the name says neither, or both."""
    if name.endswith("_loss"):  # of one of several outputs, whatever that is called
        return "min"
    grows, falls = (any(part in name for part in parts) for parts in (_GROWS, _FALLS))
    grows = grows or names_accuracy(name)
    return None if grows == falls else "max" if grows else "min"


def names_accuracy(name: str) -> bool:
    """Whether a name is that of an accuracy; the loss of an output that is called so is none."""
    return _ACCURACY.search(name) is not None and not name.endswith("_loss")


def _compiled_metric(model: Any, name: str) -> Any:
    """The metric that `evaluate` returns under a name; None if there is none, or Keras has not built it yet."""
    for metric in () if model is None else model.metrics:
        parts = getattr(metric, "metrics", [metric])  # what `compile` was given is one metric with parts
        named = {part.name: part for part in parts}
        if name not in named and parts and parts[0] is not metric:
            named = dict(zip(metric.result(), parts, strict=False))  # several outputs: their names stand before
        if name in named:
            return named[name]
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class MetricBudget:
    """A metric of a model on validation data, its reference and a tolerance; rules inherit these arguments.

    Args:
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a `tf.data.Dataset` of batches.
        tolerance: in units of the metric.
        metric: `"loss"` or the name of a compiled metric.
        relative_to: one of `references`, or a number.
        mode: `"min"`, `"max"` or `"auto"`, see `direction`.
        batch_size: of the evaluation, for arrays.
    """

    references: ClassVar[tuple[str, ...]] = ("dense",)
    memory: ClassVar[str] = "dense"

    validation_data: Any
    tolerance: float
    metric: str = "loss"
    relative_to: str | float = "dense"
    mode: str = "auto"
    batch_size: int = dataclasses.field(default=1000, kw_only=True)

    def __post_init__(self) -> None:
        _check_data(self.validation_data)
        number_argument("tolerance", self.tolerance, "a finite number of at least 0, in units of the metric")
        if not isinstance(self.metric, str):
            raise argument_error("metric", "'loss' or the name of a compiled metric", self.metric)
        if isinstance(self.relative_to, str):
            choice_argument("relative_to", self.relative_to, self.references)
        else:
            allowed = f"{', '.join(map(repr, self.references))} or a finite number"
            number_argument("relative_to", self.relative_to, allowed, -math.inf)
        integer_argument("batch_size", self.batch_size, 1)
        choice_argument("mode", self.mode, MODES)

    def measure(self, session: Any) -> float:
        """The metric as it is now, with the sign that makes less the better."""
        found = session.model.evaluate(**self._evaluated, verbose=0, return_dict=True)
        session.model.reset_metrics()  # else the metrics of an epoch that is about to begin would go on from these
        if self.metric not in found:
            raise argument_error("metric", f"one of {', '.join(map(repr, found))}", self.metric)
        return self._signed(found[self.metric], session)

    @functools.cached_property
    def _evaluated(self) -> dict[str, Any]:
        """Arguments of `evaluate`. Arrays are cut into batches once, which are kept: that is most of its time."""
        data = self.validation_data
        if not isinstance(data, (tuple, list)):
            return {"x": data}
        if all(isinstance(part, np.ndarray) for part in tree.flatten(tuple(data))) and not isinstance(data[0], list):
            return {"x": tf.data.Dataset.from_tensor_slices(tuple(data)).batch(self.batch_size).cache()}
        names = ("x", "y", "sample_weight")
        return {**dict(zip(names, data, strict=False)), "batch_size": self.batch_size}

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: the arguments, not the data as cut into batches, which cannot be copied."""
        return {key: value for key, value in vars(self).items() if key != "_evaluated"}

    def measure_dense(self, session: Any, moment: Moment) -> None:
        """Measures the metric when `fit` begins, and keeps it in the session's memory; a resumed training knows it.

        Raises:
            ArgumentError: if the model has no such metric, it is not finite, its direction is not known, it is a loss
                that contains the penalty, or the reference is lost: a resumed training has pruned and has never
                measured this metric.
        """
        self._refuse_penalty(session)
        if self._dense in session.memory:
            return
        found = self.measure(session)
        if not math.isfinite(found):
            raise argument_error("validation_data", f"data on which {self.metric!r} is finite", found)
        if not moment.resumed or not _has_zeros(session):
            session.memory[self._dense] = self._signed(found, session)  # as `evaluate` returns it
        elif self.relative_to == "dense":
            allowed = f"a number where a training goes on that has pruned and has not measured {self.metric!r} before"
            raise argument_error("relative_to", allowed, "dense", "Pass what the dense model had.")

    def reference(self, session: Any, current: float = math.nan) -> float:
        """What the metric is compared with, signed: the dense model's, that of now, or the number."""
        if self.relative_to == "current":
            return current
        dense = self.relative_to == "dense"
        return self._signed(session.memory[self._dense] if dense else self.relative_to, session)

    @property
    def _dense(self) -> str:
        """Where the memory has the metric of the dense model: another metric is another memory."""
        return f"{self.memory} {self.metric}"

    def _signed(self, value: Any, session: Any) -> float:
        more = direction(self.metric, self.mode, session.model) == "max"
        return -float(value) if more else float(value)

    def _refuse_penalty(self, session: Any) -> None:
        coupled = any(w.regularizer.strength and not w.regularizer.decoupled for w in session.weights)
        if coupled and self.metric == "loss":
            allowed = "the name of a compiled metric where decoupled=False"
            raise argument_error("metric", allowed, "loss", "The loss contains the penalty.")


def _check_data(data: Any) -> None:
    """Arrays of as many examples each, or something from which Keras takes batches again and again."""
    if isinstance(data, (tf.data.Dataset, tf.distribute.DistributedDataset, keras.utils.PyDataset)):
        return
    allowed = "(x, y), (x, y, sample_weight) or a tf.data.Dataset"
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        raise argument_error("validation_data", allowed, data)
    shapes = [tuple(getattr(part, "shape", ())) for part in tree.flatten(tuple(data)) if part is not None]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise argument_error("validation_data", f"{allowed}, arrays with as many examples each", shapes)


def _has_zeros(session: Any) -> bool:
    return any(weight.nonzero() < math.prod(weight.variable.shape) for weight in session.weights)
