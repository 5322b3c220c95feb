"""Networks seen twice: through the library, and as a plain function from weights to logits for the oracle.

The central differences of that function in float64 are combined by definition. The logits are the model's outputs; no
gradient is shared.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_sensprune import SensitivityRegularizer, weight_sensitivities
from keras_sensprune.training.batch import forward_terms
from keras_sensprune.training.gradients import SensitivityTape
from keras_sensprune.training.targets import prunable_weights

from ..reference import sensitivity_oracle as oracle

# See STEP and SECOND_STEP of the oracle: errors of about 4e-11 and 6e-8 for derivatives of order 1. Inputs up to 3 and
# sums over few paths make third and fourth derivatives of order 100: 6e-10 and 2e-7. The rest is margin.
FIRST, SECOND = 1e-8, 2e-6
# The same graph in float32, fused and reordered: some 10 roundings of 6e-8 of values of order 1.
FLOAT32 = 1e-6

RNG = np.random.default_rng(7)
B, C = 6, 3
X = RNG.normal(size=(B, 4))
LABELS = np.array([0, 2, 1, 1, 0, 2])
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)  # its own arithmetic is float32


def marked(model, *, order=1, decoupled=True):
    """The model, with a regularizer on every trainable weight and with random values everywhere."""
    rng = np.random.default_rng(5)
    regularizer = SensitivityRegularizer(0.1, order=order, decoupled=decoupled)
    for variable in model.trainable_variables:
        variable.regularizer = regularizer
    for variable in model.weights:
        if keras.backend.is_float_dtype(variable.dtype):
            positive = "variance" in variable.path
            values = rng.uniform(0.5, 2.0, variable.shape) if positive else rng.normal(0, 0.7, variable.shape)
            variable.assign(values)
    return model


def mlp(classes=C, loss=SPARSE, width=5, **options):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(width, "tanh"), layers.Dense(classes)])
    model = marked(model, **options)
    model.compile("sgd", loss)
    return model


def logits_of(model, x):
    """The function weights -> all logits, shape (P, C), and the weights as they are."""
    forward = tf.function(lambda: [tf.reshape(y, (-1, y.shape[-1])) for y in keras.tree.flatten(model(x))])

    def outputs(weights):
        for variable, value in zip(model.trainable_variables, weights, strict=True):
            variable.assign(value)
        return [y.numpy() for y in forward()]

    return outputs, [v.numpy() for v in model.trainable_variables]


def jacobians(model, x, most=8, output=0):
    """dy/dw of one output by finite differences at chosen entries, and these entries."""
    outputs, weights = logits_of(model, x)
    entries = oracle.choose_entries(weights, most)
    dy = oracle.derivatives(lambda w: outputs(w)[output], weights, entries)
    outputs(weights)  # puts the weights back
    return dy, entries


def chosen(tensors, entries):
    return [np.asarray(t).ravel()[e] for t, e in zip(tensors, entries, strict=True)]


def assert_all_close(actual, expected, tolerance):
    assert len(actual) == len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)
    assert max(np.max(np.abs(e)) for e in expected) > 1000 * tolerance, "nothing was compared"


def assert_is_oracle(model, x, y, config, *, alpha, omega, sample_weight=None, most=8):
    dy, entries = jacobians(model, x, most)
    expected = [oracle.combine(d, alpha, omega, config.reduction) for d in dy]
    actual = chosen(weight_sensitivities(model, x, y, sample_weight, config), entries)
    assert_all_close(actual, expected, FIRST)


def sequential(shape, *parts):
    return keras.Sequential([keras.Input(shape), *parts, layers.Dense(C)])


def with_tail(tail, loss, shape=(4,)):
    """A net with the tail's layers behind its last Dense layer, and the net up to there."""
    inputs = keras.Input(shape)
    z = layers.Dense(C)(layers.Dense(5, "tanh")(inputs))
    y = z
    for layer in tail:
        y = layer(y)
    model = marked(keras.Model(inputs, y, name="m"))
    model.compile("sgd", loss)
    return model, keras.Model(inputs, z)


HOT = oracle.one_hot(LABELS, C)


TOKENS = np.array([[1, 4, 2, 0, 0], [3, 3, 0, 0, 0], [2, 1, 4, 3, 1]])


TAGS = np.array([[0, 1, 2, 0, 0], [2, 2, 1, 0, 0], [1, 0, 0, 2, 1]])


def tagger(embedded):
    if embedded:
        first = [keras.Input((5,), dtype="int32"), layers.Embedding(5, 3, mask_zero=True)]
    else:
        first = [keras.Input((5, 1)), layers.Masking(0.0)]
    model = marked(keras.Sequential([*first, layers.SimpleRNN(3, return_sequences=True), layers.Dense(C)]))
    model.compile("sgd", SPARSE)
    return model, TOKENS if embedded else TOKENS[..., None].astype(float)


UNITS = {
    "dense": ((3,), lambda act: [layers.Dense(4, act)]),
    "conv": ((5, 4, 2), lambda act: [layers.Conv2D(2, 3, activation=act), layers.Flatten()]),
    "depthwise": (
        (5, 4, 2),
        lambda act: [layers.DepthwiseConv2D(2, depth_multiplier=2, activation=act), layers.Flatten()],
    ),
}


def unit_net(kind, activation, behind=()):
    """One layer of units and a linear readout; `order=2` on the first layer only."""
    shape, units = UNITS[kind]
    model = marked(sequential(shape, *units(activation), *behind))
    for variable in model.layers[0].trainable_variables:
        variable.regularizer = SensitivityRegularizer(0.1, order=2)
    model.compile("sgd", SPARSE)
    # not too wide: gelu's slope must stay above 1e-4, below which the library takes its curvature for 0 (z < -4.4)
    return model, np.random.default_rng(11).normal(0, 0.5, (B, *shape))


def sensitivities_and_curvatures(model, x, y, config, inside=False):
    targets, config = prunable_weights(model), dataclasses.replace(config, estimator="exact")
    with SensitivityTape(model, targets, config.reduction) as tape:
        terms = forward_terms(model, tf.convert_to_tensor(x), None if y is None else tf.constant(y), None, config)
        found = tape.sensitivities(terms) if inside else None
    return found or tape.sensitivities(terms)
