"""The factor of a strength: when a quantity has reached a plateau, and the law that holds an error at a tolerance."""

from __future__ import annotations

import math

# Of the control law, see `controlled_factor` and `adapted_gain`. Chosen on a simulated plant, see docs/rules.md.
PROPORTIONAL, INTEGRAL = 0.3, 0.3
OVERSHOOT = 1.5
HIGHEST_RISE, DEEPEST_FALL = 1.5, 4.0
LEAST_GAIN = 0.125
BAND = 0.1  # about the tolerance, which the law shall hold


def wait_on_plateau(value: float, best: float, waited: int, least: float, patience: int) -> tuple[float, int, bool]:
    """Whether a quantity of which less is better has stopped becoming better.

    It becomes better if value < best - least. Every other value is waited for; after `patience` of them in a row
    there is a plateau, and the wait begins anew, with the best value kept.

    Args:
        value: the quantity now; what is not a number is not better.
        best: its best value so far; infinity if there is none.
        waited: for how many values in a row.
        least: by how much it must become better, at least 0.
        patience: at least 1.

    Returns:
        The best value, for how many values has been waited, and whether this is a plateau.

    Example:
        >>> from keras_sensprune.formulas.strength import wait_on_plateau
        >>> wait_on_plateau(0.9, best=1.0, waited=1, least=0.05, patience=2)
        (0.9, 0, False)
        >>> wait_on_plateau(0.98, best=1.0, waited=1, least=0.05, patience=2)
        (1.0, 0, True)
    """
    if value < best - least:
        return value, 0, False
    reached = waited + 1 >= patience
    return best, 0 if reached else waited + 1, reached


def spent_share(value: float, reference: float, tolerance: float) -> float:
    r"""Which share of a tolerance an error has used up: $x = (m - m_0)/\tau$, cut to $[-1, 2]$.

    Args:
        value: $m$, less is better; what is not a number counts as worst.
        reference: $m_0$.
        tolerance: $\tau > 0$.

    Returns:
        $x$; 1 where exactly the tolerance is used up.

    Example:
        >>> from keras_sensprune.formulas.strength import spent_share
        >>> spent_share(2.5, 2.0, 0.25)
        2.0
    """
    share = (value - reference) / tolerance
    return max(-1.0, share) if share <= 2.0 else 2.0  # in this order also for what is not a number


def adapted_gain(gain: float, spent: float, before: float | None) -> float:
    r"""How strongly a controller answers next: half as strongly where the error has just crossed its goal.

    $$a_{t+1} = \begin{cases}\max(1/8,\ a_t / 2) & (1 - x_t)(1 - x_{t-1}) < 0\\
    \min(1,\ \tfrac43 a_t) & \text{else}\end{cases}$$
    A network that answers strongly and at once makes a fixed law swing about the goal, and one whose error moves by
    chance makes it follow the chance: in both cases the sign changes often.

    Args:
        gain: $a_t$, in [1/8, 1]; 1 in the beginning.
        spent: $x_t$, see `spent_share`.
        before: $x_{t-1}$; None in the beginning, where the gain stays.

    Returns:
        $a_{t+1}$.

    Example:
        >>> from keras_sensprune.formulas.strength import adapted_gain
        >>> adapted_gain(1.0, 1.3, 0.8), adapted_gain(0.75, 1.3, 1.1)
        (0.5, 1.0)

    Reference: the rule of signs of Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning:
    the RPROP algorithm", 1993.
    """
    if before is None:
        return gain
    crossed = (1.0 - spent) * (1.0 - before) < 0
    return max(LEAST_GAIN, 0.5 * gain) if crossed else min(1.0, gain * 4 / 3)


def controlled_factor(factor: float, spent: float, before: float | None, gain: float, low: float, high: float) -> float:
    r"""The next factor of a strength, so that an error comes to its tolerance and stays there.

    $$\log f_{t+1} = \log f_t + \min(\log 1.5,\ \max(-\log 4,\ a\,(k_P(\epsilon_t - \epsilon_{t-1}) +
    k_I\,\epsilon_t))), \qquad \epsilon_t = \min(1 - x_t,\ 1.5\,(1 - x_t)),$$
    cut to $[\log f_{min}, \log f_{max}]$, with $x_t$ the share of the tolerance that is used up (1 is the goal),
    $k_P = k_I = 0.3$ and $a$ the gain: a proportional-integral law on the logarithm, in increments. What is over the
    tolerance counts by half more, and the factor may fall faster than rise. The increments add up to $\log f$ itself,
    so where that is cut nothing winds up. For a given gain the new factor is never larger for a larger $x_t$.

    Args:
        factor: $f_t$, in $[f_{min}, f_{max}]$.
        spent: $x_t$, see `spent_share`.
        before: $x_{t-1}$; None in the beginning, where it counts as $x_t$.
        gain: $a$, see `adapted_gain`.
        low: $f_{min} > 0$.
        high: $f_{max}$.

    Returns:
        $f_{t+1}$.

    Example:
        >>> from keras_sensprune.formulas.strength import controlled_factor
        >>> round(controlled_factor(1.0, 0.0, None, 1.0, 0.01, 100.0), 4)  # nothing used up
        1.3499
        >>> controlled_factor(1.0, 1.0, 1.0, 1.0, 0.01, 100.0)  # at the goal
        1.0
        >>> round(controlled_factor(1.0, 2.0, 0.5, 1.0, 0.01, 100.0), 4)  # far over it, and suddenly
        0.3499
    """
    room = _room(spent)
    change = 0.0 if before is None else room - _room(before)
    step = gain * (PROPORTIONAL * change + INTEGRAL * room)
    step = min(math.log(HIGHEST_RISE), max(-math.log(DEEPEST_FALL), step))
    return min(high, max(low, factor * math.exp(step)))


def _room(spent: float) -> float:
    """epsilon: what is left of the tolerance."""
    return min(1.0 - spent, OVERSHOOT * (1.0 - spent))
