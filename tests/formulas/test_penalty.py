"""Properties of the penalty: its value by order, its exact gradient, and where the value is known to be wrong."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_sensprune.formulas.penalty import SMOOTH, insensitivity_penalty, penalty_with_exact_gradient
from keras_sensprune.formulas.sensitivity import bounded_insensitivity

from ..reference import penalty_oracle as oracle
from ..reference.penalty_oracle import cases

ACTIVATIONS = tuple(oracle.UNITS)
SMOOTH_UNITS = tuple(name for name in ACTIVATIONS if name in SMOOTH)

# Central differences: the error is h^2/6 |f'''| + eps |f| / h, with eps = 2.2e-16 least near h = 1e-5; there it is
# about 2e-11 + 2e-11 for functions and third derivatives of order 1. 1e-8 leaves a factor of 100 and more.
STEP, DIFFERENCE_TOLERANCE = 1e-5, 1e-8


def library_value(activation: str, case: tuple, order: int) -> float:
    S = np.float64(oracle.sensitivity(activation, *case))
    D = np.float64(oracle.curvature(activation, *case)) if order == 2 else None
    return float(insensitivity_penalty(np.float64(case[0]), S, D))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_oracle_s_closed_form_is_its_quadrature(activation):
    for case in cases(activation):
        # quad is asked for 1e-12 relative, 1e-14 absolute; the closed form cancels u f/a against F/a^2, which are up
        # to 25 * 5 here, so it rounds at 125 * 2.2e-16 * a few operations < 2e-13.
        assert oracle.closed_form(activation, *case) == pytest.approx(
            oracle.quadrature(activation, *case), rel=1e-11, abs=1e-12
        )


def test_the_oracle_reproduces_hand_computed_values():
    # a = 1, c = 0.3, A = 0.4, w = 1.2, printed to six digits when the series was derived
    tanh, sigmoid = ("tanh", 1.2, 1.0, 0.3, 0.4), ("sigmoid", 1.2, 1.0, 0.3, 0.4)
    values = [oracle.closed_form(*tanh), *(oracle.series(*tanh, terms) for terms in (1, 2, 3))]
    np.testing.assert_allclose(values, [0.609969, 0.667956, 0.630271, 0.612061], rtol=0, atol=5e-7)  # half a digit
    values = [oracle.closed_form(*sigmoid), *(oracle.series(*sigmoid, terms) for terms in (1, 3))]
    np.testing.assert_allclose(values, [0.666387, 0.677046, 0.665591], rtol=0, atol=5e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_derivative_of_the_integral_is_the_shrinkage(activation):
    for w, a, c, A in cases(activation, 15):
        high, low = (oracle.quadrature(activation, w + h, a, c, A) for h in (STEP, -STEP))
        S = np.float64(oracle.sensitivity(activation, w, a, c, A))
        shrinkage = w * float(bounded_insensitivity(ops.convert_to_tensor(S)))
        assert (high - low) / (2 * STEP) == pytest.approx(shrinkage, abs=DIFFERENCE_TOLERANCE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_value_of_order_one_and_two_is_the_truncated_series(activation):
    for case in cases(activation):
        for order in (1, 2):
            # the library also clips to [0, w^2/2]; float64 rounding of a few operations on values up to 2
            expected = np.clip(oracle.series(activation, *case, terms=order), 0, case[0] ** 2 / 2)
            assert library_value(activation, case, order) == pytest.approx(expected, rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("activation", SMOOTH_UNITS)
def test_order_two_is_nearer_to_the_integral_than_order_one(activation):
    errors = {1: 0.0, 2: 0.0}
    for w, a, c, A in cases(activation):
        small = (w / 4, a, c, A)  # |a w| <= 0.75, inside every radius of convergence
        exact = oracle.quadrature(activation, *small)
        for order in errors:
            errors[order] += abs(library_value(activation, small, order) - exact)
    # The terms left out are a w^3 f''/6 and a^2 w^4 f'''/24: their ratio is |a w| f'''/(4 f''), about 1/5 at
    # most on average here. One half is the claim "clearly nearer".
    assert errors[2] < 0.5 * errors[1]


@pytest.mark.parametrize("activation", SMOOTH_UNITS)
@pytest.mark.parametrize(("order", "power"), [(1, 3), (2, 4)])
def test_the_truncation_error_falls_with_the_power_of_the_first_term_left_out(activation, order, power):
    a, A, z = 0.8, 0.5, 0.5  # z fixed, so that only the powers of w change; f''(z), f'''(z) are not 0 there

    def error(w: float) -> float:
        case = (w, a, z - a * w, A)
        return abs(library_value(activation, case, order) - oracle.quadrature(activation, *case))

    if activation == "elu":
        assert error(0.1) == pytest.approx(0, abs=1e-15)  # linear above 0
        return
    # next term: relative size |a w f'''' / (5 f''')| or so, a few per cent at w = 0.1, also for small f'''
    assert math.log2(error(0.1) / error(0.05)) == pytest.approx(power, abs=0.3)


@settings(deadline=None, max_examples=100)
@given(
    w=st.floats(-(2.0**60), 2.0**60, width=32),  # w^2 stays finite in float32
    S=st.floats(0, width=32) | st.just(math.nan),
    D=st.none() | st.floats(-(2.0**60), 2.0**60, width=32),
)
def test_the_value_lies_between_zero_and_half_the_square(w, S, D):
    w, S = np.float32(w), np.float32(S)
    value = float(insensitivity_penalty(w, S, None if D is None else np.float32(D)))
    assert 0.0 <= value <= np.float32(0.5) * (w * w)  # no tolerance: a factor in [0, 1] never rounds up
    if not S < 1:
        assert value == 0.0


@pytest.mark.parametrize("D", [None, 0.0])
def test_without_sensitivity_it_is_the_l2_penalty(D):
    w = np.linspace(-3, 3, 7, dtype=np.float32)
    value = insensitivity_penalty(w, np.zeros_like(w), None if D is None else np.zeros_like(w))
    np.testing.assert_array_equal(ops.convert_to_numpy(value), w * w / 2)


@pytest.mark.parametrize("activation", SMOOTH_UNITS)
def test_the_integral_is_order_one_plus_the_weighted_change_of_the_sensitivity(activation):
    """R = w^2 S_b(w)/2 + integral of u^2/2 S'(u) from 0 to w, where S < 1."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    compared = 0
    for w, a, c, A in cases(activation, 20):
        if any(min(c, a * w + c) < z < max(c, a * w + c) for z in (*oracle.UNITS[activation].roots, 0.0)):
            continue  # S has a kink in between: elu at 0, the others where f' changes sign
        u = w / 2 * (nodes + 1)
        slopes = np.array([oracle.curvature(activation, float(x), a, c, A) for x in u])  # S' = D
        change = w / 2 * float(weights @ (u**2 / 2 * slopes))
        value = library_value(activation, (w, a, c, A), 1) + change
        # 200 Gauss nodes on an analytic function: rounding only, as in the first test
        assert value == pytest.approx(oracle.quadrature(activation, w, a, c, A), rel=1e-11, abs=1e-12)
        compared += 1
    assert compared >= 5


def test_the_whole_field_is_not_a_gradient():
    """y = v w x, x = 1, has F_w = w (1 - |v|), F_v = v (1 - |w|), whose mixed derivatives differ."""
    w, v = tf.constant(0.5, tf.float64), tf.constant(0.3, tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([w, v])
        field_w = w * bounded_insensitivity(tf.abs(v))
        field_v = v * bounded_insensitivity(tf.abs(w))
    # -w sgn v and -v sgn w: exact products of -1 with the inputs
    assert float(tape.gradient(field_w, v)) == -0.5
    assert float(tape.gradient(field_v, w)) == -0.3


def test_a_kink_spoils_the_value_by_a_known_amount_and_not_the_gradient():
    """relu, a = 1, c = -k: S jumps from 0 to A at u = k, so order 1 misses the integral of u A over (0, k)."""
    w, k, A = 1.0, 0.5, 0.4
    case = (w, 1.0, -k, A)
    # w^2/2 - A (w^2 - k^2)/2 = 0.5 - 0.15 exactly; order 1 gives 0.5 * 0.6
    assert oracle.quadrature("relu", *case) == pytest.approx(0.35, abs=1e-14)
    assert library_value("relu", case, 1) - oracle.quadrature("relu", *case) == pytest.approx(-A * k * k / 2, abs=1e-14)
    assert gradient(w, A) == pytest.approx(w * (1 - A), rel=1e-6)  # float32, three roundings


def test_clipping_spoils_the_value_and_not_the_gradient():
    """tanh, c = 0, A = 2: S = 2 at 0 falls to 1 where tanh^2 = 1/2, so nothing is added before."""
    case = (2.0, 1.0, 0.0, 2.0)
    S = oracle.sensitivity("tanh", *case)
    exact = oracle.quadrature("tanh", *case)
    cross = math.atanh(math.sqrt(0.5))
    # the antiderivative of u (1 - 2 (1 - tanh^2 u)) is u^2/2 - 2 (u tanh u - ln cosh u)
    value = [u * u / 2 - 2 * (u * math.tanh(u) - math.log(math.cosh(u))) for u in (cross, 2.0)]
    assert exact == pytest.approx(value[1] - value[0], abs=1e-13)
    assert library_value("tanh", case, 1) == pytest.approx(2.0 * (1 - S), rel=1e-14)
    assert library_value("tanh", case, 1) > 1.3 * exact
    assert gradient(2.0, S) == pytest.approx(2.0 * (1 - S), rel=1e-6)


def test_a_sensitive_weight_costs_nothing_and_is_not_shrunk_although_its_integral_is_positive():
    case = (1.0, 1.0, -3.0, 4.0)  # tanh rises towards z = 0: S(0) = 0.04, S(1) = 0.28, S(2.5) = 3.1
    assert oracle.sensitivity("tanh", 2.5, *case[1:]) > 1
    assert oracle.quadrature("tanh", 2.5, *case[1:]) > 0.5
    assert library_value("tanh", (2.5, *case[1:]), 1) == 0.0
    assert library_value("tanh", (2.5, *case[1:]), 2) == 0.0
    assert gradient(2.5, 3.1) == 0.0


def gradient(w: float, S: float, D: float | None = None, **compiled: bool) -> float:
    def compute(weight, sensitivity):
        with tf.GradientTape() as tape:
            tape.watch(weight)
            value = penalty_with_exact_gradient(weight, sensitivity, D)
        return tape.gradient(value, weight)

    compute = tf.function(compute, **compiled) if compiled else compute
    return float(compute(tf.constant(w, tf.float32), tf.constant(S, tf.float32)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_agrees_three_ways(activation):
    for case in cases(activation, 3):
        w, a, c, A = case
        S, D = oracle.sensitivity(activation, *case), oracle.curvature(activation, *case)
        high, low = (oracle.quadrature(activation, w + h, a, c, A) for h in (STEP, -STEP))
        closed = w * max(0.0, 1 - S)
        assert (high - low) / (2 * STEP) == pytest.approx(closed, abs=DIFFERENCE_TOLERANCE)
        for curvature in (None, D):
            # float32: S, 1 - S and the product round by 6e-8 each, relative to 1 in 1 - S, times |w| <= 2
            assert gradient(w, S, curvature) == pytest.approx(closed, abs=5e-7)
        assert gradient(w, S, D, jit_compile=True) == pytest.approx(closed, abs=5e-7)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_value_and_gradient_of_a_whole_tensor(jit_compile):
    rng = np.random.default_rng(0)
    w, S, D = (tf.constant(rng.normal(size=(5, 4)), tf.float32) for _ in range(3))
    S = tf.abs(S)

    @tf.function(jit_compile=jit_compile)
    def compute(weight):
        with tf.GradientTape() as tape:
            tape.watch([weight, S, D])
            value = penalty_with_exact_gradient(weight, S, D)
        return value, *tape.gradient(value, [weight, S, D])

    value, *gradients = compute(w)
    # sums of 20 float32 terms of size about 1: 20 * 6e-8
    assert float(value) == pytest.approx(float(tf.reduce_sum(insensitivity_penalty(w, S, D))), rel=2e-6)
    np.testing.assert_allclose(gradients[0], w * tf.maximum(0.0, 1 - S), rtol=1e-6)  # three roundings
    assert gradients[1] is None
    assert gradients[2] is None


def test_the_gradient_reaches_a_keras_variable():
    weight = keras.Variable(np.array([2.0, -4.0], np.float32))
    with tf.GradientTape() as tape:
        value = penalty_with_exact_gradient(weight, [0.5, math.nan])
    assert float(value) == 1.0  # 4/2 * 0.5; NaN counts as fully sensitive
    assert tape.gradient(value, weight.value).numpy().tolist() == [1.0, 0.0]
