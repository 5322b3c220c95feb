"""Refresh and shrinkage every n updates against NumPy; updates that are skipped do not count."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer

from ..reference import optimizer_oracle as oracle
from .test_rule import EXACT, OPTIMIZERS, STRENGTH, TOLERANCE, T, X, gradient, linear_model, shrinkage


def test_every_n_steps_the_last_sensitivity_serves():
    # Two batches with other data each; with every=2 the second step uses the sensitivity of the first batch.
    model = linear_model(keras.optimizers.SGD(0.0))
    w = model.get_weights()[0].astype("float64")
    data = tf.data.Dataset.from_tensor_slices((np.concatenate([X, 3 * X]), np.concatenate([T, T]))).batch(8)
    model.fit(
        data,
        shuffle=False,
        verbose=0,
        callbacks=[PruneAtEpochEnd(0.0, Sensitivity("unspecific", every=2, estimator="exact"))],
    )
    np.testing.assert_allclose(model.get_weights()[0], w - shrinkage(w) - shrinkage(w - shrinkage(w)), atol=TOLERANCE)


def batches(count):
    """Inputs that differ from batch to batch, and a data set of them in order."""
    inputs = [(1 + 0.3 * number) * X for number in range(count)]
    data = tf.data.Dataset.from_tensor_slices((np.concatenate(inputs), np.concatenate([T] * count)))
    return inputs, data.batch(8)


def every_n_steps(w, inputs, update, every, sensitivity, epochs=1, strength=STRENGTH):
    """The rule in NumPy: a refresh every n updates shrinks for all since the last, an epoch's end for the rest."""
    wait, pending = 0, 0
    for _ in range(epochs):
        for x in inputs:
            if wait == 0:
                bounded = np.maximum(0, 1 - sensitivity(x))
                d = w * (1 - (1 - strength * bounded) ** (pending + 1))
                wait, pending = every - 1, 0
            else:
                d, wait, pending = 0, wait - 1, pending + 1
            w = update(w, 2 * x.T @ (x @ w - T) / T.size) - d
        w, pending = w * (1 - strength * bounded) ** pending, 0
    return w


def unspecific(x):
    return np.abs(x.mean(0))[:, None] / 3 * np.ones((1, 3))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["graph", "eager", "jit", "several"])
def test_every_n_steps_the_shrinkage_of_n_steps_is_applied_at_once(name, mode):
    keras_optimizer, numpy_optimizer = OPTIMIZERS[name]
    settings = {"eager": {"run_eagerly": True}, "jit": {"jit_compile": True}, "several": {"steps_per_execution": 4}}
    model, update = linear_model(keras_optimizer(), **settings.get(mode, {})), numpy_optimizer()
    w = model.get_weights()[0].astype("float64")
    inputs, data = batches(5)
    config = Sensitivity("unspecific", every=3, estimator="exact")
    model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=[PruneAtEpochEnd(0.0, config)])
    expected = every_n_steps(w, inputs, update, 3, unspecific, epochs=2)
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=4 * TOLERANCE)  # 10 steps of larger inputs


@pytest.mark.parametrize("kind", ["none", "loss"])
def test_every_n_steps_also_without_output_terms(kind):
    model, update = linear_model(keras.optimizers.SGD(0.1)), oracle.SGD(0.1)
    w = model.get_weights()[0].astype("float64")
    inputs, data = batches(4)
    model.fit(data, shuffle=False, verbose=0, callbacks=[PruneAtEpochEnd(0.0, Sensitivity(kind, every=4))])
    loss_gradient = np.abs(2 * inputs[0].T @ (inputs[0] @ w - T) / T.size)  # the only refresh is at the first step
    expected = every_n_steps(w, inputs, update, 4, lambda x: loss_gradient if kind == "loss" else np.zeros_like(w))
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=4 * TOLERANCE)


def test_a_train_step_whose_loss_is_not_seen_shrinks_every_n_steps_too():
    class Own(keras.Sequential):
        def train_step(self, data):
            x, t = data
            with tf.GradientTape() as tape:
                loss = keras.ops.mean((self(x, training=True) - t) ** 2)
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}

    layer = keras.layers.Dense(3, use_bias=False, kernel_regularizer=SensitivityRegularizer(STRENGTH))
    model = Own([keras.Input((5,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    w = model.get_weights()[0].astype("float64")
    inputs, data = batches(4)
    config = Sensitivity("unspecific", every=3, estimator="exact")
    model.fit(data, shuffle=False, verbose=0, callbacks=[PruneAtEpochEnd(0.0, config)])
    expected = every_n_steps(w, inputs, oracle.SGD(0.1), 3, unspecific)
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=4 * TOLERANCE)


def test_refreshes_are_counted_in_real_updates():
    # 12 batches of equal data, 2 of them per update: 6 updates, so the shrinkage of 6 updates, refreshed every 4.
    model = linear_model(keras.optimizers.SGD(0.0, gradient_accumulation_steps=2))
    w = model.get_weights()[0].astype("float64")
    config = Sensitivity("unspecific", every=4, estimator="exact")
    data = tf.data.Dataset.from_tensor_slices((np.tile(X, (12, 1)), np.tile(T, (12, 1)))).batch(8)
    model.fit(data, shuffle=False, verbose=0, callbacks=[PruneAtEpochEnd(0.0, config)])
    expected = w * (1 - STRENGTH * np.maximum(0, 1 - unspecific(X))) ** 6
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=TOLERANCE)


@pytest.mark.parametrize("steps", [2, 3])
def test_gradient_accumulation_shrinks_once_per_real_update(steps):
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
    model = linear_model(optimizer)
    w = model.get_weights()[0].astype("float64")
    model.fit(
        X,
        T,
        batch_size=8,
        epochs=2 * steps,
        verbose=0,
        callbacks=[PruneAtEpochEnd(0.0, Sensitivity("unspecific", **EXACT))],
    )
    for _ in range(2):
        w = w - 0.1 * gradient(w) - shrinkage(w)
    np.testing.assert_allclose(model.get_weights()[0], w, atol=TOLERANCE)


def test_a_loss_scale_skip_shrinks_nothing():
    model = linear_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=3e38))
    before = model.get_weights()[0]
    callback = PruneAtEpochEnd(0.0, Sensitivity("unspecific", **EXACT))
    model.fit(X, 100 * T, batch_size=8, verbose=0, callbacks=[callback])  # the scaled gradients overflow
    np.testing.assert_array_equal(model.get_weights()[0], before)
