"""Counts against numbers one can check in the head, and against loops."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas.counting import (
    compression_ratio,
    dead_recurrent_units,
    dead_units,
    information_bits,
    magnitude_histogram,
    sparsity,
)


def test_sparsity_and_compression_of_a_known_network():
    total, nonzero = 784 * 300 + 300 * 100 + 100 * 10, 2662  # LeNet-300-100 with 1 % left
    assert total == 266200
    assert sparsity(nonzero, total) == 1 - 2662 / 266200
    assert compression_ratio(total, nonzero) == 100.0


def test_nothing_left_and_nothing_there():
    assert compression_ratio(10, 0) == float("inf")
    assert sparsity(0, 10) == 1.0
    assert sparsity(0, 0) == 0.0


@pytest.mark.parametrize("axis", [-1, 0, 1, 2])
def test_dead_units_are_the_all_zero_slices(axis):
    kernel = np.random.default_rng(0).integers(0, 2, (2, 3, 4)) * (np.arange(4) != 2)
    slices = [np.take(kernel, i, axis) for i in range(kernel.shape[axis])]
    assert dead_units(kernel, axis) == sum(not piece.any() for piece in slices)
    assert dead_units(np.zeros((2, 3, 4)), axis) == kernel.shape[axis]


def test_nan_is_alive_and_negative_zero_is_dead():
    assert dead_units([[np.nan, -0.0, 0.0]]) == 2


@pytest.mark.parametrize(
    ("layer", "gates"),
    [(keras.layers.SimpleRNN(4), 1), (keras.layers.GRU(4), 3), (keras.layers.LSTM(4), 4)],
    ids=["SimpleRNN", "GRU", "LSTM"],
)
def test_a_recurrent_unit_is_dead_only_when_every_gate_of_both_kernels_is(layer, gates):
    layer.build((None, 2, 3))
    kernel, recurrent = np.ones(layer.cell.kernel.shape), np.ones(layer.cell.recurrent_kernel.shape)
    for gate in range(gates):  # unit 1 loses everything, unit 2 only its recurrent part
        kernel[:, gate * 4 + 1] = recurrent[:, gate * 4 + 1] = recurrent[:, gate * 4 + 2] = 0
    assert dead_recurrent_units(kernel, recurrent, 4, gates) == 1
    kernel[0, (gates - 1) * 4 + 1] = 1  # one weight in the last gate revives it
    assert dead_recurrent_units(kernel, recurrent, 4, gates) == 0


def test_kernels_of_the_wrong_width_are_refused():
    with pytest.raises(ArgumentError) as caught:
        dead_recurrent_units(np.ones((2, 8)), np.ones((2, 7)), 2, 4)
    assert str(caught.value) == (
        "Argument `recurrent_kernel` must be of shape (..., 8), gates * units. Received: (2, 7)."
    )


def test_bins_are_closed_below_and_open_above():
    edges = (-2.0, -1.0, 0.0, 1.0)
    assert magnitude_histogram([0.01, 0.1, -1.0], edges) == (1, 1, 1)
    assert magnitude_histogram([0.0999, -0.999, 9.99], edges) == (1, 1, 1)
    # outside: smaller into the first, larger and NaN into the last; zeros nowhere
    assert magnitude_histogram([1e-30, 0.0, -0.0, 10.0, np.inf, np.nan], edges) == (1, 0, 3)


@given(st.lists(st.floats(width=32), max_size=30), st.integers(2, 6))
def test_the_counts_add_up_to_the_nonzero_values(values, count):
    histogram = magnitude_histogram(np.array(values, np.float32), tuple(range(-3, count - 3)))
    assert len(histogram) == count - 1
    assert sum(histogram) == sum(value != 0 for value in values)


@pytest.mark.parametrize(("total", "nonzero"), [(1, 0), (1, 1), (10, 3), (100, 50), (266200, 8228)])
def test_information_is_the_values_and_the_choice_of_positions(total, nonzero):
    exact = math.log2(math.comb(total, nonzero)) + 8 * nonzero
    # lgamma is good to about 1e-15 of values up to 3e6, of which three are subtracted
    assert information_bits(total, nonzero, 8) == pytest.approx(exact, abs=1e-7, rel=1e-9)
