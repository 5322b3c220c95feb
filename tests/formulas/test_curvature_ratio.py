"""Properties of the curvature ratio, f'' over f'."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_sensprune.formulas.penalty import PIECEWISE_LINEAR, SMOOTH, curvature_ratio

from ..reference import penalty_oracle as oracle


@pytest.mark.parametrize("activation", sorted(SMOOTH | PIECEWISE_LINEAR))
def test_the_curvature_ratio_is_the_relative_slope_of_the_slope(activation):
    # away from the kinks (0, +-0.5, +-1, +-3, 6) by more than the steps taken below
    z = np.array([-2.3, -1.7, -0.9, -0.2, 0.3, 0.8, 1.6, 2.7])

    def slope(points):
        points = tf.constant(points, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(points)
            value = keras.activations.get(activation)(points)
        return tape.gradient(value, points).numpy()

    ratio = ops.convert_to_numpy(curvature_ratio(activation, z))
    assert ratio.dtype == np.float64
    second = (slope(z + 1e-5) - slope(z - 1e-5)) / (2 * 1e-5)
    # Compared after multiplying by f', which is of order 1. Central difference: h^2/6 |f4| + eps/h = 2e-11 + 2e-11.
    # Keras rounds a constant of gelu to float32, 6e-8 relative, also in float64; z, z^2 multiply that by up to 7.
    tolerance = 4e-7 if activation == "gelu" else 1e-9
    np.testing.assert_allclose(ratio * slope(z), second, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("activation", sorted(SMOOTH | PIECEWISE_LINEAR))
def test_the_curvature_ratio_is_finite_everywhere(activation, dtype):
    z = [-math.inf, -6e4, -200.0, -90.0, -20.0, -14.0, 0.0, 14.0, 20.0, 90.0, 200.0, 6e4, math.inf]
    z += [oracle.GELU_ROOT, oracle.SILU_ROOT]
    ratio = curvature_ratio(activation, ops.cast(np.array(z), dtype))
    assert keras.backend.standardize_dtype(ratio.dtype) == dtype
    assert np.isfinite(ops.convert_to_numpy(ops.cast(ratio, "float64"))).all()


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_the_curvature_ratio_is_zero_at_the_root_of_the_slope(activation):
    root = oracle.UNITS[activation].roots[0]
    assert float(curvature_ratio(activation, np.float64(root))) == 0.0
    # f' is f''(root) (z - root) nearby, so the ratio is 1 / (z - root)
    beside = [float(curvature_ratio(activation, np.float64(root + step))) for step in (-1e-3, 1e-3)]
    assert beside == pytest.approx([-1000, 1000], rel=0.01)  # next term: |f3 / f''| 1e-3 / 2


@pytest.mark.parametrize("activation", [name for name in oracle.UNITS if name in SMOOTH])
def test_curvature_of_one_unit_is_sensitivity_times_input_times_ratio(activation):
    for w, a, c, A in oracle.cases(activation, 10):
        ratio = float(curvature_ratio(activation, np.float64(a * w + c)))
        product = oracle.sensitivity(activation, w, a, c, A) * a * ratio
        # float64 rounding; f' of gelu and silu cancels to no less than 1e-2 in these cases
        assert product == pytest.approx(oracle.curvature(activation, w, a, c, A), rel=1e-12, abs=1e-14)


def test_an_unknown_activation_has_no_curvature_ratio():
    assert curvature_ratio("mish", [1.0]) is None
    assert curvature_ratio("hard_silu", [1.0]) is None  # piecewise quadratic


def test_smooth_and_piecewise_linear_names_are_keras_activations_and_disjoint():
    assert not SMOOTH & PIECEWISE_LINEAR
    for name in SMOOTH | PIECEWISE_LINEAR:
        assert callable(keras.activations.get(name))


@pytest.mark.parametrize("activation", sorted(SMOOTH))
def test_nan_is_not_laundered(activation):
    if activation in ("exponential", "elu", "selu", "celu"):
        assert math.isfinite(float(curvature_ratio(activation, math.nan)))  # constants; S itself is NaN there
    else:
        assert math.isnan(float(curvature_ratio(activation, math.nan)))
