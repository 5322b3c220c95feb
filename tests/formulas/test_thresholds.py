"""Properties of the threshold mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas.thresholds import threshold_mask

PAIRS = hnp.array_shapes(max_dims=3, max_side=5).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.5, -0.5, 1.0, -2.0])),
        hnp.arrays(bool, shape),
    )
)


@given(pair=PAIRS, threshold=st.sampled_from([0.0, 0.5, 0.75, 2.0, 5.0]))
def test_each_entry_follows_the_rule_and_the_floor_keeps_one(pair, threshold):
    weight, alive = pair
    if not alive.any():
        return
    mask, floored = threshold_mask(weight, threshold, alive)
    rule = [bool(a) and abs(float(w)) >= threshold for w, a in zip(weight.flat, alive.flat, strict=True)]
    assert floored is (not any(rule))
    if floored:
        living = [(-abs(float(weight.flat[i])), i) for i in range(weight.size) if alive.flat[i]]
        rule = [i == min(living)[1] for i in range(weight.size)]  # largest magnitude, then lowest index
    assert mask.dtype == bool
    assert mask.shape == weight.shape
    assert mask.reshape(-1).tolist() == rule


def test_the_comparison_is_strict_and_in_the_dtype_of_the_weight():
    # float32(1e-3) is above the float64 number 1e-3, float32(0.1) too, float32(0.3) as well; float32(0.7) is below
    for number in (1e-3, 0.1, 0.3, 0.7):
        weight = np.array([number, np.nextafter(np.float32(number), np.float32(0)), 1.0], np.float32)
        mask, floored = threshold_mask(weight, number, np.ones(3))
        assert mask.tolist() == [True, False, True]
        assert not floored


def test_dead_entries_stay_dead_also_when_they_are_the_largest():
    mask, floored = threshold_mask([9.0, -1.0, 0.5], 5.0, [0, 1, 1])
    assert mask.tolist() == [False, True, False]
    assert floored


def test_nan_is_kept():
    mask, floored = threshold_mask([math.nan, 0.1, math.nan], 1.0, [1, 1, 0])
    assert mask.tolist() == [True, False, False]
    assert not floored


def test_a_tensor_that_is_all_dead_is_refused():
    with pytest.raises(ArgumentError) as caught:
        threshold_mask([1.0, 2.0], 0.5, [False, False])
    assert str(caught.value) == "Argument `alive` must be true for at least one entry. Received: array([False, False])."


def test_another_shape_of_alive_is_refused():
    with pytest.raises(ArgumentError) as caught:
        threshold_mask([1.0, 2.0], 0.5, [True])
    assert str(caught.value) == "Argument `alive` must be of the weight's shape (2,). Received: (1,)."


@pytest.mark.parametrize("threshold", [-1e-3, math.nan, math.inf, None, "1e-3"])
def test_a_threshold_that_is_no_magnitude_is_refused(threshold):
    with pytest.raises(ArgumentError) as caught:
        threshold_mask([1.0], threshold, [True])
    assert str(caught.value) == (
        f"Argument `threshold` must be a finite number of at least 0. Received: {threshold!r}."
    )
