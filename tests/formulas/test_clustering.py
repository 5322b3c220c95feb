"""k-means of the nonzero entries against brute force; zeros are untouchable."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas.clustering import cluster_nonzeros


def cost(values, rounded):
    return float(np.sum((np.asarray(values, np.float64) - np.asarray(rounded, np.float64)) ** 2))


def best_cost(values, clusters):
    """Brute force: an optimal clustering in one dimension cuts the sorted values into runs."""
    ordered = np.sort(values)
    found = []
    for cuts in itertools.combinations(range(1, len(ordered)), clusters - 1):
        runs = np.split(ordered, cuts)
        found.append(sum(float(np.sum((run - run.mean()) ** 2)) for run in runs))
    return min(found)


def test_three_clear_groups_are_found():
    values = np.array([0.9, 1.0, 1.1, 0.0, -2.0, -2.2, 5.0, 0.0, 5.2])
    rounded = cluster_nonzeros(values, 3)
    np.testing.assert_allclose(rounded, [1, 1, 1, 0, -2.1, -2.1, 5.1, 0, 5.1], rtol=0, atol=1e-12)
    # both sums add 7 squares of float64 numbers below 30
    assert cost(values, rounded) == pytest.approx(best_cost(values[values != 0], 3), abs=1e-12)


@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(6, 11))
def test_never_far_from_the_optimum_and_a_fixed_point(seed, clusters, size):
    values = np.random.default_rng(seed).normal(size=size)
    rounded = cluster_nonzeros(values, clusters)
    assert len(np.unique(rounded)) <= clusters
    optimum = best_cost(values, clusters)
    assert optimum - 1e-12 <= cost(values, rounded) <= np.sum((values - values.mean()) ** 2) + 1e-12
    for value in np.unique(rounded):  # every center is the mean of its entries
        np.testing.assert_allclose(values[rounded == value].mean(), value, rtol=0, atol=1e-12)


@given(st.integers(0, 2**31), st.floats(0, 0.95))
def test_zeros_and_dtype_stay(seed, sparsity):
    generator = np.random.default_rng(seed)
    values = (generator.normal(size=(8, 9)) * (generator.random((8, 9)) >= sparsity)).astype("float32")
    rounded = cluster_nonzeros(values, 4)
    assert (rounded.dtype, rounded.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(rounded == 0, values == 0)
    np.testing.assert_array_equal(rounded, cluster_nonzeros(values, 4))


def test_few_values_stay_as_they_are():
    values = np.array([0.5, 0.0, 0.5, -1.0])
    np.testing.assert_array_equal(cluster_nonzeros(values, 2), values)
    np.testing.assert_array_equal(cluster_nonzeros(np.zeros(4), 2), np.zeros(4))


@pytest.mark.parametrize("clusters", [1, 0, 2.0, True, "two"])
def test_a_wrong_number_is_refused(clusters):
    with pytest.raises(ArgumentError, match="`clusters` must be an integer of at least 2"):
        cluster_nonzeros([1.0], clusters)
