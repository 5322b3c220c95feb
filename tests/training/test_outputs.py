"""Which outputs a sensitivity is about: logits behind tails, and what each kind of target, mask and position means."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sensprune import Sensitivity, weight_sensitivities
from keras_sensprune.errors import ModelError
from keras_sensprune.training.outputs import model_terms

from ..reference import sensitivity_oracle as oracle
from .sensing import HOT, LABELS, SPARSE, TAGS, TOKENS, B, C, X, assert_is_oracle, marked, mlp, tagger, with_tail

# ---------------------------------------------------------------------------------------------------------- logits


class TensorFlowSoftmax(layers.Layer):
    """A softmax behind which Keras does not keep the logits."""

    def call(self, inputs):
        return tf.nn.softmax(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


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
