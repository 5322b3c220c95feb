"""Allocation of zeros over tensors: exact counts, bounds, ties, and an oracle that removes one entry at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas.allocation import erdos_renyi_shares, kept_counts, lowest_first, zeros_asked

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@st.composite
def bounded(draw):
    """(shares, kept, low, high) that can be met."""
    sizes = draw(SIZES)
    low = [draw(st.integers(0, size)) for size in sizes]
    high = [draw(st.integers(lo, size)) for lo, size in zip(low, sizes, strict=True)]
    shares = [draw(st.floats(0, 1e6)) for _ in sizes]
    return shares, draw(st.integers(sum(low), sum(high))), low, high


@given(bounded())
def test_counts_add_up_and_keep_to_the_bounds(case):
    shares, kept, low, high = case
    counts = kept_counts(shares, kept, low, high)
    assert counts.sum() == kept
    assert all(counts >= low)
    assert all(counts <= high)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6), st.floats(0, 1))
def test_without_bounds_counts_are_proportional_to_the_shares(shares, fraction):
    n = 10_000
    kept = round(fraction * n)
    counts = kept_counts(shares, kept, [0] * len(shares), [n] * len(shares))
    exact = kept * np.array(shares) / sum(shares)
    assert np.all(np.abs(counts - exact) < 1)  # rounded down or up, never further


def test_what_a_full_tensor_cannot_take_goes_to_the_others():
    assert kept_counts([10, 1, 1], 14, [0, 0, 0], [4, 20, 20]).tolist() == [4, 5, 5]
    assert kept_counts([1, 1], 10, [7, 0], [20, 20]).tolist() == [7, 3]
    assert kept_counts([0, 1], 10, [0, 0], [9, 4]).tolist() == [6, 4]  # a share of 0 only where nothing else is left


def test_bounds_that_cannot_hold_the_total_are_refused():
    with pytest.raises(ArgumentError, match="between 3 and 5"):
        kept_counts([1, 1], 6, [1, 2], [2, 3])
    with pytest.raises(ArgumentError, match="between 1 and 3"):
        lowest_first([[1.0, 2.0], [3.0]], 0, [1, 0], [2, 1])


def one_by_one(scores, zeros, low, high):
    """Removes single entries: what each tensor must give first, then the lowest score that is still allowed."""
    kept = [dict(enumerate(score)) for score in scores]
    gone = [0] * len(scores)

    def remove(t):
        index = min(kept[t], key=lambda i: (kept[t][i], i))
        del kept[t][index]
        gone[t] += 1

    for t, least in enumerate(low):
        for _ in range(least):
            remove(t)
    while sum(gone) < zeros:
        open_ = [t for t in range(len(scores)) if gone[t] < high[t]]
        remove(min(open_, key=lambda t: (min(kept[t].values()), t)))
    return [[i in k for i in range(len(s))] for k, s in zip(kept, scores, strict=True)]


@st.composite
def scored(draw):
    _shares, kept, low, high = draw(bounded())
    sizes = [max(h, 1) for h in high]
    scores = [[draw(st.sampled_from([-np.inf, 0.0, 0.5, 1.0, 2.0])) for _ in range(n)] for n in sizes]  # many ties
    return scores, kept, low, high


@given(scored())
def test_lowest_first_is_removal_one_by_one(case):
    scores, zeros, low, high = case
    masks = lowest_first(scores, zeros, low, high)
    assert [m.tolist() for m in masks] == one_by_one(scores, zeros, low, high)
    assert sum(int((~m).sum()) for m in masks) == zeros


def test_groups_are_counted_by_their_weights_and_never_too_many_go():
    scores, sizes = [[1.0, 3.0, 5.0], [2.0, 4.0]], [[4, 4, 4], [10, 10]]
    gone = {zeros: lowest_first(scores, zeros, [0, 0], [12, 20], sizes) for zeros in (3, 4, 13, 14, 18, 32)}
    assert {z: [m.tolist().count(False) for m in masks] for z, masks in gone.items()} == {
        3: [0, 0],
        4: [1, 0],
        13: [1, 0],
        14: [1, 1],
        18: [2, 1],
        32: [3, 2],
    }


def test_shapes_are_kept_and_nan_is_refused():
    masks = lowest_first([np.ones((2, 3)), np.zeros((4, 1))], 5, [0, 0], [6, 4])
    assert [m.shape for m in masks] == [(2, 3), (4, 1)]
    assert masks[0].ravel().tolist() == [False] + [True] * 5
    with pytest.raises(ArgumentError, match="free of NaN"):
        lowest_first([[np.nan]], 0, [0], [1])


def test_erdos_renyi_densities_of_lenet_300_100():
    """Density of layer l: c (inputs + outputs) / (inputs * outputs), one c for all."""
    shapes = [(784, 300), (300, 100), (100, 10)]
    sizes = [a * b for a, b in shapes]
    counts = kept_counts(erdos_renyi_shares(shapes), 20_000, [1] * 3, sizes)
    c = 20_000 - 1000  # the last layer would be denser than 1, so it is full; the others share the rest
    assert counts.tolist() == [round(c * 1084 / 1484), round(c * 400 / 1484), 1000]


def test_halves_go_up():
    assert [zeros_asked(s, 5) for s in (0.0, 0.1, 0.5, 0.9)] == [0, 1, 3, 5]
