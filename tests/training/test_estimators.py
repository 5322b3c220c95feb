"""Estimators of the sensitivity: outputs in turn, projected sums, the loop over all outputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sensprune import Sensitivity, weight_sensitivities
from keras_sensprune.formulas.sensitivity import (
    output_direction,
)
from keras_sensprune.training.batch import forward_terms
from keras_sensprune.training.gradients import SensitivityTape
from keras_sensprune.training.targets import prunable_weights

from .sensing import FLOAT32, LABELS, SPARSE, B, C, X, assert_all_close, marked, mlp, sensitivities_and_curvatures


def estimates(model, x, y, config, refreshes):
    """S of `refreshes` refreshes of an estimator, one after the other."""
    targets = prunable_weights(model)
    with SensitivityTape(model, targets, config.reduction) as tape:
        outputs = forward_terms(model, tf.convert_to_tensor(x), tf.constant(y), None, config)
    assert [output.varies for output in outputs] == [config.samples < C]
    return [[np.asarray(s) for s in tape.sensitivities(outputs, refresh)[0]] for refresh in range(refreshes)]


@pytest.mark.parametrize("reduction", ["abs_of_mean", "mean_of_abs"])
@pytest.mark.parametrize("samples", [1, 2, 3, 7])
def test_sampled_outputs_are_the_exact_sensitivity_once_all_have_had_their_turn(samples, reduction, float64):
    model = mlp()
    exact = weight_sensitivities(model, X, sensitivity=Sensitivity("unspecific", reduction=reduction))
    config = Sensitivity("unspecific", estimator="sampled", samples=samples, reduction=reduction)
    found = estimates(model, X, LABELS, config, C)
    mean = [np.mean(values, axis=0) for values in zip(*found, strict=True)]
    assert_all_close(mean, exact, 1e-13)  # sums of C numbers in another order
    if samples < C:
        assert np.abs(found[0][0] - exact[0]).max() > 0.01  # one refresh alone is not


def test_projected_outputs_are_signed_sums_and_not_biased_where_outputs_are_alike(float64):
    # One weight and many outputs y_k = v_k w x with v ~ N(0, 1): E|sum_k r_k v_k| sqrt(C) / C = E|v| = (1/C) sum |v_k|.
    many, refreshes = 400, 400
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False), layers.Dense(many, use_bias=False)])
    model = marked(model)
    model.compile("sgd", SPARSE)
    v = np.random.default_rng(5).normal(size=(1, many))
    model.set_weights([np.ones((1, 1)), v])
    x, y = np.ones((1, 1)), np.zeros(1, int)
    targets = prunable_weights(model)
    config = Sensitivity("unspecific", estimator="projected")
    with SensitivityTape(model, targets, config.reduction) as tape:
        outputs = forward_terms(model, tf.convert_to_tensor(x), tf.constant(y), None, config)
    found = [float(tape.sensitivities(outputs, refresh)[0][0][0, 0]) for refresh in range(refreshes)]
    # The standard deviation of |N(0, s)| is 0.75 of its mean: 0.04 of it for the mean of 400, three times that. The
    # mean of |v| over 400 outputs is itself 0.04 off its expectation: 0.75 / sqrt(400).
    assert np.mean(found) == pytest.approx(np.abs(v).mean(), rel=0.16)
    assert len(set(found)) > refreshes / 2  # other signs every time


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 64, 1000, 21841])
def test_outputs_take_turns_evenly(classes):
    order = [int(np.argmax(output_direction("sampled", 0, 1, classes, r, None))) for r in range(min(classes, 50))]
    assert len(set(order)) == len(order)  # none twice before all have had their turn
    if classes >= 64:  # the first 20 turns leave no gap larger than thrice the even one
        assert np.diff(np.sort([0, *order[:20], classes - 1])).max() <= 3 * classes / 20
    assert float(np.max(output_direction("sampled", 0, 1, classes, 3, None))) == classes


@pytest.mark.parametrize("reduction", ["abs_of_mean", "mean_of_abs"])
@pytest.mark.parametrize("classes", [10, 20, 22])  # no loop; 2 turns; 2 outputs and 2 turns
def test_the_loop_over_outputs_is_the_sum_over_outputs(classes, reduction):
    model, x = mlp(classes), tf.constant(X, "float32")
    kernels = [v.value for v in model.trainable_variables]
    expected = [np.zeros(k.shape) for k in kernels]
    for rows in [x] if reduction == "abs_of_mean" else tf.split(x, B):
        for k in range(classes):
            with tf.GradientTape() as tape:
                y = tf.reduce_mean(model(rows)[:, k]) * len(rows) / B
            expected = [e + np.abs(g) / classes for e, g in zip(expected, tape.gradient(y, kernels), strict=True)]
    config = Sensitivity("unspecific", estimator="exact", reduction=reduction)
    assert_all_close(weight_sensitivities(model, X.astype("float32"), sensitivity=config), expected, FLOAT32)

    def compute():
        return sensitivities_and_curvatures(model, x, None, config, inside=True)[0]

    for jit_compile in (False, True):
        compiled = tf.function(compute, jit_compile=jit_compile)
        assert_all_close(compiled(), expected, FLOAT32)
    nodes = [node.op for node in compiled.get_concrete_function().graph.as_graph_def().node]
    assert sum(op in ("While", "StatelessWhile") for op in nodes) == (classes > 10)
