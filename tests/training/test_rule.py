"""One step of the rule against NumPy: w <- (optimizer's step) - strength * w_old * max(0, 1 - S), then the mask.

The network is y = x W without bias, mean squared error; then dL/dW = 2 x^T (y - t) / (B C) and, with the unspecific
form, S_ij = (1/C) |mean_b x_bi| for every output j: both are written down here without the library.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer, make_pruning_step

from ..reference import optimizer_oracle as oracle

STRENGTH = 0.05
EXACT = {"every": 1, "estimator": "exact"}  # the paper's rule in every step
RNG = np.random.default_rng(0)
X = RNG.normal(0.4, 1.0, (8, 5)).astype("float32")
T = RNG.normal(size=(8, 3)).astype("float32")
# float32 arithmetic in another order: a few units in the last place of numbers of size 1, over 3 steps.
TOLERANCE = 3e-6


def linear_model(optimizer, decoupled=True, strength=STRENGTH, **compile_args):
    regularizer = SensitivityRegularizer(strength, decoupled=decoupled)
    keras.utils.set_random_seed(1)
    layer = keras.layers.Dense(3, use_bias=False, kernel_regularizer=regularizer)
    model = keras.Sequential([keras.Input((5,)), layer])
    model.compile(optimizer, "mse", **compile_args)
    return model


def gradient(w):
    return 2 * X.T @ (X @ w - T) / T.size


def shrinkage(w, strength=STRENGTH):
    sensitivity = np.abs(X.mean(0))[:, None] / 3 * np.ones((1, 3))
    return strength * w * np.maximum(0, 1 - sensitivity)


OPTIMIZERS = {
    "sgd": (lambda: keras.optimizers.SGD(0.1), lambda: oracle.SGD(0.1)),
    "momentum": (lambda: keras.optimizers.SGD(0.1, momentum=0.9), lambda: oracle.SGD(0.1, 0.9)),
    "adam": (lambda: keras.optimizers.Adam(0.01), lambda: oracle.Adam(0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["graph", "eager", "jit"])
def test_decoupled_step_is_the_papers_rule_for_any_optimizer(name, mode):
    keras_optimizer, numpy_optimizer = OPTIMIZERS[name]
    settings = {"graph": {}, "eager": {"run_eagerly": True}, "jit": {"jit_compile": True}}[mode]
    model, update = linear_model(keras_optimizer(), **settings), numpy_optimizer()
    w = model.get_weights()[0].astype("float64")
    callback = PruneAtEpochEnd(0.0, Sensitivity("unspecific", **EXACT))
    model.fit(X, T, batch_size=8, epochs=3, verbose=0, callbacks=[callback])
    for _ in range(3):
        w = update(w, gradient(w)) - shrinkage(w)
    np.testing.assert_allclose(model.get_weights()[0], w, atol=TOLERANCE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_coupled_step_puts_the_shrinkage_into_the_gradient(name):
    keras_optimizer, numpy_optimizer = OPTIMIZERS[name]
    model, update = linear_model(keras_optimizer(), decoupled=False), numpy_optimizer()
    w = model.get_weights()[0].astype("float64")
    model.fit(
        X, T, batch_size=8, epochs=3, verbose=0, callbacks=[PruneAtEpochEnd(0.0, Sensitivity("unspecific", **EXACT))]
    )
    for _ in range(3):
        w = update(w, gradient(w) + shrinkage(w))
    np.testing.assert_allclose(model.get_weights()[0], w, atol=TOLERANCE)


def test_for_plain_sgd_coupled_is_decoupled_with_strength_over_learning_rate():
    results = []
    for decoupled, strength in ((True, STRENGTH), (False, STRENGTH / 0.1)):
        model = linear_model(keras.optimizers.SGD(0.1), decoupled, strength)
        model.fit(
            X,
            T,
            batch_size=8,
            epochs=3,
            verbose=0,
            callbacks=[PruneAtEpochEnd(0.0, Sensitivity("unspecific", **EXACT))],
        )
        results.append(model.get_weights()[0])
    np.testing.assert_allclose(*results, atol=TOLERANCE)


def test_coupled_loss_contains_the_penalty_and_decoupled_loss_does_not():
    losses = {}
    for decoupled in (True, False):
        model = linear_model(keras.optimizers.SGD(0.0), decoupled)
        history = model.fit(
            X, T, batch_size=8, verbose=0, callbacks=[PruneAtEpochEnd(0.0, Sensitivity("unspecific", **EXACT))]
        ).history
        losses[decoupled] = history["loss"][0], history["penalty"][0]
    w = model.get_weights()[0]
    # learning rate 0: only the decoupled rule changes w, so the coupled model still has the starting weights
    mse = np.mean((X @ w - T) ** 2)
    penalty = np.sum(shrinkage(w) * w / 2)
    np.testing.assert_allclose(losses[True][0], mse, rtol=1e-5)
    np.testing.assert_allclose(losses[False][0], mse + penalty, rtol=1e-5)
    assert losses[False][1] == 0.0
    shrunk = w - shrinkage(w)
    np.testing.assert_allclose(losses[True][1], np.sum(shrinkage(shrunk) * shrunk / 2), rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "loss"])
def test_kinds_without_output_terms(kind):
    model = linear_model(keras.optimizers.SGD(0.1))
    w = model.get_weights()[0].astype("float64")
    model.fit(X, T, batch_size=8, verbose=0, callbacks=[PruneAtEpochEnd(0.0, Sensitivity(kind, every=1))])
    sensitivity = np.abs(gradient(w)) if kind == "loss" else np.zeros_like(w)
    expected = w - 0.1 * gradient(w) - STRENGTH * w * np.maximum(0, 1 - sensitivity)
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=TOLERANCE)


def test_loss_kind_does_not_see_the_penalty_in_the_loss():
    model = linear_model(keras.optimizers.SGD(0.1), decoupled=False)
    w = model.get_weights()[0].astype("float64")
    model.fit(X, T, batch_size=8, verbose=0, callbacks=[PruneAtEpochEnd(0.0, Sensitivity("loss", every=1))])
    factor = np.maximum(0, 1 - np.abs(gradient(w)))
    expected = w - 0.1 * (gradient(w) + STRENGTH * w * factor)
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=TOLERANCE)


@pytest.mark.parametrize("scale", ["relative", "relevance"])
def test_scaled_rule_uses_the_running_mean_over_surviving_weights(scale):
    model = linear_model(keras.optimizers.SGD(0.1))
    w = model.get_weights()[0].astype("float64")
    w[0, 0] = 0.0
    model.set_weights([w.astype("float32")])
    config = Sensitivity("unspecific", scale=scale, momentum=0.9, **EXACT)
    model.fit(X, T, batch_size=8, epochs=2, verbose=0, callbacks=[PruneAtEpochEnd(0.0, config)])
    raw = np.abs(X.mean(0))[:, None] / 3 * np.ones((1, 3))
    mean, alive = np.zeros_like(w), w != 0
    for _ in range(2):
        mean = 0.9 * mean + 0.1 * raw
        q = mean if scale == "relative" else np.abs(w) * mean
        scaled = np.minimum(q / (2 * q[alive].mean()), 0.8)
        w = (w - 0.1 * gradient(w) - STRENGTH * w * (1 - scaled)) * alive
    np.testing.assert_allclose(model.get_weights()[0], w, atol=TOLERANCE)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "every"), [("none", 3), ("specific", 1), ("specific", 3), ("loss", 1)])
def test_shrinking_in_place_is_shrinking_after_the_update(kind, every, jit_compile, monkeypatch):
    """Also where the backward pass is a loop that uses the weights: recurrent layers."""
    x, y = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32"), np.arange(8) % 3
    results = []
    for after in (False, True):
        if after:  # as if the optimizer could skip an update
            count = lambda optimizer: tf.identity(optimizer.iterations.value)  # noqa: E731
            monkeypatch.setattr("keras_sensprune.training.rule.real_updates", count)
        keras.utils.set_random_seed(1)
        r = SensitivityRegularizer(0.3)
        settings = {"kernel_regularizer": r, "recurrent_regularizer": r}
        recurrent = [keras.layers.LSTM(4, return_sequences=True, **settings), keras.layers.GRU(4, **settings)]
        model = keras.Sequential([keras.Input((5, 3)), *recurrent, keras.layers.Dense(3, kernel_regularizer=r)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5), loss, jit_compile=jit_compile)
        model.fit(
            x,
            y,
            batch_size=2,
            shuffle=False,
            verbose=0,
            callbacks=[PruneAtEpochEnd(0.0, Sensitivity(kind, every=every))],
        )
        results.append(model.get_weights())
    for in_place, later in zip(*results, strict=True):
        np.testing.assert_allclose(in_place, later, atol=1e-6)  # roundings of 4 steps of numbers of size 1
    if every == 1 and kind == "specific":
        assert max(np.abs(w).max() for w in results[0]) > 0.01


@pytest.mark.parametrize("every", [1, 2])
def test_a_loss_of_the_users_own_may_run_the_model_again(every):
    class Twice(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean((y_pred - y) ** 2) + keras.ops.mean((self(x) - y) ** 2)

    layer = keras.layers.Dense(3, use_bias=False, kernel_regularizer=SensitivityRegularizer(STRENGTH))
    model = Twice([keras.Input((5,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    w = model.get_weights()[0].astype("float64")
    config = Sensitivity("unspecific", every=every, estimator="exact")
    model.fit(X, T, batch_size=8, epochs=2, verbose=0, callbacks=[PruneAtEpochEnd(0.0, config)])
    w = w - 0.1 * 2 * gradient(w) - shrinkage(w)  # both passes with the weights as they were before the shrinkage
    step = w - 0.1 * 2 * gradient(w)
    w = step - shrinkage(w if every == 1 else step)  # of the update after the refresh, at the epoch's end
    np.testing.assert_allclose(model.get_weights()[0], w, atol=TOLERANCE)


def test_sampled_outputs_shrink_by_their_running_mean():
    # Three outputs, one per refresh, every step: S_ij of output j is 3 |x_i| / 3 when j has its turn, and 0 else.
    model = linear_model(keras.optimizers.SGD(0.0))
    w, momentum = model.get_weights()[0].astype("float64"), 0.5
    config = Sensitivity("unspecific", every=1, momentum=momentum, estimator="sampled")
    model.fit(X, T, batch_size=8, epochs=4, verbose=0, callbacks=[PruneAtEpochEnd(0.0, config)])
    mean = np.zeros_like(w)
    for refresh, turn in enumerate([0, 2, 1, 0]):  # the stride prime to 3 that is nearest to 0.618 * 3 is 2
        value = np.zeros_like(w)
        value[:, turn] = np.abs(X.mean(0))
        mean += (1 - momentum) / (1 - momentum ** (refresh + 1)) * (value - mean)
        w = w - STRENGTH * w * np.maximum(0, 1 - mean)
    np.testing.assert_allclose(model.get_weights()[0], w, atol=TOLERANCE)


def test_custom_loop_step_is_the_function_that_fit_uses():
    fitted = linear_model(keras.optimizers.SGD(0.1))
    callback = PruneAtEpochEnd(0.2, Sensitivity("unspecific", **EXACT))
    fitted.fit(X, T, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[callback])
    looped = linear_model(keras.optimizers.SGD(0.1))
    with make_pruning_step(looped, Sensitivity("unspecific", **EXACT)) as step:
        compiled = tf.function(step)
        for _ in range(3):
            compiled((tf.constant(X), tf.constant(T)))
            record = step.prune(0.2)
    np.testing.assert_array_equal(looped.get_weights()[0], fitted.get_weights()[0])
    assert record.nonzero == np.count_nonzero(fitted.get_weights()[0]) < 15
    assert "train_step" not in vars(looped)


def test_a_custom_loop_may_wrap_the_models_own_step():
    results = []
    for wrapped in (False, True):
        model = linear_model(keras.optimizers.SGD(0.1))
        own = (lambda data, model=model: model.train_step(data)) if wrapped else None
        with make_pruning_step(model, Sensitivity("unspecific", **EXACT), train_step=own) as step:
            tf.function(step)((tf.constant(X), tf.constant(T)))
        results.append(model.get_weights()[0])
    # The shrinkage of a step that is not Keras's own comes after the update: one rounding of numbers below 1.
    np.testing.assert_allclose(*results, atol=2**-24 * 2)


def test_custom_loop_with_the_users_own_step_function():
    def own_step(data):
        x, t = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((model(x, training=True) - t) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return {"loss": loss}

    model = linear_model(keras.optimizers.SGD(0.1))
    w = model.get_weights()[0].astype("float64")
    with make_pruning_step(model, Sensitivity("unspecific", **EXACT), train_step=own_step) as step:
        logs = tf.function(step)((tf.constant(X), tf.constant(T)))
    np.testing.assert_allclose(logs["loss"], np.mean((X @ w - T) ** 2), rtol=1e-5)
    np.testing.assert_allclose(model.get_weights()[0], w - 0.1 * gradient(w) - shrinkage(w), atol=TOLERANCE)


@pytest.mark.parametrize("mode", ["graph", "eager", "jit"])
def test_order_two_changes_the_value_in_the_loss_and_not_the_update(mode):
    settings = {"graph": {}, "eager": {"run_eagerly": True}, "jit": {"jit_compile": True}}[mode]
    results = {}
    for order in (1, 2):
        keras.utils.set_random_seed(1)
        r = SensitivityRegularizer(STRENGTH, decoupled=False, order=order)
        layers = [keras.layers.Dense(4, "tanh", use_bias=False, kernel_regularizer=r), keras.layers.Dense(3)]
        model = keras.Sequential([keras.Input((5,)), *layers])
        model.compile(keras.optimizers.SGD(0.1), "mse", **settings)
        w, v = (model.get_weights()[i].astype("float64") for i in (0, 1))
        history = model.fit(
            X, T, batch_size=8, verbose=0, callbacks=[PruneAtEpochEnd(0.0, Sensitivity("unspecific", **EXACT))]
        )
        results[order] = history.history["loss"][0], model.get_weights()[0]
    t = np.tanh(X @ w)
    first = np.einsum("bi,bj,jk->kij", X, 1 - t**2, v) / len(X)
    second = np.einsum("bi,bj,jk->kij", X**2, -2 * t * (1 - t**2), v) / len(X)
    s, d = np.abs(first).mean(0), (np.sign(first) * second).mean(0)
    mse = np.mean((t @ v - T) ** 2)
    values = {1: w**2 / 2 * np.maximum(0, 1 - s), 2: w**2 / 2 * np.clip(1 - s + w * d / 3, 0, 1) * (s < 1)}
    for order, value in values.items():
        np.testing.assert_allclose(results[order][0], mse + STRENGTH * value.sum(), rtol=1e-5)
    assert abs(values[1].sum() - values[2].sum()) > 1e-3
    np.testing.assert_array_equal(results[1][1], results[2][1])
