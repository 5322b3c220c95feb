"""The Pareto front against comparing all pairs, and its properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas.pareto import pareto_front

VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, math.inf]) | st.floats(-10, 10)


def clouds(objectives):
    return st.lists(st.tuples(*[VALUES] * objectives), max_size=25)


CLOUDS = st.integers(1, 4).flatmap(clouds)


def beats(one, other):
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


@given(CLOUDS)
def test_the_front_is_that_of_comparing_all_pairs(points):
    expected = {
        number
        for number, point in enumerate(points)
        if not any(beats(other, point) for other in points) and point not in points[:number]
    }
    front = pareto_front(points)
    assert set(front) == expected
    assert len(front) == len(expected)
    assert [points[number] for number in front] == sorted(points[number] for number in front)


@given(CLOUDS)
def test_nothing_beats_the_front_and_it_beats_or_equals_all_else(points):
    front = [points[number] for number in pareto_front(points)]
    assert bool(front) == bool(points)
    assert not any(beats(point, kept) for point in points for kept in front)
    assert all(any(kept == point or beats(kept, point) for kept in front) for point in points)


@given(CLOUDS.flatmap(lambda points: st.tuples(st.just(points), st.permutations(points))))
def test_the_front_does_not_depend_on_the_order_of_the_points(pair):
    first, second = ([points[number] for number in pareto_front(points)] for points in pair)
    assert first == second


@given(clouds(2))
def test_with_two_objectives_the_front_is_a_staircase(points):
    front = np.array([points[number] for number in pareto_front(points)]).reshape(-1, 2)
    assert np.all(front[1:, 0] > front[:-1, 0])
    assert np.all(front[1:, 1] < front[:-1, 1])


@given(clouds(2), st.integers(0, 24))
def test_a_monotone_scale_of_an_objective_changes_nothing(points, shift):
    stretched = [(error, math.atan(size - shift)) for error, size in points]
    if len({size for _, size in stretched}) == len({size for _, size in points}):  # rounding may make some equal
        assert pareto_front(stretched) == pareto_front(points)


@pytest.mark.parametrize("points", [[1.0, 2.0], [[1.0, math.nan]], 3.0])
def test_what_is_no_list_of_points_is_refused(points):
    with pytest.raises(ArgumentError, match="Argument `points` must be an array of shape"):
        pareto_front(points)
