"""The control law on simulated networks, its properties, and plateaus."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from keras_sensprune.formulas.strength import adapted_gain, controlled_factor, spent_share, wait_on_plateau
from tests.reference.strength_plant import HIGH, LOW, Law, Plant, run

SETTLED = 30  # epochs, as docs/rules.md says


@pytest.mark.parametrize("gain", [0.3, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("lag", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("goal", [-2.0, 0.0, 2.0])
def test_it_settles_within_a_tenth_of_the_tolerance_whatever_the_gain(gain, lag, goal):
    errors, factors = run(Plant(gain, lag, goal), Law(), 150)
    assert np.all(np.abs(errors[SETTLED:] - 1.0) <= 0.1)
    if goal > 0:  # it comes from below
        assert errors.max() <= 1.3
    assert np.log(factors[-1]) == pytest.approx(goal, abs=0.1 / gain)  # what a tenth of the tolerance is worth


@pytest.mark.parametrize("gain", [1.0, 2.0, 4.0, 8.0])
def test_it_does_not_swing_about_the_goal_of_a_network_that_answers_at_once(gain):
    errors, _ = run(Plant(gain, lag=0, goal=2.0), Law(), 150)
    assert np.all(np.abs(errors[SETTLED:] - 1.0) <= 0.1)


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_one_bad_epoch_is_soon_forgotten(gain):
    """A pruning that takes much at once costs a multiple of the tolerance, for one epoch."""
    plant, law, factor, errors = Plant(gain, lag=1, goal=2.0), Law(), 1.0, []
    for number in range(80):
        spent = plant.epoch(factor)
        errors.append(spent)
        factor = law(factor, 3.0 if number == 50 else spent)
    assert np.all(np.abs(np.array(errors[65:]) - 1.0) <= 0.1)
    assert errors[50] == pytest.approx(1.0, abs=0.02)
    assert min(errors[51:]) >= 0.3


@pytest.mark.parametrize("gain", [0.3, 1.0, 3.0])
def test_with_noise_it_stays_there_nearly_always(gain):
    shares = []
    for seed in range(5):
        errors, _ = run(Plant(gain, noise=0.05, seed=seed), Law(), 200)
        shares.append(np.mean(np.abs(errors[SETTLED:] - 1.0) <= 0.1))
    assert np.mean(shares) >= 0.9


def test_a_slow_drift_is_followed():
    """Each epoch shifts the error by a hundredth of the tolerance; an integral keeps the distance constant."""
    errors, factors = run(Plant(1.0, drift=0.01), Law(), 200)
    assert np.all(np.abs(errors[SETTLED:] - 1.0) <= 0.1)
    assert factors[-1] < factors[SETTLED]


def test_far_over_the_tolerance_it_comes_back_quickly_and_nothing_has_wound_up():
    """100 epochs at the upper bound, where the error stays below the tolerance; then the network becomes touchy."""
    plant = Plant(1.0, goal=math.log(HIGH) + 3.0)
    law, factor = Law(), 1.0
    for _ in range(100):
        factor = law(factor, plant.epoch(factor))
    assert factor == HIGH
    plant.goal = math.log(HIGH) - 1.0
    over = []
    for _ in range(60):
        factor = law(factor, plant.epoch(factor))
        over.append(plant.error - 1.0)
    assert max(over) < 1.0
    assert np.all(np.abs(over[SETTLED:]) <= 0.1)


SPENT = st.floats(-1.0, 2.0)
FACTOR = st.floats(LOW, HIGH)
GAIN = st.floats(1 / 8, 1.0)


@given(FACTOR, SPENT, st.none() | SPENT, GAIN)
def test_the_factor_stays_in_its_bounds_and_takes_bounded_steps(factor, spent, before, gain):
    found = controlled_factor(factor, spent, before, gain, LOW, HIGH)
    assert LOW <= found <= HIGH
    # one exp and one product: a few roundings
    assert factor / 4 * (1 - 1e-12) <= found <= factor * 1.5 * (1 + 1e-12)


@given(FACTOR, SPENT, SPENT, SPENT, GAIN)
def test_a_larger_error_never_gives_a_larger_factor(factor, a, b, before, gain):
    less, more = sorted((a, b))
    found = [controlled_factor(factor, spent, before, gain, LOW, HIGH) for spent in (less, more)]
    assert found[1] <= found[0]
    first = [controlled_factor(factor, spent, None, gain, LOW, HIGH) for spent in (less, more)]
    assert first[1] <= first[0]


@given(FACTOR, GAIN)
def test_at_the_tolerance_nothing_changes(factor, gain):
    assert controlled_factor(factor, 1.0, 1.0, gain, LOW, HIGH) == factor
    assert controlled_factor(factor, 1.0, None, gain, LOW, HIGH) == factor


@given(GAIN, SPENT, SPENT)
def test_the_gain_is_halved_at_a_crossing_and_else_grows(gain, spent, before):
    found = adapted_gain(gain, spent, before)
    assert 1 / 8 <= found <= 1
    crossed = min(spent, before) < 1 < max(spent, before)
    assert found == (max(1 / 8, gain / 2) if crossed else min(1.0, gain * 4 / 3))
    assert adapted_gain(gain, spent, None) == gain


def test_the_law_is_its_formula():
    room = [min(1 - x, 1.5 * (1 - x)) for x in (0.4, 1.2)]
    expected = math.exp(0.5 * (0.3 * (room[1] - room[0]) + 0.3 * room[1]))
    # the same operations up to one logarithm
    assert controlled_factor(1.0, 1.2, 0.4, 0.5, LOW, HIGH) == pytest.approx(expected, rel=1e-14)


def test_the_share_of_the_tolerance_is_cut_and_what_is_no_number_is_worst():
    assert spent_share(0.3, 0.1, 0.4) == pytest.approx(0.5, rel=1e-15)
    assert spent_share(9.0, 0.1, 0.4) == 2.0
    assert spent_share(-9.0, 0.1, 0.4) == -1.0
    assert spent_share(math.nan, 0.1, 0.4) == 2.0
    assert spent_share(math.inf, 0.1, 0.4) == 2.0


def plateaus(values, least, patience):
    best, waited, found = math.inf, 0, []
    for value in values:
        best, waited, reached = wait_on_plateau(value, best, waited, least, patience)
        found.append(reached)
    return found


def test_a_plateau_is_so_many_values_in_a_row_that_are_not_better():
    assert plateaus([3, 2, 2, 2, 2, 2, 1, 1, 0], 0, 2) == [False, False, False, True, False, True, False, False, False]
    assert plateaus([3, 2.6, 2.4, 2.2], 0.5, 1) == [False, True, False, True]
    assert plateaus([math.nan, 1.0, math.nan, math.nan], 0, 2) == [False, False, False, True]


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 4))
def test_plateaus_are_those_of_a_count_by_hand(values, patience):
    expected, since = [], 0
    for number, value in enumerate(values):
        since = 0 if number == 0 or value < min(values[:number]) else since + 1
        expected.append(since > 0 and since % patience == 0)
    assert plateaus(values, 0, patience) == expected
