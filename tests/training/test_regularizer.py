"""SensitivityRegularizer as a Keras object: configuration, saving, cloning, warnings, bad arguments."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer
from keras_sensprune.errors import ArgumentError

X, Y = np.ones((8, 4), "float32"), np.zeros((8, 2), "float32")
WITHOUT = (
    "SensitivityRegularizer {} without the PruneAtEpochEnd callback, and pruned weights may grow again. Pass "
    "`callbacks=[PruneAtEpochEnd(...)]` to `fit`, or use `make_pruning_step` in a custom loop."
)


def model_with(regularizer, optimizer="sgd"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_regularizer=regularizer)])
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("settings", [{}, {"decoupled": False}, {"activation": "gelu", "order": 2}])
def test_configuration_survives_json_clone_and_saving(settings, tmp_path):
    regularizer = SensitivityRegularizer(3e-4, **settings)
    config = json.loads(json.dumps(regularizer.get_config()))
    assert SensitivityRegularizer.from_config(config).get_config() == regularizer.get_config()
    model = model_with(regularizer)
    model.save(tmp_path / "model.keras")
    for copy in (keras.models.clone_model(model), keras.models.load_model(tmp_path / "model.keras")):
        assert copy.layers[0].kernel_regularizer.get_config() == regularizer.get_config()
        assert copy.layers[0].kernel.regularizer is copy.layers[0].kernel_regularizer
    serialized = keras.regularizers.serialize(regularizer)
    assert keras.regularizers.get(serialized).get_config() == regularizer.get_config()


@pytest.mark.parametrize(("decoupled", "effect"), [(True, "does nothing"), (False, "acts as plain weight decay")])
def test_fit_without_the_callback_warns_once_and_evaluate_never(decoupled, effect):
    model = model_with(SensitivityRegularizer(1e-3, decoupled=decoupled))
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    assert model.losses[0] is not None
    with pytest.warns(UserWarning, match="without the PruneAtEpochEnd callback") as caught:
        model.fit(X, Y, epochs=2, verbose=0)
    assert [str(w.message) for w in caught] == [WITHOUT.format(effect)]
    model.fit(X, Y, verbose=0)


def test_without_the_callback_coupled_is_weight_decay_and_decoupled_does_nothing():
    weights = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, r in {
            "coupled": SensitivityRegularizer(0.1, decoupled=False),
            "l2": keras.regularizers.L2(0.05),  # Keras's L2 has no factor one half
            "decoupled": SensitivityRegularizer(0.1),
            "none": None,
        }.items():
            model = model_with(r)
            model.fit(X, Y, epochs=3, verbose=0)
            weights[name] = model.get_weights()[0]
    np.testing.assert_allclose(weights["coupled"], weights["l2"], atol=1e-6)
    np.testing.assert_array_equal(weights["decoupled"], weights["none"])


def test_the_penalty_is_a_valid_scalar_before_any_training():
    variable = keras.Variable(np.full((2, 2), 3.0, "float32"))
    assert float(SensitivityRegularizer(0.1)(variable)) == 0.0
    # strength * sum w^2 / 2 = 0.1 * 4 * 9 / 2
    assert float(SensitivityRegularizer(0.1, decoupled=False)(variable)) == pytest.approx(1.8)


def test_coupled_value_in_evaluate_is_never_that_of_an_older_state():
    model = model_with(SensitivityRegularizer(0.1, decoupled=False), keras.optimizers.SGD(0.0))
    w = model.get_weights()[0]
    plain = float(np.mean((X @ w) ** 2) + 0.1 * np.sum(w**2) / 2)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(plain, rel=1e-5)
    for _ in range(2):
        history = model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=[PruneAtEpochEnd(0.0)]).history
        np.testing.assert_allclose(history["loss"], history["val_loss"], rtol=1e-5)
        assert history["loss"][0] < plain
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_coupled_value_in_evaluate_uses_the_last_sensitivity(jit):
    model = model_with(SensitivityRegularizer(0.1, decoupled=False), keras.optimizers.SGD(0.0))
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit)
    callback = PruneAtEpochEnd(0.0)
    history = model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=[callback]).history
    np.testing.assert_allclose(history["loss"], history["val_loss"], rtol=1e-5)


def test_the_recorded_gradient_decides_about_the_warning():
    regularizer = SensitivityRegularizer(0.1)
    variable = keras.Variable(np.ones(2, "float32"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regularizer(variable)
    with pytest.warns(UserWarning, match="does nothing"), tf.GradientTape():
        regularizer(variable)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1}, "Argument `strength` must be a finite number of at least 0. Received: -1."),
        ({"strength": float("nan")}, "Argument `strength` must be a finite number of at least 0. Received: nan."),
        ({"strength": float("inf")}, "Argument `strength` must be a finite number of at least 0. Received: inf."),
        ({"strength": "1e-4"}, "Argument `strength` must be a finite number of at least 0. Received: '1e-4'."),
        ({"strength": True}, "Argument `strength` must be a finite number of at least 0. Received: True."),
        ({"strength": 1, "decoupled": 1}, "Argument `decoupled` must be True or False. Received: 1."),
        ({"strength": 1, "order": 3}, "Argument `order` must be 1 or 2. Received: 3."),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        SensitivityRegularizer(**arguments)
    assert str(caught.value) == message


def test_an_unknown_activation_lists_the_known_ones():
    with pytest.raises(ArgumentError) as caught:
        SensitivityRegularizer(1e-4, activation="wavelet")
    assert str(caught.value).startswith("Argument `activation` must be None or one of celu, elu, exponential, gelu,")
    assert str(caught.value).endswith("Received: 'wavelet'.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -0.1}, "Argument `threshold` must be a finite number of at least 0. Received: -0.1."),
        ({"threshold": "0.1"}, "Argument `threshold` must be a finite number of at least 0. Received: '0.1'."),
        ({"sensitivity": "raw"}, "Argument `sensitivity` must be a Sensitivity or None. Received: 'raw'."),
        ({"start_epoch": -1}, "Argument `start_epoch` must be an integer of at least 0. Received: -1."),
        ({"frequency": 0}, "Argument `frequency` must be an integer of at least 1. Received: 0."),
    ],
)
def test_bad_callback_arguments(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        PruneAtEpochEnd(**arguments)
    assert str(caught.value) == message
