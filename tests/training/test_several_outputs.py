"""Models with several outputs, and losses of all kinds."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from keras_sensprune import Sensitivity, SensitivityRegularizer, weight_sensitivities
from keras_sensprune.errors import ModelError

from ..reference import sensitivity_oracle as oracle
from .sensing import (
    FIRST,
    HOT,
    LABELS,
    SPARSE,
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
    with_tail,
)

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
