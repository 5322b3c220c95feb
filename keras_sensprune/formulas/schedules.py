r"""A quantity as a function of the epochs that have been trained: its course, and the sparsity that follows one.

With $t$ the number of complete epochs (1 after the first one), $b$ and $e$ begin and end of the schedule in epochs,
progress is $p = \min(1, \max(0, (t - b) / (e - b)))$. A begin or end given as a fraction means that fraction of all
epochs of `fit`.
"""

from __future__ import annotations

import dataclasses
import math

from keras_sensprune.errors import argument_error, choice_argument, fraction_argument, number_argument

NOT_PERCENT = "Sparsity is a fraction, not percent."


def _moment_argument(name: str, value: object) -> int | float:
    """`value` if it is a number of epochs (an integer) or a fraction of them (a float in [0, 1])."""
    allowed = "an integer number of epochs, or a float in [0, 1] as a fraction of all epochs"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    number = number_argument(name, value, allowed)
    if not isinstance(value, float) or number > 1.0:
        raise argument_error(name, allowed, value)
    return number


def half_cosine(progress: float, last: float = 0.0) -> float:
    r"""A factor that falls from 1 along a half cosine.

    $$f(p) = \ell + (1 - \ell)\,\tfrac12 (1 + \cos \pi p)$$ with $p$ the progress and $\ell$ the last value.

    Args:
        progress: $p$, a fraction of the way; it is clipped to [0, 1].
        last: $\ell$, the factor at the end.

    Returns:
        A number between `last` and 1.

    Example:
        >>> from keras_sensprune.formulas.schedules import half_cosine
        >>> [round(half_cosine(p, 0.01), 3) for p in (0.0, 0.5, 1.0, 2.0)]
        [1.0, 0.505, 0.01, 0.01]

    Reference: Loshchilov and Hutter, "SGDR", 2017.
    """
    return last + (1.0 - last) * (1.0 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2.0


@dataclasses.dataclass(frozen=True)
class Course:
    r"""How a quantity goes from one value to another between two moments of a training.

    Args:
        shape: $g(p)$: `"polynomial"`, $(1 - p)^3$; `"cosine"`, $(1 + \cos \pi p) / 2$; `"linear"`, $1 - p$;
            `"constant"`, 0 from the begin on.
        begin: epochs (an integer), or a fraction of all epochs (a float in [0, 1]).
        end: likewise, later; without meaning for `"constant"`.

    Raises:
        ArgumentError: if an argument is not allowed, or the end does not come after the begin.
    """

    shape: str
    begin: int | float
    end: int | float

    def __post_init__(self) -> None:
        choice_argument("shape", self.shape, tuple(_REMAINING))
        begin, end = _moment_argument("begin", self.begin), _moment_argument("end", self.end)
        if type(begin) is type(end) and end <= begin and self.shape != "constant":
            raise argument_error("end", f"later than begin={self.begin}", self.end)

    def moments(self, epochs: int) -> tuple[float, float]:
        """Begin and end in epochs, for a training of so many epochs.

        Raises:
            ArgumentError: if the end does not come after the begin, which only then is known.
        """
        begin, end = (m if isinstance(m, int) else m * epochs for m in (self.begin, self.end))
        if self.shape == "constant":
            return begin, begin
        if end <= begin:
            raise argument_error("end", f"later than begin={self.begin} in a training of {epochs} epochs", self.end)
        return begin, end

    def remaining(self, epochs_done: float, epochs: int) -> float | None:
        """g(p) after so many of all epochs, from 1 to 0; None before the begin."""
        begin, end = self.moments(epochs)
        if epochs_done < begin:
            return None
        return _REMAINING[self.shape](1.0 if end == begin else min(1.0, (epochs_done - begin) / (end - begin)))


@dataclasses.dataclass(frozen=True)
class SparsitySchedule:
    r"""A sparsity that grows from `initial` to `final` between two moments of a training.

    $$s(p) = s_f + (s_i - s_f)\,g(p),$$ with $s_i$ the initial and $s_f$ the final sparsity, $p$ the progress (see
    this module), and $g$ one of: `"polynomial"`, $(1 - p)^3$; `"cosine"`, $(1 + \cos \pi p) / 2$; `"linear"`,
    $1 - p$; `"constant"`, 0 from the begin on. Before the begin the sparsity is 0: nothing is pruned.

    Args:
        final: sparsity at the end, a fraction in [0, 1).
        shape: `"polynomial"`, `"cosine"`, `"linear"` or `"constant"`.
        initial: sparsity at the begin, a fraction in [0, final].
        begin: when the schedule begins: epochs (an integer), or a fraction of all epochs (a float in [0, 1]).
        end: when it ends; after it the sparsity stays `final`.

    Returns:
        A frozen configuration object.

    Raises:
        ArgumentError: if an argument is not allowed, or the end does not come after the begin.

    Example:
        >>> from keras_sensprune import SparsitySchedule
        >>> schedule = SparsitySchedule(0.8, end=4)
        >>> [round(schedule.at(epochs, 10), 3) for epochs in (0, 1, 2, 3, 4, 9)]
        [0.0, 0.463, 0.7, 0.788, 0.8, 0.8]

    Reference: Zhu and Gupta, "To prune, or not to prune", 2017, for the polynomial of power 3.
    """

    final: float
    shape: str = "polynomial"
    initial: float = 0.0
    begin: int | float = 0
    end: int | float = 0.75

    def __post_init__(self) -> None:
        fraction_argument("final", self.final, NOT_PERCENT)
        if fraction_argument("initial", self.initial, NOT_PERCENT) > self.final:
            raise argument_error("initial", f"at most final={self.final}", self.initial)
        Course(self.shape, self.begin, self.end)  # refuses what is not allowed

    @property
    def course(self) -> Course:
        """Shape and moments."""
        return Course(self.shape, self.begin, self.end)

    def moments(self, epochs: int) -> tuple[float, float]:
        """Begin and end in epochs, see `Course.moments`."""
        return self.course.moments(epochs)

    def at(self, epochs_done: float, epochs: int) -> float:
        """The sparsity after so many epochs.

        Args:
            epochs_done: complete epochs since training began.
            epochs: of the whole training.

        Returns:
            A fraction in [0, 1).
        """
        left = self.course.remaining(epochs_done, epochs)
        if left is None or epochs_done == 0:
            return 0.0
        return self.final + (self.initial - self.final) * left


_REMAINING = {
    "polynomial": lambda p: (1.0 - p) ** 3,
    "cosine": half_cosine,
    "linear": lambda p: 1.0 - p,
    "constant": lambda p: 0.0,
}
