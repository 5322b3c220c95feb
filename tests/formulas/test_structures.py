"""Groups against loops over explicit index lists; exact counts; what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sensprune import Block, NofM
from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas import structures
from tests.reference import structure_oracle as oracle

SHAPES = [(8, 3), (16, 5), (7, 4), (1, 1), (33, 2)]


def random_weight(shape, sparsity=0.3, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=shape) * (generator.random(shape) >= sparsity)).astype("float32")


def layouts_of(shape):
    yield structures.block_layout(shape, 4), oracle.block_groups(shape, 4)
    yield structures.block_layout(shape, 16), oracle.block_groups(shape, 16)
    yield structures.unit_layout(shape), oracle.unit_groups(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_group_sensitivity_is_the_mean_of_the_survivors(shape):
    weight, sensitivity = random_weight(shape), np.random.default_rng(1).random(shape).astype("float32")
    for layout, groups in layouts_of(shape):
        mean = structures.group_sensitivity([layout], [weight], [sensitivity])
        assert layout.groups == len(groups)
        spread = layout.unfold(np.asarray(mean))
        # a mean of at most 33 float32 numbers below 1: 33 * 6e-8
        expected = oracle.effective_sensitivity(weight, sensitivity, groups)
        np.testing.assert_allclose(spread, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.0, 9.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_those_of_the_loops(shape, threshold):
    weight = random_weight(shape, sparsity=0 if shape == (1, 1) else 0.3)
    for layout, groups in layouts_of(shape):
        (mask,), (floored,) = structures.group_masks([layout], [weight], threshold, [weight != 0])
        np.testing.assert_array_equal(mask, oracle.mask(weight, groups, threshold))
        assert mask.any()
        assert floored or threshold < 9.0


def test_a_recurrent_unit_spans_both_kernels_and_all_gates():
    kernel, recurrent = random_weight((5, 12)), random_weight((3, 12), seed=1)
    layouts = [structures.unit_layout((5, 12), gates=4), structures.unit_layout((3, 12), gates=4)]
    score = structures.group_score(layouts, [kernel, recurrent], [kernel != 0, recurrent != 0]).reshape(-1)
    both = np.concatenate([kernel, recurrent]).astype(float)
    for unit in range(3):
        values = both[:, unit::3]
        # float32 of a root of a mean: one rounding of 6e-8 relative
        assert score[unit] == pytest.approx(np.sqrt(np.mean(values[values != 0] ** 2)), rel=1e-6)
    limit = float(np.median(score)) + 1e-6
    masks, _ = structures.group_masks(layouts, [kernel, recurrent], limit, [kernel != 0, recurrent != 0])
    survivors = [{unit for unit in range(3) if mask[:, unit::3].any()} for mask in masks]
    assert survivors[0] == survivors[1] == {int(np.argmax(score))}


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5))
def test_n_of_m_keeps_exactly_n(seed, inputs, units, kept, more):
    of = kept + more
    weight = np.random.default_rng(seed).integers(-3, 4, (inputs, units)).astype("float32")  # many ties, some zeros
    layout = structures.block_layout((inputs, units), of, kept)
    mask = structures.n_of_m_mask(layout, weight, np.ones_like(weight, bool))
    for group in oracle.block_groups((inputs, units), of):
        assert sum(mask[i] for i in group) == min(kept, len(group))
    alive = structures.n_of_m_mask(layout, weight, weight != 0)
    np.testing.assert_array_equal(alive, oracle.n_of_m(weight, kept, of))


@given(st.integers(0, 2**31), st.sampled_from(SHAPES), st.floats(0, 2))
def test_groups_die_whole(seed, shape, threshold):
    weight = random_weight(shape, 0, seed)
    for layout, groups in layouts_of(shape):
        (mask,), _ = structures.group_masks([layout], [weight], threshold, [weight != 0])
        assert all(len({bool(mask[i]) for i in group}) == 1 for group in groups)


def test_groups_of_one_are_the_rule_for_weights():
    weight = random_weight((6, 5))
    layout = structures.Layout((6, 5), 0, (6, 5), ())
    (mask,), _ = structures.group_masks([layout], [weight], 0.5, [weight != 0])
    np.testing.assert_array_equal(mask, (weight != 0) & (np.abs(weight) >= 0.5))


def test_ties_in_the_floor_keep_the_first_group():
    weight = np.full((4, 3), 0.1, "float32")
    (mask,), floored = structures.group_masks([structures.unit_layout((4, 3))], [weight], 1.0, [weight != 0])
    assert floored == [True]
    assert mask.any(axis=0).tolist() == [True, False, False]


def test_nan_stays_to_be_found_by_the_health_check():
    weight = np.array([[0.1, np.nan], [0.1, 0.1]], "float32")
    (mask,), _ = structures.group_masks([structures.unit_layout((2, 2))], [weight], 1.0, [weight != 0])
    assert mask.tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(2, 4), "Argument `units` must be 1. Received: 2. Blocks run along the inputs of one unit."),
        (lambda: Block(1, 8), "Argument `inputs` must be 4 or 16. Received: 8. TFLite has sparse kernels for 1x4 and"),
        (lambda: NofM(0, 4), "Argument `kept` must be an integer of at least 1. Received: 0."),
        (lambda: NofM(4, 4), "Argument `of` must be an integer above kept=4. Received: 4."),
        (lambda: NofM(2.0, 4), "Argument `kept` must be an integer of at least 1. Received: 2.0."),
        (
            lambda: structures.structure_argument("row"),
            "Argument `structure` must be 'weight', 'unit', Block(1, 4), Block(1, 16) or NofM(kept, of). "
            "Received: 'row'.",
        ),
    ],
)
def test_what_is_no_structure_is_refused(make, message):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert str(caught.value).startswith(message)
