"""Where a search looks: ranges of settings, and what Optuna proposes in them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_sensprune.errors import MissingPackageError, argument_error, fraction_argument, number_argument
from keras_sensprune.records import SearchRange, SearchRecord, SearchTrial


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    r"""Which settings a search tries: ranges from a smallest to a largest value.

    Strength, threshold and learning rate are drawn on a logarithmic scale; so is the density $1 - s$ of a sparsity
    $s$. A range whose two values are equal keeps the setting fixed.

    Args:
        strength: of the shrinkage; above 0.
        threshold: $T > 0$ on $|w|$, applied after every epoch; None where sparsities are searched.
        sparsity: $s$, fractions above 0 and below 1, reached by `SparsityTarget(s)`; None where thresholds are
            searched.
        learning_rate: above 0; None leaves it to the function that builds the models.

    Returns:
        A frozen configuration object, for `search`.

    Raises:
        ArgumentError: if a range is not allowed, or not exactly one of `threshold` and `sparsity` is given.

    Example:
        >>> from keras_sensprune import SearchSpace
        >>> SearchSpace(strength=(1e-5, 1e-3), sparsity=(0.8, 0.99)).sparsity
        (0.8, 0.99)
    """

    strength: tuple[float, float]
    threshold: tuple[float, float] | None = None
    sparsity: tuple[float, float] | None = None
    learning_rate: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            bounds = getattr(self, field.name)
            if bounds is not None or field.name == "strength":
                object.__setattr__(self, field.name, _range_argument(field.name, bounds))
        if (self.threshold is None) == (self.sparsity is None):
            given = (self.threshold, self.sparsity)
            raise argument_error("threshold", "a range if `sparsity` is None, and None if it is not", given)

    def ranges(self) -> tuple[SearchRange, ...]:
        """Those that are given, in the order of the fields."""
        pairs = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return tuple(SearchRange(name, *bounds) for name, bounds in pairs.items() if bounds is not None)


def _range_argument(name: str, bounds: Any) -> tuple[float, float]:
    """The bounds as floats."""
    allowed = "a pair (low, high) of finite numbers with 0 < low <= high"
    try:
        low, high = bounds
    except (TypeError, ValueError):
        raise argument_error(name, allowed, bounds) from None
    low, high = number_argument(name, low, allowed), number_argument(name, high, allowed)
    if not 0 < low <= high:
        raise argument_error(name, allowed, bounds)
    if name == "sparsity":
        fraction_argument(name, high, "Percent are divided by 100.")
    return low, high


def import_optuna() -> Any:
    """The package, imported only where it is used.

    Raises:
        MissingPackageError: if it is not installed; with the line that installs it.
    """
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise MissingPackageError('The search needs Optuna: pip install "keras-sensprune[search]"') from None


def proposal(record: SearchRecord) -> tuple[float, ...]:
    """The settings of the next trial: what Optuna's TPE sampler draws after these trials.

    It depends on the record alone, so a search that was stopped goes on as if it had not been. The objectives are the
    error and the logarithm of the size, since sizes differ by factors.

    Args:
        record: of the search up to now.

    Returns:
        One value per range.
    """
    optuna = import_optuna()
    seed = np.random.SeedSequence((record.settings.seed, len(record.trials))).generate_state(1)
    bounds = {r.name: sorted((_drawn(r.name, r.low), _drawn(r.name, r.high))) for r in record.ranges}
    distributions = {name: optuna.distributions.FloatDistribution(*b, log=True) for name, b in bounds.items()}
    with _silent(optuna):
        sampler = optuna.samplers.TPESampler(seed=int(seed[0]))
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        for trial in record.trials:
            values = dict(zip(bounds, trial.values, strict=True))
            # 1 - (1 - d) need not be d: rounding must not carry a value out of its range
            drawn = {name: sorted((*bounds[name], _drawn(name, value)))[1] for name, value in values.items()}
            study.add_trial(_finished(optuna, trial, drawn, distributions))
        asked = study.ask(distributions).params
    return tuple(_drawn(name, asked[name]) for name in bounds)


def _drawn(name: str, value: float) -> float:
    """A setting as Optuna draws it, and back: the density in place of the sparsity."""
    return 1.0 - value if name == "sparsity" else value


def _finished(optuna: Any, trial: SearchTrial, drawn: dict[str, float], distributions: dict[str, Any]) -> Any:
    """A trial of the record as one of Optuna's."""
    if trial.error is None or trial.size is None:
        state = optuna.trial.TrialState.FAIL
        return optuna.trial.create_trial(state=state, params=drawn, distributions=distributions)
    values = [trial.error, math.log(trial.size)]
    return optuna.trial.create_trial(values=values, params=drawn, distributions=distributions)


@contextlib.contextmanager
def _silent(optuna: Any) -> Iterator[None]:
    """Without the lines that Optuna logs for each new study."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
