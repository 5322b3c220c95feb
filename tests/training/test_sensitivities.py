"""Sensitivities against finite differences; compiled and eager; what is restored and what is refused."""

from __future__ import annotations

import contextlib
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from keras_sensprune import Sensitivity, weight_sensitivities
from keras_sensprune.errors import ArgumentError, ModelError
from keras_sensprune.training.gradients import SensitivityTape
from keras_sensprune.training.targets import prunable_weights

from ..reference import sensitivity_oracle as oracle
from .sensing import (
    FIRST,
    FLOAT32,
    LABELS,
    SPARSE,
    TAGS,
    TOKENS,
    B,
    C,
    X,
    assert_all_close,
    assert_is_oracle,
    chosen,
    jacobians,
    logits_of,
    marked,
    mlp,
    sensitivities_and_curvatures,
    sequential,
    tagger,
    unit_net,
)

# ---------------------------------------------------------------------------------------------- finite differences


def _residual():
    inputs = keras.Input((4,))
    hidden = layers.add([inputs, layers.Dense(4, "tanh")(inputs)])
    return keras.Model(inputs, layers.Dense(C)(hidden))


IMAGE, SERIES = (6, 5, 2), (5, 2)
NETS = {
    "dense": ((4,), lambda: sequential((4,), layers.Dense(6, "gelu"), layers.Dense(5, "softplus"))),
    "conv": (IMAGE, lambda: sequential(IMAGE, layers.Conv2D(3, 3, 2, activation="silu"), layers.Flatten())),
    "depthwise": (
        IMAGE,
        lambda: sequential(
            IMAGE,
            layers.DepthwiseConv2D(3, depth_multiplier=2, activation="tanh"),
            layers.GlobalAveragePooling2D(),
        ),
    ),
    "lstm": (SERIES, lambda: sequential(SERIES, layers.LSTM(3))),
    "gru": (SERIES, lambda: sequential(SERIES, layers.GRU(3))),
    "batch_norm": (
        (4,),
        lambda: sequential((4,), layers.Dense(5), layers.BatchNormalization(), layers.Activation("tanh")),
    ),
    "residual": ((4,), _residual),
}


@pytest.mark.parametrize("name", NETS)
def test_sensitivity_is_the_finite_difference(name, float64):
    shape, build = NETS[name]
    model = marked(build())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))  # computes in float64
    x = np.random.default_rng(1).normal(size=(B, *shape))
    dy, entries = jacobians(model, x)
    omega = oracle.equal_positions(B)
    for kind, alpha in (("unspecific", None), ("specific", oracle.one_hot(LABELS, C))):
        expected = [oracle.combine(d, alpha, omega, "abs_of_mean") for d in dy]
        actual = chosen(weight_sensitivities(model, x, LABELS, sensitivity=Sensitivity(kind)), entries)
        assert_all_close(actual, expected, FIRST)

    outputs, weights = logits_of(model, x)
    dl = oracle.derivatives(lambda w: oracle.cross_entropy(outputs(w)[0], LABELS), weights, entries)
    outputs(weights)
    actual = chosen(weight_sensitivities(model, x, LABELS, sensitivity=Sensitivity("loss")), entries)
    assert_all_close(actual, [np.abs(d) for d in dl], FIRST)


def relu_net():
    """4 -> 6 relu -> C, and the pre-activations of the hidden layer."""
    inputs = keras.Input((4,))
    z = layers.Dense(6)(inputs)
    model = marked(keras.Model(inputs, layers.Dense(C)(layers.ReLU()(z))))
    model.compile("sgd", SPARSE)
    return model, keras.Model(inputs, z)


def test_sensitivity_of_a_relu_net_is_the_finite_difference_away_from_its_kinks(float64):
    model, hidden = relu_net()
    # a step of h in a weight moves a pre-activation by h |x| at most (h for a bias): no kink is crossed
    assert np.abs(hidden(X)).min() > oracle.STEP * max(1, np.abs(X).max())
    for kind, alpha in (("unspecific", None), ("specific", oracle.one_hot(LABELS, C))):
        assert_is_oracle(model, X, LABELS, Sensitivity(kind), alpha=alpha, omega=oracle.equal_positions(B))


def test_logits_of_a_relu_net_have_piecewise_constant_sensitivities_and_probabilities_do_not(float64):
    model, hidden = relu_net()
    kernel = model.trainable_variables[0]
    probabilities = Sensitivity("unspecific", output_fn=lambda model, x: tf.nn.softmax(model(x, training=False)))
    signs = np.sign(hidden(X))
    at_logits, at_probabilities = [], []
    for move in (0.0, 0.01):
        kernel.assign_add(tf.one_hot([0] + 3 * [-1], 6, dtype="float64") * move)  # one weight, w[0, 0]
        np.testing.assert_array_equal(np.sign(hidden(X)), signs)  # the same linear region
        at_logits.append(weight_sensitivities(model, X, sensitivity=Sensitivity("unspecific"))[0][0, 0])
        at_probabilities.append(weight_sensitivities(model, X, LABELS, sensitivity=probabilities)[0][0, 0])
    assert at_logits[0] == at_logits[1] > 0.01  # dy/dw does not contain w at all
    assert abs(at_probabilities[0] - at_probabilities[1]) > 1e-5


# ----------------------------------------------------------------------------------------------------- reductions


@pytest.mark.parametrize("kind", ["unspecific", "specific"])
def test_mean_of_abs_of_dense_layers_is_exact_per_example(kind, float64):
    model = mlp()
    config = Sensitivity(kind, reduction="mean_of_abs")
    alpha = None if kind == "unspecific" else oracle.one_hot(LABELS, C)
    omega = oracle.equal_positions(B, np.arange(B))
    assert_is_oracle(
        model, X, LABELS, config, alpha=alpha, omega=omega, sample_weight=np.arange(B, dtype=float), most=99
    )
    mean = weight_sensitivities(model, X, LABELS, sensitivity=Sensitivity(kind))
    for per_example, of_mean in zip(weight_sensitivities(model, X, LABELS, sensitivity=config), mean, strict=True):
        assert np.all(per_example >= of_mean - 1e-15)  # triangle inequality, up to the rounding of sums of 6 terms


def test_mean_of_abs_of_soft_labels_and_of_one_hot_labels(float64):
    config = Sensitivity(reduction="mean_of_abs")
    soft = np.random.default_rng(2).dirichlet(np.ones(C), B)
    model = mlp(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    assert_is_oracle(model, X, soft, config, alpha=soft, omega=oracle.equal_positions(B))
    one_hot = weight_sensitivities(model, X, oracle.one_hot(LABELS, C), sensitivity=config)
    # the same numbers, added output by output instead of all at once: rounding of float64 sums
    assert_all_close(one_hot, weight_sensitivities(mlp(), X, LABELS, sensitivity=config), 1e-13)


def _called_twice():
    inputs, shared = keras.Input((4,)), layers.Dense(4)
    return keras.Model(inputs, shared(shared(inputs)))


PER_EXAMPLE = {
    "conv": (IMAGE, lambda: sequential(IMAGE, layers.Conv2D(2, 3, 2, activation="tanh"), layers.Flatten())),
    "depthwise": NETS["depthwise"],
    "called twice": ((4,), _called_twice),
    "dense on a series": ((5, 2), lambda: sequential((5, 2), layers.Dense(3, "tanh"), layers.Flatten())),
    "lstm": NETS["lstm"],
    "gru, sequences": (
        SERIES,
        lambda: sequential(SERIES, layers.GRU(3, return_sequences=True), layers.Bidirectional(layers.GRU(2))),
    ),
    "residual": NETS["residual"],
}


@pytest.mark.parametrize("kind", ["unspecific", "specific"])
@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_mean_of_abs_of_any_layer_is_exact_per_example(name, kind, float64):
    shape, build = PER_EXAMPLE[name]
    model = marked(build())
    model.compile("sgd", SPARSE)
    x = np.random.default_rng(4).normal(size=(B, *shape))
    classes = model.output_shape[-1]
    labels = LABELS % classes
    alpha = None if kind == "unspecific" else oracle.one_hot(labels, classes)
    config = Sensitivity(kind, reduction="mean_of_abs")
    assert_is_oracle(model, x, labels, config, alpha=alpha, omega=oracle.equal_positions(B), most=4)


def test_mean_of_abs_of_masked_sequences(float64):
    inputs = keras.Input((None,), dtype="int32")
    embedded = layers.Embedding(5, 3, mask_zero=True)(inputs)
    model = keras.Model(inputs, layers.Dense(C)(layers.LSTM(2)(embedded)))
    model = marked(model)
    model.compile("sgd", SPARSE)
    x = np.array([[1, 2, 3], [4, 0, 0], [2, 2, 0], [1, 4, 4], [3, 0, 0], [2, 1, 0]])
    config = Sensitivity("unspecific", reduction="mean_of_abs")
    assert_is_oracle(model, x, LABELS, config, alpha=None, omega=oracle.equal_positions(B), most=4)


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (
            lambda: sequential(SERIES, layers.LSTM(2, dropout=0.5, name="l")),
            SERIES,
            "Sensitivity(reduction='mean_of_abs') calls a layer once more per example, but 'l', to which "
            "'{label}' belongs, has dropout or state of its own. Use reduction='abs_of_mean'.",
        ),
        (
            lambda: keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Reshape((2, 3))], name="m"),
            (4,),
            "Sensitivity(reduction='mean_of_abs') needs outputs of shape (batch, outputs), but an output of model 'm' "
            "has shape (6, 2, 3). Use reduction='abs_of_mean'.",
        ),
    ],
)
def test_mean_of_abs_says_what_it_cannot_do(build, shape, message):
    model = marked(build())
    config = Sensitivity("unspecific", reduction="mean_of_abs")
    with pytest.raises(ModelError) as caught:
        weight_sensitivities(model, np.ones((B, *shape), "float32"), sensitivity=config)
    assert str(caught.value) == message.replace("{label}", prunable_weights(model)[0].label)


# ------------------------------------------------------------------------------------------------- compiled = eager


def _compiled_cases():
    regression = Sensitivity("unspecific")
    return {
        "specific": (lambda: mlp(order=2), X, LABELS, Sensitivity("specific")),
        "unspecific": (lambda: mlp(order=2), X, LABELS, regression),
        "loss": (mlp, X, LABELS, Sensitivity("loss")),
        "mean_of_abs": (lambda: mlp(order=2), X, LABELS, Sensitivity(reduction="mean_of_abs")),
        "conv": (lambda: unit_net("conv", "gelu")[0], unit_net("conv", "gelu")[1], LABELS, Sensitivity()),
        "tagger": (lambda: tagger(True)[0], TOKENS, TAGS, Sensitivity()),
    }


@pytest.mark.parametrize("name", ["specific", "unspecific", "loss", "mean_of_abs", "conv", "tagger"])
def test_compiled_is_eager(name):
    build, x, y, config = _compiled_cases()[name]
    model, x = build(), x.astype("int32" if name == "tagger" else "float32")
    expected = sensitivities_and_curvatures(model, x, y, config)
    curved = [i for i, d in enumerate(expected[1]) if d is not None]
    assert bool(curved) == (name in ("specific", "unspecific", "mean_of_abs", "conv"))

    def compute(inside):
        s, d = sensitivities_and_curvatures(model, x, y, config, inside=inside)
        return s, [d[i] for i in curved]

    for jit_compile, inside in ((False, False), (False, True), (True, True)):
        s, d = tf.function(compute, jit_compile=jit_compile)(inside)
        assert_all_close([*s, *d], [*expected[0], *(expected[1][i] for i in curved)], FLOAT32)
    s, d = compute(True)
    assert_all_close([*s, *d], [*expected[0], *(expected[1][i] for i in curved)], FLOAT32)


def test_a_tape_around_it_does_not_change_anything():
    model, x = mlp(order=2), X.astype("float32")
    expected = sensitivities_and_curvatures(model, x, LABELS, Sensitivity())
    with tf.GradientTape() as tape:
        found = sensitivities_and_curvatures(model, x, LABELS, Sensitivity(), inside=True)
        loss = tf.reduce_sum(model(x))
    assert tape.gradient(loss, model.trainable_variables[0].value) is not None
    for a, b in zip((*found[0], *found[1][:2]), (*expected[0], *expected[1][:2]), strict=True):
        np.testing.assert_array_equal(a, b)  # the same operations


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_gives_finite_sensitivities_in_the_weight_s_own_type(policy):
    reference = sensitivities_and_curvatures(mlp(order=2), X.astype("float32"), LABELS, Sensitivity())
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = mlp(order=2)
    finally:
        keras.config.set_dtype_policy(before)
    found = sensitivities_and_curvatures(model, X.astype("float32"), LABELS, Sensitivity())
    # bfloat16 has 8 bits: 2^-8 per rounding of values up to 3; some 5 of them on the way
    tolerance = 5 * 3 * 2**-8
    for a, b in zip((*found[0], *found[1][:2]), (*reference[0], *reference[1][:2]), strict=True):
        assert a.dtype == tf.float32
        np.testing.assert_allclose(a, b, atol=tolerance)


# ----------------------------------------------------------------------------------------------------- restoration


def attributes(model):
    return [{name: id(value) for name, value in vars(layer).items()} for layer in model.layers]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("reduction", ["abs_of_mean", "mean_of_abs"])
def test_layers_are_as_before_however_the_tape_is_left(reduction, error):
    model = mlp(order=2)
    x = tf.constant(X, "float32")
    model(x)
    before = attributes(model)
    layer = model.layers[0]
    leaving = contextlib.nullcontext() if error is None else pytest.raises(error)
    with leaving, SensitivityTape(model, prunable_weights(model), reduction):
        assert "call" in vars(layer)
        assert layer.activation is not keras.activations.tanh
        with SensitivityTape(model, prunable_weights(model), reduction):  # one inside the other
            model(x)
        assert "call" in vars(layer)
        model(x)
        if error is not None:
            raise error
    assert attributes(model) == before
    assert "call" not in vars(layer)
    assert layer.activation is keras.activations.tanh


def test_layers_are_as_before_when_the_sensitivity_itself_fails():
    model = mlp(order=2)
    model(X.astype("float32"))
    before = attributes(model)
    with pytest.raises(ModelError):
        weight_sensitivities(model, X.astype("float32"), np.ones((B, 2), int))
    assert attributes(model) == before


# -------------------------------------------------------------------------------------------------- argument errors

KIND = "'auto', 'unspecific', 'specific', 'loss', 'none'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "specifc"}, f"Argument `kind` must be one of {KIND}. Received: 'specifc'."),
        ({"kind": None}, f"Argument `kind` must be one of {KIND}. Received: None."),
        ({"scale": 1}, "Argument `scale` must be one of 'raw', 'relative', 'relevance'. Received: 1."),
        ({"reduction": "mean"}, "Argument `reduction` must be one of 'abs_of_mean', 'mean_of_abs'. Received: 'mean'."),
        (
            {"kind": "loss", "reduction": "mean_of_abs"},
            "Argument `reduction` must be 'abs_of_mean' when kind='loss'. Received: 'mean_of_abs'. The loss is already "
            "a mean.",
        ),
        ({"every": 0}, "Argument `every` must be an integer of at least 1. Received: 0."),
        ({"every": 2.0}, "Argument `every` must be an integer of at least 1. Received: 2.0."),
        ({"every": True}, "Argument `every` must be an integer of at least 1. Received: True."),
        ({"momentum": 1.0}, "Argument `momentum` must be a number in [0, 1). Received: 1.0."),
        ({"momentum": -0.1}, "Argument `momentum` must be a number in [0, 1). Received: -0.1."),
        ({"momentum": math.nan}, "Argument `momentum` must be a number in [0, 1). Received: nan."),
        ({"momentum": "0.5"}, "Argument `momentum` must be a number in [0, 1). Received: '0.5'."),
        ({"momentum": False}, "Argument `momentum` must be a number in [0, 1). Received: False."),
        (
            {"output_fn": "logits"},
            "Argument `output_fn` must be a function (model, x) -> logits, or None. Received: 'logits'.",
        ),
    ],
)
def test_arguments_are_checked_and_named(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        Sensitivity(**arguments)
    assert str(caught.value) == message


@given(momentum=st.floats() | st.integers(-3, 3), every=st.integers(-3, 10))
def test_what_is_not_refused_is_in_range(momentum, every):
    allowed = 0 <= momentum < 1 and every >= 1
    with contextlib.nullcontext() if allowed else pytest.raises(ArgumentError):
        config = Sensitivity(momentum=momentum, every=every)
        assert (config.momentum, config.every) == (momentum, every)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        Sensitivity().kind = "loss"
