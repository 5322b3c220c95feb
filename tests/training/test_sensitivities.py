"""Sensitivities and curvatures against finite differences, and what each kind of target, mask and output means.

Each network here is seen twice: through the library, and as a plain function from weights to logits whose central
differences in float64 the oracle combines by definition. The logits are the model's outputs; no gradient is shared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from keras_sensprune import Sensitivity, SensitivityRegularizer, weight_sensitivities
from keras_sensprune.errors import ArgumentError, ModelError
from keras_sensprune.formulas.sensitivity import (
    RELEVANCE_CAP,
    bounded_insensitivity,
    output_direction,
    running_mean,
    scaled_sensitivity,
)
from keras_sensprune.training.batch import forward_terms
from keras_sensprune.training.gradients import SensitivityTape
from keras_sensprune.training.outputs import model_terms
from keras_sensprune.training.targets import prunable_weights

from ..reference import sensitivity_oracle as oracle
from ..reference.penalty_oracle import UNITS as UNITS_BY_HAND

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


@pytest.fixture
def float64():
    """Everything that is built in the test computes in float64."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(3)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


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


# ---------------------------------------------------------------------------------------------- finite differences


def _residual():
    inputs = keras.Input((4,))
    hidden = layers.add([inputs, layers.Dense(4, "tanh")(inputs)])
    return keras.Model(inputs, layers.Dense(C)(hidden))


def _sequential(shape, *parts):
    return keras.Sequential([keras.Input(shape), *parts, layers.Dense(C)])


IMAGE, SERIES = (6, 5, 2), (5, 2)
NETS = {
    "dense": ((4,), lambda: _sequential((4,), layers.Dense(6, "gelu"), layers.Dense(5, "softplus"))),
    "conv": (IMAGE, lambda: _sequential(IMAGE, layers.Conv2D(3, 3, 2, activation="silu"), layers.Flatten())),
    "depthwise": (
        IMAGE,
        lambda: _sequential(
            IMAGE,
            layers.DepthwiseConv2D(3, depth_multiplier=2, activation="tanh"),
            layers.GlobalAveragePooling2D(),
        ),
    ),
    "lstm": (SERIES, lambda: _sequential(SERIES, layers.LSTM(3))),
    "gru": (SERIES, lambda: _sequential(SERIES, layers.GRU(3))),
    "batch_norm": (
        (4,),
        lambda: _sequential((4,), layers.Dense(5), layers.BatchNormalization(), layers.Activation("tanh")),
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
    "conv": (IMAGE, lambda: _sequential(IMAGE, layers.Conv2D(2, 3, 2, activation="tanh"), layers.Flatten())),
    "depthwise": NETS["depthwise"],
    "called twice": ((4,), _called_twice),
    "dense on a series": ((5, 2), lambda: _sequential((5, 2), layers.Dense(3, "tanh"), layers.Flatten())),
    "lstm": NETS["lstm"],
    "gru, sequences": (
        SERIES,
        lambda: _sequential(SERIES, layers.GRU(3, return_sequences=True), layers.Bidirectional(layers.GRU(2))),
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
            lambda: _sequential(SERIES, layers.LSTM(2, dropout=0.5, name="l")),
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


# ------------------------------------------------------------------------------------------------------ estimators


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
@pytest.mark.parametrize("classes", [5, 20, 22])  # no loop; 2 turns; 2 outputs and 2 turns
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


# ---------------------------------------------------------------------------------------------------------- logits


class TensorFlowSoftmax(layers.Layer):
    """A softmax behind which Keras does not keep the logits."""

    def call(self, inputs):
        return tf.nn.softmax(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


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


MANY = np.random.default_rng(4).integers(0, 2, (B, C)).astype(float)


@pytest.mark.parametrize(
    ("tail", "name", "y"),
    [
        (lambda: [layers.Activation("softmax")], "sparse_categorical_crossentropy", LABELS),
        (lambda: [layers.Softmax()], "sparse_categorical_crossentropy", LABELS),
        (lambda: [keras.Sequential([keras.Input((C,)), layers.Softmax()])], "sparse_categorical_crossentropy", LABELS),
        (lambda: [layers.Activation("sigmoid")], "binary_crossentropy", MANY),
    ],
    ids=["activation", "layer", "nested", "sigmoid"],
)
def test_a_last_softmax_or_sigmoid_is_looked_through(tail, name, y, float64):
    model, _ = with_tail(tail(), name)
    plain, _ = with_tail(
        [], {"sparse_categorical_crossentropy": SPARSE}.get(name, keras.losses.BinaryCrossentropy(True))
    )
    for kind in ("unspecific", "specific"):
        ours = weight_sensitivities(model, X, y, sensitivity=Sensitivity(kind))
        for a, b in zip(ours, weight_sensitivities(plain, X, y, sensitivity=Sensitivity(kind)), strict=True):
            np.testing.assert_array_equal(a, b)  # the very same operations


def test_a_softmax_inside_the_last_dense_layer_is_looked_through(float64):
    def build(activation, loss):
        model = marked(keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(C, activation)]))
        model.compile("sgd", loss)
        return weight_sensitivities(model, X, LABELS)

    for a, b in zip(build("softmax", "sparse_categorical_crossentropy"), build(None, SPARSE), strict=True):
        np.testing.assert_array_equal(a, b)


LOST = {
    "reshape": (lambda: [layers.Softmax(), layers.Reshape((C,))], (4,), LABELS),
    "time_distributed": (lambda: [layers.TimeDistributed(layers.Softmax())], (2, 4), np.stack([LABELS, LABELS], 1)),
    "tensorflow": (lambda: [TensorFlowSoftmax()], (4,), LABELS),
}


@pytest.mark.parametrize("loss", ["string", "object"])
@pytest.mark.parametrize("name", LOST)
def test_lost_logits_are_announced_and_output_fn_brings_them_back(name, loss, float64):
    tail, shape, y = LOST[name]
    x = np.random.default_rng(3).normal(size=(B, *shape))
    loss = keras.losses.SparseCategoricalCrossentropy() if loss == "object" else "sparse_categorical_crossentropy"
    model, logits = with_tail(tail(), loss, shape)
    with pytest.warns(UserWarning, match="takes probabilities") as caught:
        lost = weight_sensitivities(model, x, y)
    assert [str(w.message) for w in caught] == [
        "The loss sparse_categorical_crossentropy of model 'm' takes probabilities, but the logits behind them were "
        "not found (they are lost behind Reshape, TimeDistributed or tf.nn.softmax). Sensitivities are those of the "
        "probabilities, which are close to 0 for confident examples. Use a loss with `from_logits=True`, or pass "
        "`Sensitivity(output_fn=...)`."
    ]
    found = weight_sensitivities(model, x, y, sensitivity=Sensitivity(output_fn=lambda _, x: logits(x, training=False)))
    plain, _ = with_tail([], SPARSE, shape)
    for a, b, c in zip(found, weight_sensitivities(plain, x, y), lost, strict=True):
        np.testing.assert_array_equal(a, b)  # the very same operations
        assert np.max(np.abs(a - c)) > 1e-3


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (SPARSE, LABELS),
        (keras.losses.CategoricalHinge(), oracle.one_hot(LABELS, C)),
        (keras.losses.MeanSquaredError(), X[:, :C]),
    ],
)
def test_a_loss_that_takes_no_probabilities_gives_no_warning(loss, y):
    # warnings are errors in this suite
    assert all(np.all(s >= 0) for s in weight_sensitivities(mlp(loss=loss), X.astype("float32"), y))


# ------------------------------------------------------------------------------------------------- kinds of target

HOT = oracle.one_hot(LABELS, C)
SOFT = np.random.default_rng(2).dirichlet(np.ones(C), B)
SEVERAL = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]], float)
SEVERAL_ALPHA = np.array([[0.5, 0.5, 0], [0, 0, 0], [1 / 3] * 3, [0, 1, 0], [0, 0, 0], [0.5, 0, 0.5]])


class Mine(keras.losses.Loss):
    """A loss that Keras does not know."""

    def call(self, y_true, y_pred):
        return keras.ops.mean(y_pred, axis=-1) + 0 * keras.ops.sum(keras.ops.cast(y_true, y_pred.dtype))


TARGETS = {
    "integer": (SPARSE, LABELS, HOT),
    "integer_column": (SPARSE, LABELS[:, None], HOT),
    "integer_as_float": (SPARSE, LABELS.astype(float), HOT),
    "one_hot": (keras.losses.CategoricalCrossentropy(from_logits=True), HOT, HOT),
    "one_hot_integers": (keras.losses.CategoricalCrossentropy(from_logits=True), HOT.astype(int), HOT),
    "soft": (keras.losses.CategoricalCrossentropy(from_logits=True), SOFT, SOFT),
    "focal": (keras.losses.CategoricalFocalCrossentropy(from_logits=True), SOFT, SOFT),
    "several": (keras.losses.BinaryCrossentropy(from_logits=True), SEVERAL, SEVERAL_ALPHA),
    "several_focal": (keras.losses.BinaryFocalCrossentropy(from_logits=True), SEVERAL, SEVERAL_ALPHA),
    "unknown_loss_of_integers": (Mine(), LABELS, HOT),
    "unknown_loss_of_integer_column": (Mine(), LABELS[:, None], HOT),
    "unknown_loss_of_floats": (Mine(), SOFT, None),
    "regression": ("mse", SOFT, None),
    "regression_huber": (keras.losses.Huber(), SOFT, None),
}


@pytest.mark.parametrize("name", TARGETS)
def test_output_weights_of_each_kind_of_target(name, float64):
    loss, y, alpha = TARGETS[name]
    model = mlp(loss=loss)
    assert_is_oracle(model, X, y, Sensitivity(), alpha=alpha, omega=oracle.equal_positions(B), most=5)
    assert_is_oracle(model, X, y, Sensitivity("specific"), alpha=alpha, omega=oracle.equal_positions(B), most=5)


def test_the_unspecific_form_does_not_look_at_targets(float64):
    without = weight_sensitivities(mlp(), X, sensitivity=Sensitivity("unspecific"))
    for y in (LABELS, LABELS[::-1]):
        for a, b in zip(without, weight_sensitivities(mlp(), X, y, None, Sensitivity("unspecific")), strict=True):
            np.testing.assert_array_equal(a, b)  # the very same operations


@pytest.mark.parametrize("name", ["integer", "several", "regression"])
def test_a_float64_model_is_computed_in_float64_whatever_the_global_default(name):
    loss, y, alpha = TARGETS[name]
    model = keras.Sequential(
        [keras.Input((4,), dtype="float64"), layers.Dense(5, "tanh", dtype="float64"), layers.Dense(C, dtype="float64")]
    )
    marked(model).compile("sgd", loss)
    assert keras.config.floatx() == "float32"
    weights = np.array([0.3, 0.0, 1.7, 2.0, 0.0, 0.1])
    omega = oracle.equal_positions(B, weights)
    assert_is_oracle(model, X, y, Sensitivity(), alpha=alpha, omega=omega, sample_weight=weights, most=5)


@pytest.mark.parametrize("y", [np.array([0, 1, 1, 0, 1, 0]), np.array([[0.0], [1], [1], [0], [1], [0]])])
def test_one_logit_for_two_classes_has_weight_one(y, float64):
    model = mlp(classes=1, loss=keras.losses.BinaryCrossentropy(from_logits=True))
    assert_is_oracle(model, X, y, Sensitivity(), alpha=np.ones((B, 1)), omega=oracle.equal_positions(B))


def rank_one(loss):
    model = marked(keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(1), layers.Reshape(())]))
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize("loss", ["mse", keras.losses.BinaryCrossentropy(from_logits=True)])
def test_outputs_of_rank_one_are_one_output_per_example(loss, float64):
    y = np.array([0.0, 1, 1, 0, 1, 0])
    column = keras.Sequential([keras.Input((4,)), *rank_one(loss).layers[:-1]])
    column.compile("sgd", loss)
    expected = weight_sensitivities(column, X, y[:, None])
    for a, b in zip(weight_sensitivities(rank_one(loss), X, y), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)  # another shape, the same sums
    assert_is_oracle(column, X, y[:, None], Sensitivity(), alpha=None, omega=oracle.equal_positions(B))


@pytest.mark.parametrize("reduction", ["abs_of_mean", "mean_of_abs"])
@pytest.mark.parametrize("kind", ["specific", "unspecific"])
def test_a_sample_weight_is_the_position_s_share_and_zero_drops_the_example(kind, reduction, float64):
    weights = np.array([0.3, 0.0, 1.7, 2.0, 0.0, 0.1])
    config, alpha = Sensitivity(kind, reduction=reduction), HOT if kind == "specific" else None
    model = mlp()
    omega = oracle.equal_positions(B, weights)
    assert_is_oracle(model, X, LABELS, config, alpha=alpha, omega=omega, sample_weight=weights)
    kept = weights > 0
    dropped = weight_sensitivities(model, X[kept], LABELS[kept], weights[kept], config)
    column = weight_sensitivities(model, X, LABELS, weights[:, None], config)
    whole = weight_sensitivities(model, X, LABELS, weights, config)
    for a, b, c in zip(whole, dropped, column, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-16)  # the same sums with zeros left out
        np.testing.assert_array_equal(a, c)


def test_with_all_sample_weights_zero_nothing_is_sensitive(float64):
    for s in weight_sensitivities(mlp(), X, LABELS, np.zeros(B)):
        np.testing.assert_array_equal(s, 0.0)


def test_an_ignored_class_is_excluded(float64):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    labels = np.array([0, -1, 1, 1, -1, 2])
    omega = oracle.equal_positions(B, labels >= 0)
    for kind, alpha in (("specific", oracle.one_hot(labels, C)), ("unspecific", None)):
        assert_is_oracle(mlp(loss=loss), X, labels, Sensitivity(kind), alpha=alpha, omega=omega)


@pytest.mark.parametrize(
    ("labels", "ignored", "bad"),
    [
        ([0, 1, 2, 0, 1, 2], None, False),
        ([0, 1, 3, 0, 1, 2], None, True),
        ([0, 1, -1, 0, 1, 2], None, True),
        ([0, 1, -1, 0, 1, 2], -1, False),
        ([0, 1, -1, 0, 5, 2], -1, True),
        ([0.0, 1.0, math.nan, 0.0, 1.0, 2.0], None, True),
    ],
)
def test_labels_out_of_range_are_flagged(labels, ignored, bad):
    model = mlp(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored))
    x, y = tf.constant(X, "float32"), tf.constant(labels)
    for kind in ("specific", "unspecific"):
        (terms,) = model_terms(model, y, model(x), None, Sensitivity(kind))
        assert bool(terms.bad_labels) is bad


def test_targets_without_class_numbers_have_no_flag():
    model = mlp(loss="mse")
    (terms,) = model_terms(model, tf.constant(SOFT), model(tf.constant(X, "float32")), None, Sensitivity())
    assert terms.bad_labels is None
    assert terms.weight == 1.0


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        (
            keras.losses.CategoricalCrossentropy(from_logits=True),
            np.ones((B, 4)),
            "The targets of model 'm' have shape (6, 4), but its outputs have shape (6, 3); the loss "
            "categorical_crossentropy needs one target per output.",
        ),
        (
            SPARSE,
            np.ones((B, 2), int),
            "The targets of model 'm' have shape (6, 2), but its outputs have shape (6, 3); the loss "
            "sparse_categorical_crossentropy needs one class number per position.",
        ),
    ],
)
def test_targets_of_a_wrong_width_are_refused(loss, y, message):
    model, _ = with_tail([], loss)
    with pytest.raises(ModelError) as caught:
        weight_sensitivities(model, X.astype("float32"), y)
    assert str(caught.value) == message


# --------------------------------------------------------------------------------------------------- many positions

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


@pytest.mark.parametrize("embedded", [True, False], ids=["embedding", "masking"])
def test_tokens_count_equally_where_the_mask_lets_them(embedded, float64):
    model, x = tagger(embedded)
    mask = (TOKENS != 0).ravel()
    for kind, alpha in (("specific", oracle.one_hot(TAGS, C)), ("unspecific", None)):
        assert_is_oracle(model, x, TAGS, Sensitivity(kind), alpha=alpha, omega=oracle.equal_positions(15, mask))
    per_example, per_token = np.array([1.0, 0.0, 2.5]), np.random.default_rng(5).uniform(0, 2, (3, 5))
    for weights in (per_example, per_example[:, None], per_token, per_token[..., None]):
        shared = np.broadcast_to(weights.reshape(3, -1), (3, 5)).ravel()
        omega = oracle.equal_positions(15, mask * shared)
        alpha = oracle.one_hot(TAGS, C)
        assert_is_oracle(model, x, TAGS, Sensitivity(), alpha=alpha, omega=omega, sample_weight=weights, most=3)


@pytest.mark.parametrize("trailing", [False, True])
def test_pixels_count_equally(trailing, float64):
    model = marked(keras.Sequential([keras.Input((3, 4, 2)), layers.Conv2D(C, 3, padding="same")]))
    model.compile("sgd", SPARSE)
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 3, 4, 2)), rng.integers(0, C, (2, 3, 4))
    alpha, omega = oracle.one_hot(y, C), oracle.equal_positions(24)
    given = y[..., None] if trailing else y
    assert_is_oracle(model, x, given, Sensitivity(), alpha=alpha, omega=omega)
    weights = rng.integers(0, 3, (2, 3, 4)).astype(float)
    omega = oracle.equal_positions(24, weights.ravel())
    assert_is_oracle(model, x, given, Sensitivity(), alpha=alpha, omega=omega, sample_weight=weights)


def test_a_loss_over_alignments_is_no_classification_of_positions(float64):
    model = marked(keras.Sequential([keras.Input((5, 2)), layers.SimpleRNN(3, return_sequences=True), layers.Dense(C)]))
    model.compile("sgd", keras.losses.CTC())
    x = np.random.default_rng(8).normal(size=(2, 5, 2))
    y = np.array([[1, 2], [2, 1]])  # 2 symbols for 5 positions
    assert_is_oracle(model, x, y, Sensitivity(), alpha=None, omega=oracle.equal_positions(10))


# -------------------------------------------------------------------------------------------------- several outputs

REAL = np.random.default_rng(9).normal(size=(B, 2))


def two_headed(structure, **compile_args):
    """A classifier named `z` and a regression named `a`: the order by name is not the order of the outputs."""
    inputs = keras.Input((4,))
    hidden = layers.Dense(4, "tanh")(inputs)
    z, a = layers.Dense(C, name="z")(hidden), layers.Dense(2, name="a")(hidden)
    model = marked(keras.Model(inputs, {"z": z, "a": a} if structure == "dict" else [z, a]))
    model.compile("sgd", **compile_args)
    return model


BY_NAME, BY_ORDER = {"z": LABELS, "a": REAL}, [LABELS, REAL]


@pytest.mark.parametrize(
    ("structure", "loss", "loss_weights", "y", "factors"),
    [
        ("list", [SPARSE, "mse"], None, BY_ORDER, (1, 1)),
        ("list", [SPARSE, "mse"], [0.5, -2.0], BY_ORDER, (0.5, 2)),
        ("list", [SPARSE, "mse"], [0.5, 0.0], tuple(BY_ORDER), (0.5, 0)),
        ("list", {"z": SPARSE, "a": "mse"}, {"a": 3.0, "z": 0.5}, BY_NAME, (0.5, 3)),
        ("list", {"a": "mse", "z": SPARSE}, None, BY_ORDER, (1, 1)),
        ("list", [SPARSE, "mse"], [0.5, 2.0], BY_NAME, (0.5, 2)),
        ("list", [SPARSE, None], None, [LABELS], (1, 0)),
        ("list", [SPARSE, None], None, [LABELS, None], (1, 0)),
        ("list", [SPARSE, None], None, BY_ORDER, (1, 0)),
        ("list", [None, "mse"], None, [REAL], (0, 1)),
        ("dict", {"z": SPARSE, "a": "mse"}, None, BY_NAME, (1, 1)),
        ("dict", {"a": "mse", "z": SPARSE}, {"z": 0.5, "a": -3.0}, BY_NAME, (0.5, 3)),
        ("dict", {"z": SPARSE}, None, BY_NAME, (1, 0)),
        ("dict", {"a": "mse"}, None, {"a": REAL}, (0, 1)),
        ("dict", {"z": SPARSE, "a": "mse"}, None, [REAL, LABELS], (1, 1)),  # a list goes by sorted names
    ],
)
def test_several_outputs_add_up_by_their_loss_weights(structure, loss, loss_weights, y, factors, float64):
    model = two_headed(structure, loss=loss, loss_weights=loss_weights)
    order = ("a", "z") if structure == "dict" else ("z", "a")  # of a flattened structure
    omega = oracle.equal_positions(B)
    parts = []
    for name, factor, alpha in (("z", factors[0], HOT), ("a", factors[1], None)):
        dy, entries = jacobians(model, X, 4, order.index(name))
        parts.append([factor * oracle.combine(d, alpha, omega, "abs_of_mean") for d in dy])
    expected = [z + a for z, a in zip(*parts, strict=True)]
    assert_all_close(chosen(weight_sensitivities(model, X, y), entries), expected, FIRST)
    # Keras accepts this very combination, so it is one that can occur
    assert np.isfinite(model.evaluate(X, y, verbose=0, return_dict=True)["loss"])


def test_each_output_can_have_its_own_sample_weights(float64):
    weights = np.array([1.0, 0, 2, 0, 1, 1]), np.array([0.0, 0, 1, 1, 1, 3])
    model = two_headed("list", loss=[SPARSE, "mse"])
    total = weight_sensitivities(model, X, BY_ORDER, list(weights))
    parts = [
        weight_sensitivities(model, X, BY_ORDER, [weights[0], np.zeros(B)]),
        weight_sensitivities(model, X, BY_ORDER, [np.zeros(B), weights[1]]),
    ]
    for i, whole in enumerate(total):
        np.testing.assert_allclose(whole, parts[0][i] + parts[1][i], rtol=1e-14)  # one addition
    dy, entries = jacobians(model, X, 4, 0)
    omega = oracle.equal_positions(B, weights[0])
    assert_all_close(chosen(parts[0], entries), [oracle.combine(d, HOT, omega, "abs_of_mean") for d in dy], FIRST)


# ----------------------------------------------------------------------------------------------- losses of all kinds


class Penalized(layers.Layer):
    """Adds the mean square of its inputs to the loss."""

    def call(self, inputs):
        self.add_loss(keras.ops.mean(keras.ops.square(inputs)))
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


def test_a_model_that_has_only_added_losses_is_unspecific(float64):
    model, _ = with_tail([Penalized()], None)
    assert_is_oracle(model, X, None, Sensitivity(), alpha=None, omega=oracle.equal_positions(B))
    with pytest.raises(ModelError) as caught:
        weight_sensitivities(model, X, sensitivity=Sensitivity("specific"))
    assert str(caught.value) == (
        "Sensitivity(kind='specific') needs targets, but model 'm' has no compiled loss that takes them, or no `y` was "
        "given. Use kind='unspecific'."
    )


def test_the_loss_s_own_sensitivity_contains_added_losses(float64):
    model, _ = with_tail([Penalized()], None)
    outputs, weights = logits_of(model, X)
    entries = oracle.choose_entries(weights, 6)
    dl = oracle.derivatives(lambda w: np.mean(outputs(w)[0] ** 2), weights, entries)
    outputs(weights)
    actual = chosen(weight_sensitivities(model, X, sensitivity=Sensitivity("loss")), entries)
    assert_all_close(actual, [np.abs(d) for d in dl], FIRST)


def test_the_loss_s_own_sensitivity_does_not_contain_this_package_s_penalty(float64):
    plain = weight_sensitivities(mlp(), X, LABELS, sensitivity=Sensitivity("loss"))
    model = mlp(decoupled=False)  # as a plain Keras regularizer it would add 0.1 w; and its warning is an error here
    for a, b in zip(weight_sensitivities(model, X, LABELS, sensitivity=Sensitivity("loss")), plain, strict=True):
        np.testing.assert_array_equal(a, b)  # the very same operations
    assert all(isinstance(v.regularizer, SensitivityRegularizer) for v in model.trainable_variables)
    with pytest.raises(ValueError):
        weight_sensitivities(model, X, np.zeros((B, 2, 2)), sensitivity=Sensitivity("loss"))
    assert all(isinstance(v.regularizer, SensitivityRegularizer) for v in model.trainable_variables)


def test_without_a_kind_nothing_is_sensitive():
    for s in weight_sensitivities(mlp(), X.astype("float32"), LABELS, sensitivity=Sensitivity("none")):
        np.testing.assert_array_equal(s, 0.0)


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
    model = marked(_sequential(shape, *units(activation), *behind))
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
