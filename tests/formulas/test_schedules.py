"""Sparsity schedules against values worked out by hand."""

import pytest

from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas.schedules import SparsitySchedule


def polynomial_by_steps(final, initial, begin, end, t):
    """Zhu and Gupta's formula as printed: s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3."""
    return final + (initial - final) * (1 - (t - begin) / (end - begin)) ** 3


@pytest.mark.parametrize(("initial", "begin", "end"), [(0.0, 0, 10), (0.3, 2, 7), (0.5, 1, 2)])
def test_polynomial_is_zhu_and_gupta(initial, begin, end):
    schedule = SparsitySchedule(0.9, initial=initial, begin=begin, end=end)
    for t in range(1, 20):
        expected = 0.0 if t < begin else polynomial_by_steps(0.9, initial, begin, end, min(t, end))
        assert schedule.at(t, 20) == pytest.approx(expected, abs=1e-15)  # a few roundings of values below 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]),
        ("cosine", [0.0, 0.11715728752538099, 0.4, 0.682842712474619, 0.8, 0.8]),  # 0.4 (1 -+ cos(pi / 4))
        ("constant", [0.0, 0.8, 0.8, 0.8, 0.8, 0.8]),
    ],
)
def test_other_shapes(shape, expected):
    schedule = SparsitySchedule(0.8, shape, end=4)
    assert [schedule.at(t, 10) for t in range(6)] == pytest.approx(expected, abs=1e-15)


def test_fractions_are_of_all_epochs():
    by_fraction = SparsitySchedule(0.9, begin=0.1, end=0.5)
    by_epoch = SparsitySchedule(0.9, begin=4, end=20)
    assert [by_fraction.at(t, 40) for t in range(41)] == [by_epoch.at(t, 40) for t in range(41)]
    assert by_fraction.at(3, 40) == 0.0
    assert by_fraction.at(20, 40) == 0.9


def test_it_never_falls_and_ends_exactly_at_the_final_sparsity():
    for shape in ("polynomial", "cosine", "linear", "constant"):
        values = [SparsitySchedule(0.95, shape, initial=0.2, begin=3, end=0.8).at(t, 30) for t in range(31)]
        assert values == sorted(values)
        assert values[-1] == 0.95
        assert values[2] == 0.0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"final": 1.0}, "final"),
        ({"final": 90}, "final"),
        ({"final": "0.9"}, "final"),
        ({"final": 0.5, "initial": 0.6}, "initial"),
        ({"final": 0.5, "shape": "cubic"}, "shape"),
        ({"final": 0.5, "begin": -1}, "begin"),
        ({"final": 0.5, "begin": True}, "begin"),
        ({"final": 0.5, "end": 1.5}, "end"),
        ({"final": 0.5, "begin": 5, "end": 5}, "end"),
        ({"final": 0.5, "begin": 0.5, "end": 0.25}, "end"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ArgumentError, match=f"Argument `{name}` must be"):
        SparsitySchedule(**arguments)


def test_moments_of_different_kinds_are_compared_when_the_epochs_are_known():
    schedule = SparsitySchedule(0.5, begin=10, end=0.5)
    assert schedule.moments(40) == (10, 20.0)
    with pytest.raises(ArgumentError, match="in a training of 20 epochs"):
        schedule.at(3, 20)
