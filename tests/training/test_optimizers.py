"""The rule behind every optimizer, over several steps, against NumPy in float64.

Decoupled: w <- (the optimizer's own step without regularization) - strength * w_old * max(0, 1 - S). Coupled: the
gradient of the penalty is added to that of the loss, and the optimizer does with the sum what it does with gradients.
The network is y = x W + b, mean squared error, W regularized and with one dead weight, b not; its gradients and its
unspecific sensitivity S_ij = |mean_b x_bi| / C are written down here.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import optimizers

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer, make_pruning_step

from ..reference import optimizer_oracle as oracle
from ..reference.optimizer_oracle import clipped

STRENGTH = 0.05
CONFIG = Sensitivity("unspecific", every=1, estimator="exact")
RNG = np.random.default_rng(0)
STEPS, B, C = 8, 8, 3
X = RNG.normal(0.4, 1.0, (STEPS, B, 5))
T = RNG.normal(size=(STEPS, B, C))
W, BIAS = RNG.normal(size=(5, C)), RNG.normal(size=C)
W[1, 2] = 0.0
# Everything is float64 but the stored S, which the oracle rounds alike. A step has some 30 roundings of 1.1e-16 of
# numbers up to 3: 1e-14. Adaptive steps divide a gradient, wrong by 1e-15, by its size, which is checked to be above
# FLOOR, and multiply by a rate below 0.01: 1e-13. Muon's polynomial is steeper at 0 by 3.4**5 = 480, of singular
# values of size 1 times a rate of 0.005: 1e-14. Eight steps: 1e-12.
FLOOR, TOLERANCE = 1e-4, 1e-12


@pytest.fixture(autouse=True)
def float64():
    """Everything that is built in a test computes in float64."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


def compiled(optimizer, decoupled=True):
    layer = keras.layers.Dense(C, kernel_regularizer=SensitivityRegularizer(STRENGTH, decoupled=decoupled))
    model = keras.Sequential([keras.Input((5,)), layer])
    model.set_weights([W, BIAS])
    model.compile(optimizer, "mse")
    return model


def gradients(x, t, w, b):
    residual = 2 * (x @ w + b - t) / t.size
    found = [x.T @ residual, residual.sum(0)]
    assert min(np.abs(g).min() for g in found) > FLOOR
    return found


def shrinkage(x, w):
    sensitivity = (np.abs(x.mean(0)) / C).astype("float32").astype("float64")
    return STRENGTH * w * np.maximum(0, 1 - sensitivity)[:, None]


def assert_weights(found, right):
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)


# Numbers that are exact in binary, because Keras casts some through float32.
FAST, SLOW, ONE, TWO = 0.125, 2.0**-7, 0.875, 1 - 2.0**-8
FALLING = optimizers.schedules.PiecewiseConstantDecay([2, 5], [SLOW, SLOW / 2, SLOW / 8])


def adam(cls=optimizers.Adam, rate=SLOW, **settings):
    return cls(rate, beta_1=ONE, beta_2=TWO, **settings)


def adam_oracle(rate=SLOW, decay=0.0):
    return oracle.Adam(rate, decay, (ONE, TWO))


def falling(update):
    return SLOW / (1 if update <= 2 else 2 if update <= 5 else 8)


# name -> (Keras's optimizer, ours of one array, clipping of [gradient of W, gradient of b] or None)
CASES = {
    "sgd": (lambda: optimizers.SGD(FAST), lambda: oracle.SGD(FAST), None),
    "momentum": (lambda: optimizers.SGD(FAST, ONE), lambda: oracle.SGD(FAST, ONE), None),
    "nesterov": (lambda: optimizers.SGD(FAST, ONE, nesterov=True), lambda: oracle.SGD(FAST, ONE, True), None),
    "adam": (adam, adam_oracle, None),
    "adamw": (lambda: adam(optimizers.AdamW, weight_decay=0.5), lambda: adam_oracle(decay=0.5), None),
    "lion": (lambda: optimizers.Lion(SLOW, ONE, TWO), lambda: oracle.Lion(SLOW, (ONE, TWO)), None),
    "rmsprop": (lambda: optimizers.RMSprop(SLOW), lambda: oracle.RMSprop(SLOW), None),
    "rmsprop, momentum": (
        lambda: optimizers.RMSprop(SLOW, momentum=ONE, centered=True),
        lambda: oracle.RMSprop(SLOW, ONE, centered=True),
        None,
    ),
    "muon": (
        lambda: optimizers.Muon(SLOW, ONE, TWO, 0.25, weight_decay=0.5, momentum=ONE),
        lambda: oracle.Muon(SLOW, 0.5, ONE),
        None,
    ),
    "clipnorm": (lambda: adam(clipnorm=0.25), adam_oracle, lambda both: [clipped([g], 0.25)[0] for g in both]),
    "global_clipnorm": (
        lambda: optimizers.SGD(FAST, ONE, global_clipnorm=0.25),
        lambda: oracle.SGD(FAST, ONE),
        lambda both: clipped(both, 0.25),
    ),
    "schedule": (lambda: optimizers.SGD(FALLING), lambda: oracle.SGD(falling), None),
    "schedule, decay": (
        lambda: adam(optimizers.AdamW, FALLING, weight_decay=0.5),
        lambda: adam_oracle(falling, decay=0.5),
        None,
    ),
}


@pytest.mark.parametrize("decoupled", [True, False], ids=["decoupled", "coupled"])
@pytest.mark.parametrize("name", CASES)
def test_the_rule_behind_every_optimizer_is_its_oracle(name, decoupled):
    """The shrinkage is neither clipped, nor scaled by the learning rate, nor seen by the optimizer's own decay."""
    of_keras, of_w, clip = CASES[name]
    of_w, of_b = of_w(), adam_oracle(decay=0.25) if name == "muon" else of_w()  # Muon is for matrices
    model, w, b = compiled(of_keras(), decoupled), W, BIAS
    with make_pruning_step(model, CONFIG) as step:
        run = tf.function(step)
        for x, t in zip(X, T, strict=True):
            d, (of_loss, g_b) = shrinkage(x, w), gradients(x, t, w, b)
            both = [of_loss if decoupled else of_loss + d, g_b]
            g, g_b = clip(both) if clip else both
            w, b = (of_w(w, g) - (d if decoupled else 0)) * (W != 0), of_b(b, g_b)
            run((tf.constant(x), tf.constant(t)))
    assert_weights(model.get_weights(), (w, b))


@pytest.mark.parametrize("overwrite", [None, 3])
def test_a_moving_average_is_of_the_optimizers_own_steps(overwrite):
    """The average is taken before the shrinkage, as Keras takes it before constraints; the mask comes last."""
    ema = {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": overwrite}
    model, of_w, of_b = compiled(adam(**ema)), adam_oracle(), adam_oracle()
    data = tf.data.Dataset.from_tensor_slices((X, T))
    model.fit(data, shuffle=False, verbose=0, callbacks=[PruneAtEpochEnd(0.0, CONFIG)])
    w, b, mean_w, mean_b = W, BIAS, W, BIAS
    for number, (x, t) in enumerate(zip(X, T, strict=True)):
        d, (g, g_b) = shrinkage(x, w), gradients(x, t, w, b)
        w, b, new = of_w(w, g), of_b(b, g_b), 0.25 if number else 1.0
        mean_w, mean_b = mean_w + new * (w - mean_w), mean_b + new * (b - mean_b)
        if overwrite and (number + 1) % overwrite == 0:
            w, b = mean_w, mean_b
        w = (w - d) * (W != 0)
    assert_weights(model.get_weights(), (mean_w * (W != 0), mean_b))


WRAPPERS = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
ALL = [
    n
    for n, c in vars(optimizers).items()
    if inspect.isclass(c) and issubclass(c, optimizers.Optimizer) and n not in WRAPPERS
]


@pytest.mark.parametrize("decay", [None, 0.5])
@pytest.mark.parametrize("name", ALL)
def test_any_optimizer_of_keras_steps_as_without_the_rule(name, decay):
    """Also those that look at the weights: a step of Keras's own, and then the shrinkage."""
    settings = {} if decay is None else {"weight_decay": decay}
    model, optimizer = (
        compiled(getattr(optimizers, name)(SLOW, **settings)),
        getattr(optimizers, name)(SLOW, **settings),
    )
    pair = [keras.Variable(W), keras.Variable(BIAS)]
    with make_pruning_step(model, CONFIG) as step:
        for x, t in zip(X[:3], T[:3], strict=True):
            w, b = (variable.numpy() for variable in pair)
            optimizer.apply([tf.constant(g) for g in gradients(x, t, w, b)], pair)
            pair[0].assign((pair[0].numpy() - shrinkage(x, w)) * (W != 0))
            step((tf.constant(x), tf.constant(t)))
            assert_weights(model.get_weights(), [variable.numpy() for variable in pair])
