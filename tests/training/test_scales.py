"""Scales and curvatures."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from keras_sensprune import Sensitivity, SensitivityRegularizer, weight_sensitivities
from keras_sensprune.formulas.sensitivity import (
    RELEVANCE_CAP,
    bounded_insensitivity,
    running_mean,
    scaled_sensitivity,
)

from ..reference import sensitivity_oracle as oracle
from ..reference.penalty_oracle import UNITS as UNITS_BY_HAND
from .sensing import (
    HOT,
    LABELS,
    RNG,
    SECOND,
    UNITS,
    B,
    assert_all_close,
    chosen,
    logits_of,
    marked,
    sensitivities_and_curvatures,
    unit_net,
)

# ---------------------------------------------------------------------------------------------------------- scales

FLOATS = st.floats(0, 2.0**40, width=32)


@settings(deadline=None, max_examples=50)
@given(pairs=st.lists(st.tuples(st.sampled_from([0.0, -3.0, -0.25, 0.5, 2.0]), FLOATS), min_size=1, max_size=12))
@pytest.mark.parametrize("scale", ["relative", "relevance"])
def test_scales_are_their_formulas_over_the_surviving_weights(scale, pairs):
    w, s = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    q = s if scale == "relative" else np.abs(w) * s
    alive = [q[i] for i in range(len(q)) if w[i] != 0]
    mean = math.fsum(alive) / len(alive) if alive else 0.0
    expected = np.zeros_like(q) if mean == 0 else np.minimum(q / (2 * mean), RELEVANCE_CAP)
    # float64: a sum of at most 12 terms of one sign, two divisions
    np.testing.assert_allclose(scaled_sensitivity(scale, w, s), expected, rtol=20 * oracle.EPS, atol=0)


def test_the_raw_scale_is_the_sensitivity_itself():
    s = np.array([0.0, 0.3, 7.0])
    assert scaled_sensitivity("raw", s, s) is s


@pytest.mark.parametrize("scale", ["relative", "relevance"])
@pytest.mark.parametrize(("w", "s"), [([1.0, 2.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 2.0]), ([0.0, 1.0], [5.0, 0.0])])
def test_where_no_surviving_weight_is_sensitive_the_scales_are_zero(scale, w, s):
    np.testing.assert_array_equal(scaled_sensitivity(scale, np.array(w), np.array(s)), 0.0)


@pytest.mark.parametrize("scale", ["relative", "relevance"])
def test_scales_do_not_change_when_the_logits_are_multiplied(scale):
    w, s = RNG.normal(size=50), RNG.uniform(size=50)
    # powers of two are exact
    np.testing.assert_array_equal(scaled_sensitivity(scale, w, 1024 * s), scaled_sensitivity(scale, w, s))


def test_the_running_mean_passes_over_what_is_not_finite():
    mean = np.full(3, 9.0)
    for refresh, value in enumerate(([1.0, 2.0, 4.0], [2.0, math.nan, math.inf], [4.0, 2.0, -math.inf])):
        mean = np.asarray(running_mean(mean, np.array(value), 0.5, refresh))
    # (1 + 2 * 2 + 4 * 4) / 7: weights 1, 2, 4 for the three values, whatever stood there before the first
    np.testing.assert_allclose(mean, [3.0, 2.0, 4.0], rtol=1e-14)  # some float64 roundings


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, 4.0), (1 - 1e-9, 7 / 3)])
def test_a_running_mean_of_momentum_0_is_the_last_value_and_of_almost_1_the_plain_mean(momentum, expected):
    mean = np.zeros(1, "float32")
    for refresh, value in enumerate((1.0, 2.0, 4.0)):
        mean = np.asarray(running_mean(mean, np.array([value], "float32"), momentum, refresh))
    np.testing.assert_allclose(mean, expected, rtol=1e-6)


def test_bounded_insensitivity_is_clipped_and_leaves_what_is_not_a_number_alone():
    values = np.array([0.0, 0.25, 1.0, 5.0, math.inf, math.nan])
    np.testing.assert_array_equal(bounded_insensitivity(values), [1.0, 0.75, 0.0, 0.0, 0.0, 0.0])


# ------------------------------------------------------------------------------------------------------- curvature


def second_differences(model, x, alpha, reduction, most=5):
    """D of the weights of the first layer by the oracle, and the entries."""
    outputs, weights = logits_of(model, x)
    entries = oracle.choose_entries(weights, most)[:2]
    dy = oracle.derivatives(lambda w: outputs(w)[0], weights, entries)
    d2y = oracle.second_derivatives(lambda w: outputs(w)[0], weights, entries)
    outputs(weights)
    omega = oracle.equal_positions(B)
    pairs = zip(dy, d2y, strict=True)
    return [oracle.combine_curvature(first, second, alpha, omega, reduction) for first, second in pairs], entries


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "gelu", "silu", "softplus", "elu"])
@pytest.mark.parametrize("kind", UNITS)
def test_curvature_of_a_unit_with_a_linear_readout_is_the_second_difference(kind, activation, float64):
    model, x = unit_net(kind, activation)
    z = np.asarray(linear_part(model.layers[0])(x))
    if activation == "elu":  # f'' jumps at 0: no pre-activation may be within a step of it
        assert np.abs(z).min() > oracle.SECOND_STEP * max(1, np.abs(x).max())
    if activation in ("gelu", "silu"):
        assert min(abs(UNITS_BY_HAND[activation].f1(value)) for value in z.ravel()) > 1e-4
    for form, alpha in (("unspecific", None), ("specific", HOT)):
        expected, entries = second_differences(model, x, alpha, "abs_of_mean")
        s, d = sensitivities_and_curvatures(model, x, LABELS, Sensitivity(form))
        assert_all_close(chosen(d[:2], entries), expected, SECOND)
        assert d[2:] == [None, None]  # the readout has order 1
        plain = weight_sensitivities(model, x, LABELS, sensitivity=Sensitivity(form))
        for a, b in zip(s, plain, strict=True):
            np.testing.assert_array_equal(a, b)  # S is the same beside D and alone


def linear_part(layer):
    """The layer without its activation, with the same weights."""
    linear = type(layer).from_config({**layer.get_config(), "activation": None})
    linear.build(layer.input.shape)
    linear.set_weights(layer.get_weights())
    return linear


@pytest.mark.parametrize(("form", "alpha"), [("unspecific", None), ("specific", HOT)])
def test_curvature_of_mean_of_abs_has_each_example_s_own_sign(form, alpha, float64):
    model, x = unit_net("dense", "tanh")
    expected, entries = second_differences(model, x, alpha, "mean_of_abs")
    _, d = sensitivities_and_curvatures(model, x, LABELS, Sensitivity(form, reduction="mean_of_abs"))
    assert_all_close(chosen(d[:2], entries), expected, SECOND)


def test_curvature_of_one_unit_is_its_second_derivative(float64):
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, "tanh"), layers.Dense(1, use_bias=False)])
    marked(model, order=2)
    a, w, c, v = 0.8, 0.6, -0.3, -1.5
    for variable, value in zip(model.trainable_variables, ([[w]], [c], [[v]]), strict=True):
        variable.assign(value)
    s, d = sensitivities_and_curvatures(model, np.array([[a]]), None, Sensitivity("unspecific"))
    t = math.tanh(a * w + c)
    # y = v tanh(a w + c): y' = v a (1 - t^2), y'' = -2 v a^2 t (1 - t^2). A few float64 roundings.
    assert float(s[0][0, 0]) == pytest.approx(abs(v * a * (1 - t * t)), rel=1e-14)
    assert float(d[0][0, 0]) == pytest.approx(math.copysign(1, v) * -2 * v * a * a * t * (1 - t * t), rel=1e-13)
    assert float(d[1][0]) == pytest.approx(math.copysign(1, v) * -2 * v * t * (1 - t * t), rel=1e-13)  # bias: a = 1
    assert d[2] is None  # a linear layer has no curvature to compute


def test_curvature_ignores_the_curvature_of_the_layers_behind(float64):
    model, x = unit_net("dense", "tanh", behind=[layers.Dense(4, "tanh")])
    expected, entries = second_differences(model, x, None, "abs_of_mean")
    _, d = sensitivities_and_curvatures(model, x, LABELS, Sensitivity("unspecific"))
    found = np.concatenate(chosen(d[:2], entries))
    # documented: D takes everything behind the unit as linear, so it is another number altogether
    assert np.max(np.abs(found - np.concatenate(expected))) > 0.05


def test_an_activation_in_a_layer_of_its_own_can_be_named(float64):
    inside, x = unit_net("dense", "silu")
    outside, _ = unit_net("dense", None, behind=[layers.Activation("silu")])
    for variable in outside.layers[0].trainable_variables:
        variable.regularizer = SensitivityRegularizer(0.1, order=2, activation="silu")
    (s1, d1), (s2, d2) = (sensitivities_and_curvatures(m, x, LABELS, Sensitivity()) for m in (inside, outside))
    for a, b in ((s1[0], s2[0]), (d1[0], d2[0]), (d1[1], d2[1])):
        np.testing.assert_allclose(a, b, rtol=1e-14)  # the same operations
