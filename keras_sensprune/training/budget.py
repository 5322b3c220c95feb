"""A validation metric and by how much it may become worse: what rules that ask validation data share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from keras_sensprune.errors import argument_error, choice_argument, integer_argument, number_argument

_GROWS = ("acc", "auc", "precision", "recall", "f1", "iou", "sparsity", "compression")  # more of these is better


def direction(name: str, mode: str) -> str:
    """`"min"` or `"max"`: `mode`, or what the name of a quantity says if that is `"auto"`."""
    choice_argument("mode", mode, ("auto", "min", "max"))
    if mode != "auto":
        return mode
    return "max" if any(part in name for part in _GROWS) else "min"


@dataclasses.dataclass(frozen=True, eq=False)
class MetricBudget:
    """A metric of a model on validation data, its reference and a tolerance; rules inherit these arguments.

    Args:
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a `tf.data.Dataset` of batches.
        tolerance: in units of the metric.
        metric: `"loss"` or the name of a compiled metric.
        relative_to: one of `references`, or a number.
        mode: `"min"`, `"max"` or `"auto"`.
        batch_size: of the evaluation, for arrays.
    """

    references: ClassVar[tuple[str, ...]] = ("dense",)

    validation_data: Any
    tolerance: float
    metric: str = "loss"
    relative_to: str | float = "dense"
    mode: str = "auto"
    batch_size: int = dataclasses.field(default=1000, kw_only=True)

    def __post_init__(self) -> None:
        data = self.validation_data
        if data is None or (isinstance(data, (tuple, list)) and len(data) not in (2, 3)):
            raise argument_error("validation_data", "(x, y), (x, y, sample_weight) or a tf.data.Dataset", data)
        number_argument("tolerance", self.tolerance, "a finite number of at least 0, in units of the metric")
        if not isinstance(self.metric, str):
            raise argument_error("metric", "'loss' or the name of a compiled metric", self.metric)
        if isinstance(self.relative_to, str):
            choice_argument("relative_to", self.relative_to, self.references)
        else:
            allowed = f"{', '.join(map(repr, self.references))} or a finite number"
            number_argument("relative_to", self.relative_to, allowed, -math.inf)
        integer_argument("batch_size", self.batch_size, 1)
        object.__setattr__(self, "mode", direction(self.metric, self.mode))

    def measure(self, session: Any) -> float:
        """The metric as it is now, with the sign that makes less the better."""
        data = self.validation_data
        arrays = isinstance(data, (tuple, list))
        weights = {"sample_weight": data[2]} if arrays and len(data) > 2 else {}
        x, y = data[:2] if arrays else (data, None)
        sizes = {"batch_size": self.batch_size} if arrays else {}
        found = session.model.evaluate(x, y, verbose=0, return_dict=True, **weights, **sizes)
        if self.metric not in found:
            raise argument_error("metric", f"one of {', '.join(map(repr, found))}", self.metric)
        return self._signed(found[self.metric])

    def measure_dense(self, session: Any, name: str) -> float:
        """The metric when `fit` begins, which the session's memory keeps under a name; a resumed training knows it.

        Raises:
            ArgumentError: if the model has no such metric, or it is not finite.
        """
        memory = session.memory
        if name not in memory:
            memory[name] = self.measure(session)
        if not math.isfinite(memory[name]):
            raise argument_error("validation_data", f"data on which {self.metric!r} is finite", memory[name])
        return float(memory[name])

    def reference(self, **known: float) -> float:
        """What the metric is compared with: one of the values that are known by their names, or the number."""
        if isinstance(self.relative_to, str):
            return known[self.relative_to]
        return self._signed(self.relative_to)

    def _signed(self, value: float) -> float:
        return float(value) * (-1.0 if self.mode == "max" else 1.0)
