"""SizeTarget: parameters exactly, bytes by asking."""

import keras
import numpy as np
import pytest

from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, SizeTarget, SparsitySchedule, sparsity_report
from keras_sensprune.errors import ArgumentError, ModelError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 12)).astype("float32")
Y = RNG.integers(0, 4, 32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WEIGHTS, BIASES = 12 * 20 + 20 * 4, 24


def network():
    keras.utils.set_random_seed(0)
    sparse = SensitivityRegularizer(1e-3)
    body = [keras.layers.Dense(n, "relu" if n > 4 else None, kernel_regularizer=sparse) for n in (20, 4)]
    model = keras.Sequential([keras.Input((12,)), *body])
    model.compile(keras.optimizers.SGD(0.05), LOSS, run_eagerly=True)
    return model


def fit(rule, epochs=4, model=None, **options):
    model, prune = model or network(), PruneAtEpochEnd(rule, **options)
    model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[prune])
    return model, prune


def nonzero(model):
    return sum(int(np.count_nonzero(v.numpy())) for v in model.trainable_variables)


def coded(model):
    """A size like that of a sparse file: 5 bytes per nonzero weight, and a header."""
    return 100 + 5 * sum(int(np.count_nonzero(v.numpy())) for v in model.trainable_variables if len(v.shape) == 2)


def test_the_number_of_parameters_is_met_exactly():
    model, prune = fit(SizeTarget(parameters=100))
    assert nonzero(model) == 100
    assert [r.nonzero for r in prune.records][-1] == 100 - BIASES
    assert sorted((r.nonzero for r in prune.records), reverse=True) == [r.nonzero for r in prune.records]


def test_frozen_parameters_count_and_moving_statistics_do_not():
    sparse = SensitivityRegularizer(1e-3)
    frozen = keras.layers.Dense(12, trainable=False)  # 12 * 12 + 12
    body = [keras.layers.Dense(20, kernel_regularizer=sparse), keras.layers.BatchNormalization(), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((12,)), frozen, *body])
    model.compile(keras.optimizers.SGD(0.05), LOSS, run_eagerly=True)
    others = 156 + 20 + 40 + 84
    fit(SizeTarget(parameters=others + 50), model=model)
    assert np.count_nonzero(model.layers[1].kernel.numpy()) == 50
    report = sparsity_report(model)
    assert report.nonzero_weights + sum(row.biases for row in report.layers) == others + 50
    with pytest.raises(ModelError, match=f"{others} parameters that are not pruned"):
        fit(SizeTarget(parameters=others), model=model)


def test_a_resumed_run_with_another_target_meets_the_other_one(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    def train(rule, first, *others):
        callbacks = [*others, PruneAtEpochEnd(rule, state_path=tmp_path / "state")]
        model.fit(X, Y, epochs=4, initial_epoch=first, shuffle=False, verbose=0, callbacks=callbacks)

    model = network()
    train(SizeTarget(parameters=100), 0, Stop())
    train(SizeTarget(parameters=40), 2)
    assert nonzero(model) == 40


def test_a_target_that_no_pruning_reaches_is_refused_before_training_starts():
    with pytest.raises(ArgumentError, match="Argument `start_epoch` must be"):
        fit(SizeTarget(parameters=100), start_epoch=9)
    with pytest.raises(ArgumentError, match="by the last pruning, after epoch 0 of 4"):
        fit(SizeTarget(parameters=100), frequency=9)


def test_a_model_that_is_small_enough_loses_nothing():
    model, _ = fit(SizeTarget(parameters=10_000))
    assert nonzero(model) == WEIGHTS + BIASES


@pytest.mark.parametrize("shape", ["constant", "polynomial"])
def test_bytes_are_met_and_not_missed_by_much(shape):
    asked = []

    def size_of(model):
        asked.append(coded(model))
        return asked[-1]

    model, _ = fit(SizeTarget(bytes=600, size_of=size_of, schedule=SparsitySchedule(0.0, shape, end=2)))
    # the search ends within 1/256 of 320 weights, which is 2 weights or 10 bytes; rounding is one more weight
    assert 600 - 15 <= coded(model) <= 600
    assert len(asked) <= 2 + 8 + 4  # both ends, the bisection, and one look per epoch after the schedule


def test_a_size_that_grows_again_is_pruned_further():
    scale = [1.0]

    def size_of(model):
        return round(scale[0] * coded(model))

    class Grow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            scale[0] = 1.0 if epoch < 3 else 1.5

    rule = SizeTarget(bytes=900, size_of=size_of, schedule=SparsitySchedule(0.0, end=2))
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(20, kernel_regularizer=SensitivityRegularizer(1e-3))
    model = keras.Sequential([keras.Input((12,)), layer])
    model.compile(keras.optimizers.SGD(0.05), LOSS, run_eagerly=True)
    prune = PruneAtEpochEnd(rule)
    model.fit(X, Y, epochs=4, verbose=0, callbacks=[prune, Grow()])
    assert prune.records[-1].nonzero < prune.records[-2].nonzero
    assert size_of(model) <= 900


def test_the_impossible_is_refused_before_training_starts():
    with pytest.raises(ModelError, match="24 parameters that are not pruned"):
        fit(SizeTarget(parameters=25))
    with pytest.raises(ModelError, match="`size_of` gives 110"):
        fit(SizeTarget(bytes=109, size_of=coded))


REFUSED = {
    "parameters": {},
    "both": {"parameters": 5, "bytes": 5, "size_of": coded},
    "bytes": {"bytes": 0, "size_of": coded},
    "size_of": {"bytes": 5},
    "size_of without bytes": {"parameters": 5, "size_of": coded},
    "schedule": {"parameters": 5, "schedule": 0.5},
    "allocation": {"parameters": 5, "allocation": "best"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_named(name):
    argument = {"both": "parameters"}.get(name, name.split()[0])
    with pytest.raises(ArgumentError, match=f"Argument `{argument}` must be"):
        SizeTarget(**REFUSED[name])
