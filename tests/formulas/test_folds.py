"""Stratified folds, and the choice by one standard error against loops."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas.folds import one_standard_error, stratified_folds

LABELS = st.lists(st.integers(-2, 4), min_size=2, max_size=80)


@given(LABELS, st.integers(2, 7), st.integers(0, 5))
def test_folds_and_classes_in_them_differ_by_at_most_one(labels, folds, seed):
    folds = min(folds, len(labels))
    fold = stratified_folds(labels, folds, seed)
    for chosen in [np.ones(len(labels), bool), *(np.array(labels) == label for label in set(labels))]:
        counts = [int(np.sum(fold[chosen] == number)) for number in range(folds)]
        assert sum(counts) == chosen.sum()
        assert max(counts) - min(counts) <= 1


def test_folds_are_a_function_of_the_seed_and_not_of_the_order_of_the_labels_alone():
    labels = np.arange(60) % 3
    first = stratified_folds(labels, 5, seed=1)
    np.testing.assert_array_equal(stratified_folds(labels, 5, seed=1), first)
    assert (stratified_folds(labels, 5, seed=2) != first).any()
    assert (first != np.sort(first)).any()


@pytest.mark.parametrize(
    ("labels", "folds", "seed", "message"),
    [
        ([0, 1, 1], 4, 0, "Argument `folds` must be at most the number of examples, 3. Received: 4."),
        ([0, 1, 1], 1, 0, "Argument `folds` must be an integer of at least 2. Received: 1."),
        ([0, 1, 1], 2.0, 0, "Argument `folds` must be an integer of at least 2. Received: 2.0."),
        ([0, 1, 1], 2, -1, "Argument `seed` must be an integer of at least 0. Received: -1."),
        ([[0], [1]], 2, 0, "Argument `labels` must be an array of shape (n,). Received: (2, 1)."),
    ],
)
def test_folds_that_cannot_be_made_are_refused(labels, folds, seed, message):
    with pytest.raises(ArgumentError) as caught:
        stratified_folds(labels, folds, seed)
    assert str(caught.value) == message


def by_loops(errors, sparsities):
    means = [statistics.fmean(row) for row in errors]
    best = means.index(min(means))
    allowed = means[best] + statistics.stdev(errors[best]) / math.sqrt(len(errors[best]))
    chosen = best
    for number, mean in enumerate(means):
        here, there = statistics.fmean(sparsities[number]), statistics.fmean(sparsities[chosen])
        if mean <= allowed and (here > there or (here == there and mean < means[chosen])):
            chosen = number
    return chosen, best


# Quarters: sums and means of four of them are exact in binary, so the two ways of adding cannot differ.
ERRORS = st.lists(st.tuples(*[st.integers(0, 12).map(lambda n: n / 4)] * 4), min_size=1, max_size=8)


@given(ERRORS, st.data())
def test_the_choice_is_that_of_the_loops(errors, data):
    sparsities = [data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75])) for _ in errors]
    rows = [[s] * 4 for s in sparsities]
    (chosen, best), (expected, lowest) = one_standard_error(errors, rows), by_loops(errors, rows)
    assert best == lowest
    means = [statistics.fmean(row) for row in errors]
    assert (sparsities[chosen], means[chosen]) == (sparsities[expected], means[expected])
    assert sparsities[chosen] >= sparsities[best]


def test_the_arithmetic_of_the_rule():
    """The best has errors 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3) = 0.577."""
    errors = [[1, 2, 3], [2.5, 2.5, 2.5], [2.6, 2.6, 2.6], [1.9, 2.0, 2.2]]
    sparsities = [[0.1] * 3, [0.5] * 3, [0.9] * 3, [0.2] * 3]
    assert one_standard_error(errors, sparsities) == (1, 0)


@pytest.mark.parametrize(
    "errors", [[], [[1.0], [2.0]], [1.0, 2.0], [[1.0, math.nan]], [[1.0, math.inf]]], ids=lambda value: repr(value)
)
def test_what_has_no_choice_is_refused(errors):
    with pytest.raises(ArgumentError, match="Argument `errors` must be"):
        one_standard_error(errors, np.zeros(np.shape(errors)))


def test_two_shapes_are_refused():
    with pytest.raises(ArgumentError, match="two arrays of shape"):
        one_standard_error([[1.0, 2.0]], [[0.0, 0.0, 0.0]])
