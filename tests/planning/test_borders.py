"""`sparsify` and the searches at the border: training that diverges, other models in a folder, data that do not fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import (
    Budget,
    PruneAtEpochEnd,
    SensitivityRegularizer,
    SizeTarget,
    ToleranceThreshold,
    add_regularizer,
    cross_validate,
    sparsify,
)
from keras_sensprune.errors import ArgumentError, DataError, TrainingError
from keras_sensprune.planning.phases import choose_monitor
from tests.planning.small import X, Y, build
from tests.planning.two_classes import EPOCHS, Diary, network, problem, refused, zeros

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def assert_weights(model, expected):
    for now, then in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(now, then)


# Training that diverges


@pytest.mark.parametrize("poison", ["rate", "data"])
def test_a_dense_phase_that_diverges_is_an_error_and_leaves_the_weights(poison):
    """The accuracy of answers that are NaN is a number like any other."""
    x, y = problem()
    model = network(optimizer=keras.optimizers.SGD(1e20 if poison == "rate" else 0.1))
    if poison == "data":
        x[10, 3] = np.nan
    weights = model.get_weights()
    with pytest.raises(TrainingError, match=r"After the phase 'dense' the .* Training has diverged"):
        sparsify(model, (x, y), Budget(error=5.0), **EPOCHS)
    assert_weights(model, weights)


def test_a_trained_model_that_is_nan_is_refused():
    model = network()
    model.set_weights([w * np.nan for w in model.get_weights()])
    with pytest.raises(TrainingError, match="Training has diverged"):
        sparsify(model, problem(), Budget(error=5.0), **EPOCHS | {"dense_epochs": 0})


# Other models in a folder


def test_a_model_of_the_same_shapes_with_other_layers_is_refused(tmp_path):
    sparsify(network(), problem(), Budget(sparsity=0.5), folder=tmp_path, **EPOCHS)
    other = network()
    other.layers[0].activation = keras.activations.tanh
    weights = other.get_weights()
    with pytest.raises(DataError, match="it was made with layers"):
        sparsify(other, problem(), Budget(sparsity=0.5), folder=tmp_path, **EPOCHS)
    assert_weights(other, weights)


def test_a_trained_model_with_other_weights_is_refused_and_the_same_goes_on(tmp_path):
    budget, settings = Budget(sparsity=0.5), EPOCHS | {"dense_epochs": 0, "folder": tmp_path}
    first = network()
    begun = first.get_weights()
    result = sparsify(first, problem(), budget, **settings)
    other = network()
    other.set_weights([w + 0.01 for w in begun])
    weights = other.get_weights()
    with pytest.raises(DataError, match="from other weights than those that the model has"):
        sparsify(other, problem(), budget, **settings)
    assert_weights(other, weights)
    assert sparsify(first, problem(), budget, **settings) == result  # in the same process: what it has become
    again = network()  # in another process: what it was
    assert sparsify(again, problem(), budget, **settings) == result
    assert_weights(again, first.get_weights())


def test_a_finished_run_asks_for_no_bytes_again(tmp_path):
    asked = []

    def size_of(model):
        asked.append(1)
        return 4 * sum(int(np.count_nonzero(w)) for w in model.get_weights())

    settings = {**EPOCHS, "folder": tmp_path, "size_of": size_of}
    result = sparsify(network(), problem(), Budget(bytes=400), **settings)
    assert asked
    asked.clear()
    assert sparsify(network(), problem(), Budget(bytes=400), **settings) == result
    assert not asked


# What is measured


def test_the_penalty_of_a_coupled_regularizer_is_no_error():
    x = np.random.default_rng(0).normal(size=(100, 6)).astype("float32")
    y = x[:, :1] * x[:, 1:2]
    keras.utils.set_random_seed(0)
    sparse = SensitivityRegularizer(0.5, decoupled=False)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, "relu", kernel_regularizer=sparse), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mse"])
    result = sparsify(model, (x[:80], y[:80]), Budget(error=100.0), (x[80:], y[80:]), metric="loss", **EPOCHS)
    assert result.error == pytest.approx(model.evaluate(x[80:], y[80:], verbose=0, return_dict=True)["mse"], rel=1e-4)
    assert model.layers[0].kernel.regularizer is sparse
    coupled = {"epochs": 1, "folds": 2, "metric": "loss"}
    with pytest.raises(ArgumentError, match="`metric` must be the name of a compiled metric where decoupled=False"):
        cross_validate(lambda strength: coupled_model(strength), (X, Y), [1e-3], [0.1], **coupled)


def coupled_model(strength):
    model = build(strength)
    for layer in model.layers:
        layer.kernel.regularizer = SensitivityRegularizer(strength, decoupled=False)
    return model


@pytest.mark.parametrize("rounds", [1, 2])
def test_with_one_step_per_epoch_it_is_as_sparse_as_asked(rounds):
    x, y = problem(100)
    x[:, 5:] = 0  # weights to which nothing is sensitive
    model = network()
    options = EPOCHS | {"batch_size": 100, "round_epochs": rounds}
    assert sparsify(model, (x, y), Budget(sparsity=0.3), **options).sparsity == pytest.approx(0.3)
    assert zeros(model) == 42


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({"loss": 1.0, "accel_loss": 0.5, "gyro_loss": 0.5}, ("loss", False)),
        ({"loss": 1.0, "accept_accuracy": 0.5, "accept_loss": 0.5, "gyro_loss": 0.5}, ("accept_accuracy", True)),
        ({"loss": 1.0, "inaccuracy": 0.2}, ("loss", False)),
        ({"loss": 1.0, "accuracy": 0.2, "sparse_top_k_categorical_accuracy": 0.9}, ("accuracy", True)),
        ({"loss": 1.0, "acc": 0.2}, ("acc", True)),
    ],
)
def test_the_accuracy_is_found_by_its_whole_name(found, chosen):
    monitor = choose_monitor(found, None)
    assert (monitor.name, monitor.percent) == chosen


# Frozen layers


def test_a_frozen_layer_with_another_regularizer_is_left_alone():
    base = keras.Sequential([keras.Input((12,)), layers.Dense(10, kernel_regularizer=keras.regularizers.L2(1e-4))])
    base.trainable = False
    model = keras.Sequential([keras.Input((12,)), base, layers.Dense(6, "relu"), layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.02), LOSS, metrics=["accuracy"])
    assert sparsify(model, problem(), Budget(sparsity=0.5), **EPOCHS).phases[0].total == 10 * 6 + 6 * 2
    assert len(add_regularizer(model, SensitivityRegularizer(1e-3))) == 2
    assert isinstance(base.layers[0].kernel.regularizer, keras.regularizers.L2)


# Input that does not fit

WRONG = {
    "no list": ({"callbacks": None}, "Argument `callbacks` must be a list of callbacks of Keras"),
    "one callback": ({"callbacks": Diary()}, "Argument `callbacks` must be a list of callbacks of Keras"),
    "say": ({"say": True}, "Argument `say` must be a function that takes a text, or None"),
    "no bytes": ({"budget": Budget(bytes=100), "size_of": lambda model: None}, "Argument `size_of` must be a function"),
    "shape": ({"data": (problem()[0][:, :5], problem()[1])}, "Argument `data` must be data on which the model can be"),
    "text": ({"data": (problem()[0], np.array(["a", "b"] * 150))}, "Argument `data` must be data on which the model"),
    "labels": ({"data": (problem()[0], problem()[1] + 1)}, "Argument `data` must be data on which the model can be"),
    "validation": (
        {"validation_data": (problem()[0][:, :5], problem()[1])},
        "Argument `validation_data` must be data on which the model can be",
    ),
    "batches": (
        {"data": tf.data.Dataset.from_tensor_slices(problem()), "validation_data": problem()},
        "Argument `data` must be data on which the model can be",
    ),
    "empty": (
        {"data": tf.data.Dataset.from_tensor_slices(problem()).filter(lambda *_: False), "validation_data": problem()},
        "Argument `data` must be a finite dataset with at least one batch",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_input_that_does_not_fit_is_named_before_training(name):
    changed, message = WRONG[name]
    assert refused(changed).startswith(message)


def test_a_dataset_that_does_not_know_its_size_is_counted_and_says_so():
    said = []
    data = tf.data.Dataset.from_tensor_slices(problem()).filter(lambda *_: True).batch(50)
    sparsify(network(), data, Budget(sparsity=0.5), problem(), **EPOCHS | {"say": said.append})
    assert said[0] == "counting the batches of `data`, whose number is not known"


def test_no_sample_weights_may_be_told_by_none():
    result = sparsify(network(), (*problem(), None), Budget(sparsity=0.5), **EPOCHS)
    assert result.sparsity == 0.5


def test_a_function_that_cannot_be_called_is_named_before_training():
    with pytest.raises(ArgumentError, match=r"`build` must be a function that can be called with 1 argument\(s\)"):
        cross_validate(lambda: build(1e-3), (X, Y), [1e-3], [0.1], epochs=1, folds=2)


@pytest.mark.parametrize(
    "data", [(X, Y[:-1]), "abc", ([1.0, 2.0], [0, 1]), iter([]), (X, Y, Y[:5])], ids=["length", "text", *"123"]
)
def test_validation_data_of_a_rule_are_looked_at_when_it_is_made(data):
    with pytest.raises(ArgumentError, match="Argument `validation_data` must be"):
        ToleranceThreshold(data, 0.1)


def test_a_size_that_is_no_number_is_named():
    target = SizeTarget(bytes=100, size_of=lambda model: None)
    with pytest.raises(ArgumentError, match="`size_of` must be a function that returns a finite number above 0"):
        build(1e-3).fit(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(target)])


def test_a_strength_that_takes_more_than_the_whole_weight_is_refused():
    with pytest.raises(ArgumentError, match="`strength` must be at most 1 where decoupled=True"):
        SensitivityRegularizer(5.0)
    assert SensitivityRegularizer(5.0, decoupled=False).strength == 5.0
