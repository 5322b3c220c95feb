"""The rounds: on simulated error-sparsity curves they end, within the error, and as near to it as was promised."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sensprune.planning.rounds import ALLOWED, LEAST, NO_TIME, REACHED, Course, Round, is_good, next_step


def play(course, error_of, seconds_of=lambda step: (1, 0.0), most=2000):
    """All rounds of a course on a curve kept -> error; each takes the (epochs, seconds) of `seconds_of`."""
    rounds = []
    for _ in range(most):
        step = next_step(course, rounds)
        if step.kept is None:
            return rounds, step
        rounds.append(Round(step.kept, error_of(step.kept), *seconds_of(step)))
    raise AssertionError("the rounds do not end")


def good_and_bad(course, rounds):
    good = min([course.start, *(r.kept for r in rounds if is_good(course, r))])
    return good, max((r.kept for r in rounds if not is_good(course, r)), default=None)


def test_halves_until_the_error_is_too_large_then_bisects_twice():
    course = Course(start=1000, allowed=2.0)
    rounds, end = play(course, lambda kept: 1.0 + 100.0 / kept)  # 2.0 at 100 weights
    assert [r.kept for r in rounds] == [500, 250, 125, 62, 88, 104]  # isqrt(125 * 62) = 88, isqrt(125 * 88) = 104
    assert [is_good(course, r) for r in rounds] == [True, True, True, False, False, True]
    assert end.why == ALLOWED


def test_a_target_is_approached_in_equal_steps_and_met_exactly():
    rounds, end = play(Course(start=1000, target=100), lambda kept: 99.0)
    # ceil(log 10 / log 2) = 4 steps of 10^(-1/4)
    assert [r.kept for r in rounds] == [562, 316, 177, 100]
    assert end.why == REACHED


def test_with_both_the_error_wins():
    rounds, end = play(Course(start=1000, target=10, allowed=2.0), lambda kept: 1.0 + 100.0 / kept)
    assert end.why == ALLOWED
    assert all(r.kept > 10 for r in rounds)


def test_without_any_limit_every_tensor_keeps_one_weight():
    rounds, end = play(Course(start=100, least=3), lambda kept: 0.0)
    assert rounds[-1].kept == 3
    assert end.why == LEAST


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_not_finite_is_too_large(error):
    assert not is_good(Course(start=10, allowed=1.0), Round(5, error))


def test_nothing_is_done_where_the_target_is_met_already():
    assert next_step(Course(start=50, target=60), []).why == REACHED


def test_the_time_is_shared_among_the_rounds_to_come_and_the_fine_tuning():
    course = Course(start=1000, target=250, seconds=100.0, fine_share=2.0)
    assert next_step(course, []).seconds == 25.0  # two rounds, and the fine-tuning as long as two
    assert next_step(course, [Round(500, 0.0, 4, 40.0)]).seconds == 20.0  # 60 s for one round and two


def test_no_round_begins_for_which_there_is_no_time():
    course = Course(start=1000, seconds=10.0)
    step = next_step(course, [Round(500, 0.0, 2, 8.0)])  # 4 s per epoch, 2 s left
    assert (step.kept, step.why, step.seconds) == (None, NO_TIME, 2.0)


curves = st.tuples(st.floats(0.1, 3.0), st.floats(0.1, 3.0))


@given(
    start=st.integers(2, 10**6),
    least=st.integers(1, 5),
    curve=curves,
    budget=st.floats(0.0, 10.0),
    keep=st.floats(0.05, 0.95),
    retries=st.integers(0, 3),
)
def test_on_a_growing_curve_the_answer_is_within_a_known_factor_of_the_best(start, least, curve, budget, keep, retries):
    scale, power = curve
    least = min(least, start)

    def error(kept):
        return scale * (start / kept) ** power

    course = Course(start, least, allowed=scale + budget, keep=keep, retries=retries)
    rounds, end = play(course, error)
    good, bad = good_and_bad(course, rounds)
    assert error(good) <= course.allowed * (1 + 1e-12) or good == start
    if end.why == LEAST:
        assert good == least
    elif bad is not None:
        # Each of `retries` bisections takes the square root of the ratio between good and bad, which was that of the
        # first bad round and the one before it; rounding a number of weights down changes it by less than 1.
        number = next(i for i, r in enumerate(rounds) if not is_good(course, r))
        first = rounds[number].kept
        ratio = (rounds[number - 1].kept if number else start) / first
        for _ in range(retries):
            ratio = math.sqrt(ratio) * (1 + 2 / first)
        assert good / bad <= ratio * (1 + 2 / bad) or good - bad <= 2


@given(
    start=st.integers(2, 10**5),
    target=st.none() | st.integers(1, 10**5),
    keep=st.floats(0.05, 0.95),
    errors=st.lists(st.floats(0.0, 4.0) | st.just(math.nan), min_size=1, max_size=7),
)
def test_whatever_is_measured_the_rounds_end_and_the_last_good_one_falls(start, target, keep, errors):
    course = Course(start, target=target, allowed=2.0, keep=keep)
    measured = iter(errors * 2000)
    rounds, end = play(course, lambda kept: next(measured))
    good = start
    for done in rounds:
        assert max(1, target or 1) <= done.kept < good  # always sparser than the last good one, never beyond the target
        if is_good(course, done):
            good = done.kept
    first = next((i for i, r in enumerate(rounds) if not is_good(course, r)), len(rounds))
    assert len(rounds) - 1 - first <= course.retries
    assert end.why in (REACHED, LEAST, ALLOWED)


@given(
    minutes=st.floats(0.01, 100.0),
    epoch=st.floats(0.001, 0.05),
    target=st.none() | st.integers(1, 500),
    fine_share=st.floats(0.0, 3.0),
)
def test_rounds_that_keep_to_their_time_leave_some_for_the_fine_tuning(minutes, epoch, target, fine_share):
    course = Course(1000, target=target, seconds=60 * minutes, fine_share=fine_share)

    def spent(step):
        """As many epochs as fit, at least one, at most ten."""
        epochs = max(1, min(10, math.floor(step.seconds / (60 * minutes * epoch))))
        return epochs, epochs * 60 * minutes * epoch

    rounds, end = play(course, lambda kept: 0.0, spent)
    total = sum(r.seconds for r in rounds)
    # A round is only begun if two epochs fit, and takes one of them, or no more than its share.
    assert total <= course.seconds * (1 + 1e-9)
    assert math.isclose(end.seconds, max(0.0, course.seconds - total), abs_tol=1e-6)
