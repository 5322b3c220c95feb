"""Values that are not finite and labels out of range: noticed in the step, told at the epoch's end."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer
from keras_sensprune.errors import ModelError, TrainingError
from tests.steps import ForeignStep, with_step

RNG = np.random.default_rng(0)
PREFIX = "Training was stopped: in step {} (counted from 0 since training began) "
INPUT = "the inputs or targets hold a value that is not finite (NaN or infinity)"
LOSS = "the loss is not finite (NaN or infinity)"
LABEL = "a class label is negative or not smaller than the number of outputs"


def data():
    return RNG.normal(size=(32, 4)).astype("float32"), RNG.integers(0, 3, 32)


def model_for(loss=None, **settings):
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(1e-3))
    model = keras.Sequential([keras.Input((4,)), layer])
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, **settings)
    return model


def fit(model, x, y, callback=None, **settings):
    settings = {"batch_size": 8, "shuffle": False, "verbose": 0, **settings}
    return model.fit(x, y, callbacks=[callback or PruneAtEpochEnd(0.01)], **settings)


@pytest.mark.parametrize("settings", [{}, {"steps_per_execution": 4}, {"jit_compile": True}, {"run_eagerly": True}])
def test_nan_in_the_data_names_the_first_bad_step_and_detaches(settings):
    x, y = data()
    x[17, 2] = np.nan  # example 17 is in step 2 of batches of 8
    model = model_for(**settings)
    with pytest.raises(TrainingError) as caught:
        fit(model, x, y)
    assert str(caught.value) == PREFIX.format(2) + f"{INPUT}; {LOSS}."
    assert "train_step" not in vars(model)


@pytest.mark.parametrize("settings", [{}, {"jit_compile": True}, {"run_eagerly": True}])
def test_missing_values_that_the_loss_or_the_model_deals_with_are_allowed(settings):
    class Filled(keras.layers.Layer):
        def call(self, x):
            return keras.ops.where(keras.ops.isfinite(x), x, keras.ops.zeros_like(x))

    def masked(y_true, y_pred):
        known = keras.ops.isfinite(y_true)
        return keras.ops.mean(keras.ops.where(known, keras.ops.where(known, y_true, 0) - y_pred, 0) ** 2)

    x = data()[0]
    y = RNG.normal(size=(32, 3)).astype("float32")
    x[3, 1], y[12, 2] = np.nan, np.nan
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(1e-3))
    model = keras.Sequential([keras.Input((4,)), Filled(), layer])
    model.compile(keras.optimizers.SGD(0.1), masked, **settings)
    history = fit(model, x, y, PruneAtEpochEnd(0.01, Sensitivity("unspecific", every=1)), epochs=2).history
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def with_hidden():
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(5, "relu", kernel_regularizer=SensitivityRegularizer(1e-3))
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_weights_that_relu_hides_from_the_loss_are_found():
    """max(0, NaN) is 0 on a CPU: the loss stays finite, while the gradient x^T 0 is not."""
    x, y = data()
    x[17, 2] = np.nan
    model = with_hidden()
    with pytest.raises(TrainingError) as caught:
        fit(model, x, y)
    assert str(caught.value) in (
        PREFIX.format(2) + f"{INPUT}; a weight is not finite since then.",
        PREFIX.format(2) + f"{INPUT}; {LOSS}.",  # elsewhere
    )
    model = with_hidden()
    kernel = model.layers[0].kernel
    spoil = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: kernel.assign(kernel.numpy() * np.nan)
    )
    with pytest.raises(TrainingError, match=r"(weight|loss) is not finite"):
        model.fit(*data(), batch_size=32, verbose=0, callbacks=[PruneAtEpochEnd(0.01), spoil])


def test_bad_data_are_told_where_the_loss_is_not_seen():
    x, y = data()
    x[17, 2] = np.nan
    model = with_step(model_for(), ForeignStep)
    with pytest.raises(TrainingError) as caught:
        fit(model, x, y)
    assert str(caught.value) == PREFIX.format(2) + f"{INPUT}."


def test_an_infinite_loss_is_told_apart_from_bad_data():
    x, y = data()

    def loss(y_true, y_pred):
        return keras.ops.mean(y_pred**2) / keras.ops.cast(keras.ops.max(y_true) < 2, "float32")

    y = np.where(y == 2, 1, y)
    y[9] = 2
    with pytest.raises(TrainingError) as caught:
        fit(model_for(loss), x, y, PruneAtEpochEnd(0.01, Sensitivity("unspecific")))
    assert str(caught.value) == PREFIX.format(1) + f"{LOSS}."


def test_labels_out_of_range_are_named():
    x, y = data()
    y[25] = 3
    model = model_for(jit_compile=True)  # uncompiled, TensorFlow's own loss raises on a CPU; on a GPU it gives NaN too
    with pytest.raises(TrainingError) as caught:
        fit(model, x, y)
    assert str(caught.value) == PREFIX.format(3) + f"{LOSS}; {LABEL}."


def test_a_loss_of_the_users_own_may_use_labels_out_of_range():
    x, y = data()
    y[25] = -100

    def masked(y_true, y_pred):
        one_hot = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), 3)  # a row of zeros for -100
        return keras.losses.categorical_crossentropy(one_hot, y_pred, from_logits=True)

    history = fit(model_for(masked), x, y, PruneAtEpochEnd(0.3)).history
    assert history["sparsity"][0] > 0


def test_the_error_comes_before_validation_and_before_pruning():
    x, y = data()
    x[0] = np.inf
    seen = []
    watch = keras.callbacks.LambdaCallback(on_test_end=lambda logs: seen.append(logs))
    model = model_for()
    with pytest.raises(TrainingError):
        model.fit(x, y, validation_data=(x, y), verbose=0, callbacks=[PruneAtEpochEnd(0.5), watch])
    assert seen == []


def test_keep_last_good_restores_the_weights_of_the_last_good_epoch():
    x, y = data()
    model = model_for()
    weights = []
    calls = iter(range(100))

    def batches():
        for _ in range(4):
            values = x.copy()
            if next(calls) == 9:  # step 1 of the third epoch
                values[0, 0] = np.nan
            yield values, y

    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(model.get_weights()))
    stream = tf.data.Dataset.from_generator(
        lambda: (item for _ in range(3) for item in batches()),
        output_signature=(tf.TensorSpec((32, 4), tf.float32), tf.TensorSpec((32,), tf.int64)),
    )
    with pytest.raises(TrainingError) as caught:
        model.fit(
            stream,
            epochs=3,
            steps_per_epoch=4,
            shuffle=False,
            verbose=0,
            callbacks=[PruneAtEpochEnd(0.05, keep_last_good=True), watch],
        )
    assert str(caught.value) == PREFIX.format(9) + f"{INPUT}; {LOSS}."
    assert len(weights) == 2
    for restored, good in zip(model.get_weights(), weights[-1], strict=True):
        np.testing.assert_array_equal(restored, good)


def test_a_batch_of_nan_does_not_poison_the_running_mean():
    from keras_sensprune.formulas.sensitivity import running_mean

    mean = running_mean(
        np.array([1.0, 1.0], "float32"), np.array([np.nan, 2.0], "float32"), 0.5, 40
    )  # 2^-41 is no more
    np.testing.assert_array_equal(mean, [1.0, 1.5])


def test_specific_without_targets_is_an_error():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(1e-3))

        def call(self, x):
            y = self.head(x)
            self.add_loss(keras.ops.mean(y**2))
            return y

    model = Own()
    model(np.ones((1, 4), "float32"))
    model.compile("sgd")
    x, _ = data()
    with pytest.raises(ModelError) as caught:
        model.fit(x, verbose=0, callbacks=[PruneAtEpochEnd(0.01, Sensitivity("specific"))])
    assert str(caught.value) == (
        f"Sensitivity(kind='specific') needs targets, but model {model.name!r} has no compiled loss that takes them, "
        "or no `y` was given. Use kind='unspecific'."
    )
    history = model.fit(x, verbose=0, callbacks=[PruneAtEpochEnd(0.5)]).history
    assert history["sparsity"][0] > 0
