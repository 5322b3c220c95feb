r"""Which round comes next: decisions on measured numbers, without a model and without a clock.

A round prunes to fewer weights, trains, and is measured. While every round keeps within the allowed error, each leaves
a fixed share of the weights of the one before: with $k$ weights left, the next one has $\lfloor q k\rfloor$, or, on the
way to a target $k_t$, $k\,(k_t / k)^{1/n}$ with $n = \lceil \log(k_t / k) / \log q \rceil$ equal steps to go. After the
first round that does not, the last good $g$ and the last bad number $b$ enclose the answer, and a few more rounds
try $\lfloor\sqrt{g\,b}\rfloor$.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

EXPECTED = 0.01  # share of the weights down to which rounds are planned for where no target is given

REACHED = "the target is reached"
LEAST = "every tensor has one weight left"
ALLOWED = "fewer weights would cost more than the allowed error"
NO_TIME = "there is no time for another round"


@dataclasses.dataclass(frozen=True)
class Course:
    """What does not change from round to round.

    Attributes:
        start: weights that are not zero before the first round.
        least: the smallest number that can be left.
        target: the largest number that is small enough; None: as few as the error allows.
        allowed: the largest error; infinity if any is allowed.
        seconds: for all rounds and the fine-tuning; infinity if time does not matter.
        keep: q, the share of the weights that a round leaves, in (0, 1).
        retries: how many rounds are tried after the first bad one.
        fine_share: how many rounds' time the fine-tuning is given.
    """

    start: int
    least: int = 1
    target: int | None = None
    allowed: float = math.inf
    seconds: float = math.inf
    keep: float = 0.5
    retries: int = 2
    fine_share: float = 2.0


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round gave.

    Attributes:
        kept: weights that are not zero.
        error: as measured; one that is not a number is too large.
        epochs: how many it took.
        seconds: how long they took.
    """

    kept: int
    error: float
    epochs: int = 1
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Step:
    """What to do next.

    Attributes:
        kept: prune to so many weights, from the last good ones; None: no further round.
        seconds: for this round, or for the fine-tuning.
        why: why there is no further round.
    """

    kept: int | None
    seconds: float
    why: str = ""


def is_good(course: Course, done: Round) -> bool:
    """Whether a round keeps within the allowed error."""
    return done.error <= course.allowed


def next_step(course: Course, rounds: Sequence[Round]) -> Step:
    """Decides after each round, from all that were made.

    Args:
        course: what was asked for.
        rounds: all rounds so far, in order.

    Returns:
        The next round, or the end of the rounds with its reason. The number of weights falls from the last good round
        and stays above the last bad one; so there is an end.

    Raises:
        Nothing.

    Example:
        >>> from keras_sensprune.planning.rounds import Course, Round, next_step
        >>> course = Course(start=1000, allowed=2.0)
        >>> [next_step(course, rounds).kept for rounds in ([], [Round(500, 1.9)], [Round(500, 1.9), Round(250, 2.5)])]
        [500, 250, 353]
    """
    left = max(0.0, course.seconds - sum(done.seconds for done in rounds))
    good = min([course.start, *(done.kept for done in rounds if is_good(course, done))])
    bad = max((done.kept for done in rounds if not is_good(course, done)), default=None)
    first_bad = next((number for number, done in enumerate(rounds) if not is_good(course, done)), len(rounds))
    tried = len(rounds) - 1 - first_bad
    floor = max(course.least, course.target or 1)
    if good <= floor:
        return Step(None, left, LEAST if course.target is None or good > course.target else REACHED)
    if bad is None:
        kept, to_come = _forward(course, good, floor)
    else:
        kept, to_come = math.isqrt(good * bad), course.retries - tried
        if to_come <= 0 or not max(bad, floor - 1) < kept < good:
            return Step(None, left, ALLOWED)
    if left <= 2 * _epoch(rounds):  # one for the round, one for what comes after it
        return Step(None, left, NO_TIME)
    return Step(kept, left / (to_come + course.fine_share))


def _forward(course: Course, good: int, floor: int) -> tuple[int, int]:
    """(weights to keep next, rounds that are still to be expected, this one included)."""
    end = floor if course.target is not None else max(floor, math.ceil(EXPECTED * course.start))
    steps = max(1, math.ceil(math.log(end / good) / math.log(course.keep) - 1e-9)) if end < good else 1
    kept = course.keep * good if course.target is None else good * (end / good) ** (1.0 / steps)
    return max(floor, min(math.floor(kept + 1e-9), good - 1)), steps


def _epoch(rounds: Sequence[Round]) -> float:
    """The longest seconds per epoch so far; 0 before the first round."""
    return max((done.seconds / done.epochs for done in rounds), default=0.0)
