"""The bisection for the largest allowed threshold against trying every candidate."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sensprune.formulas.search import largest_threshold

SCORES = st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 7.5]) | st.floats(0.01, 100), min_size=1, max_size=60)


def try_all(scores, metric, allowed):
    """The largest number of entries that can go, by trying each number of distinct values."""
    best = 0
    for cut in [*sorted(set(scores)), np.inf]:
        if metric(cut) <= allowed:
            best = max(best, sum(score < cut for score in scores))
    return best


@given(SCORES, st.floats(0, 1), st.integers(0, 70))
def test_a_metric_that_grows_has_one_answer(scores, allowed, start):
    def metric(threshold):
        return sum(score < threshold for score in scores) / len(scores)

    found = largest_threshold(scores, metric, allowed, start)
    assert found.removed == try_all(scores, metric, allowed)
    assert found.removed == sum(score < found.threshold for score in scores)
    assert found.value == metric(found.threshold)


@given(SCORES, st.lists(st.booleans(), min_size=62, max_size=62), st.integers(0, 70))
def test_any_metric_is_allowed_where_it_stops_and_not_one_step_further(scores, verdicts, start):
    distinct = sorted(set(scores))
    verdicts[0] = True

    def metric(threshold):
        return 0.0 if verdicts[sum(value < threshold for value in distinct)] else 1.0

    found = largest_threshold(scores, metric, 0.5, start)
    assert metric(found.threshold) == 0.0
    gone = sum(value < found.threshold for value in distinct)
    assert gone == len(distinct) or not verdicts[gone + 1]


def test_nothing_goes_when_the_network_is_worse_already_or_the_metric_is_no_number():
    for value in (2.0, math.nan):
        found = largest_threshold([1.0, 2.0], lambda threshold, value=value: value, 1.0)
        assert (found.threshold, found.removed, found.evaluations) == (0.0, 0, 1)
    found = largest_threshold([1.0, 2.0, 3.0], lambda threshold: math.nan if threshold > 2.5 else 0.0, 1.0)
    assert found.removed == 1  # at 2 one goes; at 3 the metric is NaN


@pytest.mark.parametrize(("start", "most"), [(0, 15), (5000, 4), (5100, 12)])
def test_a_search_near_the_last_one_is_short(start, most):
    """log2(10,001) = 13.3 evaluations, one at 0, and rounding up; from the answer itself only its neighbours."""
    scores = np.arange(1, 10_001) / 10_000
    found = largest_threshold(scores, lambda threshold: threshold, 0.5001, start, precision=0.01 if start else 0.0)
    assert abs(found.removed - 5000) <= (100 if start else 0)
    assert found.evaluations <= most


@given(SCORES, st.floats(0, 1), st.integers(0, 70), st.integers(1, 5))
def test_a_limited_search_keeps_the_best_that_it_tried(scores, allowed, start, limit):
    tried = []

    def metric(threshold):
        tried.append(threshold)
        return sum(score < threshold for score in scores) / len(scores)

    found = largest_threshold(scores, metric, allowed, start, limit=limit)
    assert found.evaluations == len(tried) <= limit + 1
    assert found.threshold == max(t for t in tried if sum(score < t for score in scores) / len(scores) <= allowed)
    refused = [sum(score < t for score in scores) for t in tried]
    assert found.refused == min((n for n in refused if n / len(scores) > allowed), default=None)


@pytest.mark.parametrize("answer", [0, 40, 300, 5000, 9900])
def test_limited_searches_one_after_the_other_get_there(answer):
    """Two thresholds each: halved from above, in steps of a 64th from below."""
    scores, start = np.arange(1, 10_001) / 10_000, 0
    for _ in range(30):
        found = largest_threshold(scores, lambda threshold: threshold, (answer + 1.5) / 10_000, start, limit=2)
        start = found.removed or (found.refused or 0) // 2
    assert answer - 10_000 / 64 <= found.removed <= answer
