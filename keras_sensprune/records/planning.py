"""Budgets, and what a run within a budget gave."""

from __future__ import annotations

import math

from keras_sensprune.errors import (
    ArgumentError,
    argument_error,
    fraction_argument,
    integer_argument,
    number_argument,
)
from keras_sensprune.records.codec import record
from keras_sensprune.records.export import ExportRecord
from keras_sensprune.records.sparsity import SparsityReport

_TARGETS = ("bytes", "parameters", "sparsity")


@record
class Budget:
    """What a sparse network may cost; None means that it does not matter.

    With `error` alone `sparsify` goes on until the network is as sparse as the error allows. With a size or a sparsity
    it goes that far and no further. With both the error wins, and the record says what was not reached.

    Args:
        error: how much the validation error may grow over that of the dense network: percentage points for an accuracy,
            else units of the metric.
        bytes: the largest size of the file, in the unit of the function `size_of` that `sparsify` is given.
        parameters: the largest number of nonzero parameters of the whole model, biases and the like included.
        sparsity: the fraction of zeros among the prunable weights that is to be reached, in [0, 1).
        minutes: wall time of everything. Epochs are planned so that it suffices; what is best by then is kept.

    Returns:
        A frozen object.

    Raises:
        ArgumentError: if a value is not allowed, if two of `bytes`, `parameters` and `sparsity` are given, or nothing
            but `minutes`.

    Example:
        >>> from keras_sensprune import Budget
        >>> Budget(error=0.5, minutes=10)
        Budget(error=0.5, bytes=None, parameters=None, sparsity=None, minutes=10.0)
    """

    error: float | None = None
    bytes: int | None = None
    parameters: int | None = None
    sparsity: float | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.error is not None:
            self._set("error", number_argument("error", self.error, "a finite number of at least 0"))
        for name in ("bytes", "parameters"):
            if getattr(self, name) is not None:
                integer_argument(name, getattr(self, name), 1)
        if self.sparsity is not None:
            self._set("sparsity", fraction_argument("sparsity", self.sparsity, "Percent are divided by 100."))
        if self.minutes is not None:
            minutes = number_argument("minutes", self.minutes, "a finite number above 0")
            if minutes == 0:
                raise argument_error("minutes", "a finite number above 0", self.minutes)
            self._set("minutes", minutes)
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ArgumentError(f"A budget has one size. Received: {' and '.join(f'`{name}`' for name in given)}.")
        if not given and self.error is None:
            raise ArgumentError(
                "A budget needs `error`, `bytes`, `parameters` or `sparsity`: a time alone does not say how sparse the "
                "network shall be. For example Budget(error=0.5, minutes=10)."
            )

    def _set(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)


@record
class PhaseRecord:
    """One training phase of `sparsify`.

    Attributes:
        name: "dense", "round 1" and so on, or "fine-tune".
        epochs: how many were trained.
        seconds: wall time, compilation and validation included.
        error: validation error after it, in the unit of `SparsifyRecord.metric`; None if training diverged.
        nonzero: prunable weights that are not zero after it.
        total: prunable weights.
        accepted: whether its weights were kept; else those before it were put back.
    """

    name: str
    epochs: int
    seconds: float
    error: float | None
    nonzero: int
    total: int
    accepted: bool

    def __post_init__(self) -> None:
        if self.accepted and self.error is None:
            raise argument_error("error", "a number where the phase is accepted", None)
        if not 0 <= self.nonzero <= self.total or not self.total:
            raise argument_error("nonzero", f"from 0 to the total of {self.total}, which is at least 1", self.nonzero)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1)."""
        return 1.0 - self.nonzero / self.total

    @property
    def compression(self) -> float:
        """Total / nonzero; infinity if nothing is left."""
        return self.total / self.nonzero if self.nonzero else math.inf


@record
class SparsifyRecord:
    """What `sparsify` did.

    Attributes:
        budget: what was asked for.
        metric: the name of the quantity that was watched on validation data.
        percent: whether errors are 100 * (1 - metric), in percent; else they are the metric itself.
        validation: which examples the validation data are.
        phases: one entry per phase, in order; the first is "dense" also if it has no epochs.
        stopped: why there was no further round.
        unmet: names of the budgets that were not met.
    """

    budget: Budget
    metric: str
    percent: bool
    validation: str
    phases: tuple[PhaseRecord, ...]
    stopped: str
    unmet: tuple[str, ...]

    def __post_init__(self) -> None:
        dense = self.phases[0] if isinstance(self.phases, tuple) and self.phases else None
        if not isinstance(dense, PhaseRecord) or not dense.accepted:
            raise argument_error("phases", "the dense phase, which is accepted, and those after it", self.phases)

    @staticmethod
    def _measured(phase: PhaseRecord) -> float:
        assert phase.error is not None  # it is accepted
        return phase.error

    @property
    def final(self) -> PhaseRecord:
        """The phase whose weights the model has."""
        return [phase for phase in self.phases if phase.accepted][-1]

    @property
    def dense_error(self) -> float:
        """Validation error before the first round."""
        return self._measured(self.phases[0])

    @property
    def error(self) -> float:
        """Validation error of the model."""
        return self._measured(self.final)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the prunable weights."""
        return self.final.sparsity

    @property
    def compression(self) -> float:
        """Prunable weights / nonzero ones."""
        return self.final.compression

    @property
    def seconds(self) -> float:
        """Wall time of all phases."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def added(self) -> float | None:
        """Time of all other phases / time of the dense one; None if that had no epochs."""
        dense = self.phases[0]
        return (self.seconds - dense.seconds) / dense.seconds if dense.epochs else None


@record
class SparsifyRecipe:
    """Settings of a run of `sensprune train`: a network, its training, and a budget.

    Attributes:
        network: name of a network of `keras_sensprune.networks`.
        budget: what the sparse network may cost.
        learning_rate: of SGD, at the start of every phase.
        label_smoothing: of the loss, in [0, 1).
        batch_size: examples per step.
        dense_epochs, round_epochs, fine_epochs: most epochs of the dense phase, of a round, and of the fine-tuning.
        seed: of weights, shuffling and data split.
    """

    network: str
    budget: Budget
    learning_rate: float = 0.1
    label_smoothing: float = 0.0
    batch_size: int = 100
    dense_epochs: int = 20
    round_epochs: int = 10
    fine_epochs: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.network, str):
            raise argument_error("network", "the name of a network", self.network)
        if not isinstance(self.budget, Budget):
            raise argument_error("budget", "a Budget", self.budget)
        if number_argument("learning_rate", self.learning_rate, "a finite number above 0") == 0:
            raise argument_error("learning_rate", "a finite number above 0", self.learning_rate)
        fraction_argument("label_smoothing", self.label_smoothing)
        for name, low in (("batch_size", 1), ("dense_epochs", 0), ("round_epochs", 1), ("fine_epochs", 0), ("seed", 0)):
            integer_argument(name, getattr(self, name), low)
        if self.seed >= 2**32:
            raise argument_error("seed", "an integer from 0 to 4294967295", self.seed)


@record
class TrainRecord:
    """What `sensprune train` writes to `report.json`.

    Attributes:
        recipe: the settings.
        data: name of the data set and its sizes.
        result: phase by phase.
        error: of the final network on test data, in percent of the examples.
        report: what is left, layer by layer.
        export: the exported file.
    """

    recipe: SparsifyRecipe
    data: str
    result: SparsifyRecord
    error: float
    report: SparsityReport
    export: ExportRecord
