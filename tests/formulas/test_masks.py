"""Properties of the exact-count mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas.masks import exact_count_mask

# Few distinct values, so that most arrays have ties.
TIED = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.sampled_from([0.0, -0.0, 1.0, 2.0]))
FRACTIONS = st.floats(0, 1, exclude_max=True)


def zeros(mask: np.ndarray) -> int:
    return int((mask == 0).sum())


def by_stable_sort(score: np.ndarray, count: int) -> np.ndarray:
    """The slow way: sort all entries, lowest first, equal ones in index order."""
    mask = np.ones(score.size, np.float32)
    mask[np.argsort(score.reshape(-1), kind="stable")[:count]] = 0
    return mask.reshape(score.shape)


@given(score=TIED, sparsity=FRACTIONS)
def test_the_count_is_exact_and_the_ties_fall_as_in_a_stable_sort(score, sparsity):
    mask = exact_count_mask(score, sparsity)
    expected = min(math.floor(sparsity * score.size + 0.5), score.size - 1)
    assert zeros(mask) == expected
    np.testing.assert_array_equal(mask, by_stable_sort(score, expected))


@given(score=TIED, sparsities=st.tuples(FRACTIONS, FRACTIONS))
def test_a_higher_sparsity_only_removes_more(score, sparsities):
    low, high = sorted(sparsities)
    assert (exact_count_mask(score, high) <= exact_count_mask(score, low)).all()


def test_half_of_an_all_equal_tensor_goes():
    assert zeros(exact_count_mask(np.ones((4, 4)), 0.5)) == 8


def test_existing_zeros_count_towards_the_sparsity():
    score = np.zeros((4, 4))
    score[0] = [4, 3, 2, 1]
    assert exact_count_mask(score, 0.5).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert exact_count_mask(score, 0.875).tolist() == [[1, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]


@pytest.mark.parametrize(
    ("n", "sparsity", "expected"), [(5, 0.5, 3), (4, 0.125, 1), (3, 0.1, 0), (1, 0.99, 0), (3, 0.99, 2)]
)
def test_halves_round_up_and_one_entry_is_always_kept(n, sparsity, expected):
    # 2.5 -> 3, 0.5 -> 1, 0.3 -> 0, 0.99 -> 1 but one is kept, 2.97 -> 3 but one is kept
    assert zeros(exact_count_mask(np.arange(n), sparsity)) == expected


def test_the_mask_is_float32_of_the_same_shape_and_the_score_is_untouched():
    score = np.array([[np.inf, -np.inf, 0.0]])
    before = score.copy()
    mask = exact_count_mask(score, 0.4)
    assert (mask.dtype, mask.shape, mask.tolist()) == (np.float32, (1, 3), [[1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(score, before)


@pytest.mark.parametrize("sparsity", [1.0, 50, -0.1, math.nan, math.inf, "0.5", None, True])
def test_a_sparsity_outside_of_zero_to_one_is_refused(sparsity):
    with pytest.raises(ArgumentError) as caught:
        exact_count_mask([1.0, 2.0], sparsity)
    assert str(caught.value) == f"Argument `sparsity` must be a fraction in [0, 1). Received: {sparsity!r}."


def test_a_score_with_nan_is_refused():
    with pytest.raises(ArgumentError) as caught:
        exact_count_mask([1.0, math.nan], 0.0)
    assert str(caught.value) == (
        "Argument `score` must be free of NaN. Received: array([ 1., nan]). "
        "Check the weights: training may have diverged."
    )


def test_an_empty_score_is_refused():
    with pytest.raises(ArgumentError) as caught:
        exact_count_mask([], 0.5)
    assert str(caught.value) == (
        "Argument `score` must be an array with at least one entry. Received: array([], dtype=float64)."
    )
