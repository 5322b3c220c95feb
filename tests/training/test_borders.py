"""What lies at the border of what can be pruned: half precision, functions compiled already, models without parts."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import (
    PruneAtEpochEnd,
    Sensitivity,
    SensitivityRegularizer,
    SparsityTarget,
    StrengthRamp,
    make_pruning_step,
)
from keras_sensprune.errors import ArgumentError, DataError, ModelError
from keras_sensprune.formulas.sensitivity import shrunk_share
from tests.steps import OwnStep

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 8)).astype("float32"), RNG.integers(0, 3, 64)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(strength=1e-3, optimizer=None, **settings):
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(strength))
    model = keras.Sequential([keras.Input((8,)), layer])
    model.compile(optimizer or keras.optimizers.SGD(0.0), LOSS, **settings)
    return model


def magnitude(model):
    return float(np.abs(model.layers[0].kernel.numpy().astype("float64")).sum())


# Half precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_half_precision_shrink(dtype):
    """80 steps of 0.1 % in parts of 32: 1 - 0.999^80 = 7.7 % of the insensitive part; a number has 8 or 11 bits."""
    shrunk = {}
    for policy in ("float32", dtype):
        with _policy(policy):
            model = network()
            before = magnitude(model)
            model.fit(X, Y, 8, epochs=10, verbose=0, callbacks=[PruneAtEpochEnd(0.0, Sensitivity("none"))])
            shrunk[policy] = magnitude(model) / before
    assert shrunk["float32"] == pytest.approx(0.999**80, rel=1e-4)
    assert shrunk[dtype] == pytest.approx(shrunk["float32"], abs=0.02)


class _policy:
    """The default policy of a block."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.name)

    def __exit__(self, *error):
        keras.config.set_dtype_policy(self.before)


def test_a_shrinkage_that_half_precision_does_not_hold_is_told():
    with _policy("bfloat16"):
        model = network(1e-5)
    with pytest.warns(UserWarning, match="of type bfloat16.* is lost in rounding.*'mixed_bfloat16'"):
        model.fit(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(0.0)])


def test_the_share_of_many_steps_is_exact_for_small_strengths():
    once = np.array([0.0, 1e-9, 3e-8, 1e-4, 0.3, 0.7, 1.0], "float32")
    found = keras.ops.convert_to_numpy(shrunk_share(1.0, once, keras.ops.convert_to_tensor(32)))
    np.testing.assert_allclose(found, 1 - (1 - once.astype("float64")) ** 32, rtol=1e-6)


# Compiled already


def test_a_train_step_that_is_a_tf_function_is_refused_before_it_is_traced():
    class Compiled(OwnStep, keras.Model):
        train_step = tf.function(OwnStep.train_step)

    inner = network()
    model = Compiled(inner.inputs, inner.outputs)
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    with pytest.raises(ModelError, match=r"Take @tf\.function off it"):
        model.fit(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(0.1)])
    with pytest.warns(UserWarning, match="may grow again"):
        model.fit(X, Y, verbose=0)  # as if nothing had been
    with pytest.raises(ModelError, match=r"Take @tf\.function off it"):
        make_pruning_step(network(), train_step=tf.function(lambda data: data))


# Without parts


def test_without_a_forward_pass_the_error_says_what_can_be_done():
    class Headless(keras.Model):
        def __init__(self):
            super().__init__()
            self.part = keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(1e-3))
            self.part.build((None, 8))
            self.built = True

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = keras.ops.mean(LOSS(y, self.part(x)))
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}

    model = Headless()
    model.compile("sgd")
    with pytest.raises(ModelError, match=r"(?s)does not have.*Sensitivity\(output_fn=.*Sensitivity\('none'\)"):
        model.fit(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(0.1, Sensitivity("unspecific"))])
    model.fit(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(0.1, Sensitivity("none"))])
    assert (model.part.kernel.numpy() == 0).any()


def test_the_last_good_weights_are_kept_without_an_optimizer_of_keras():
    class Own(keras.Sequential):
        def train_step(self, data):
            return {"loss": self.compute_loss(data[0], data[1], self(data[0], training=True))}

    layer = keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(1e-3))
    model = Own([keras.Input((8,)), layer])
    model.compile(optimizer=None, loss=LOSS)
    model.fit(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(0.3, keep_last_good=True)])
    assert (layer.kernel.numpy() == 0).any()


@pytest.mark.parametrize("given", [{}, {"epochs": 2, "steps": 2}])
def test_a_list_of_callbacks_that_the_user_has_made(given):
    model, prune = network(), PruneAtEpochEnd(0.1)
    callbacks = keras.callbacks.CallbackList([prune], add_history=True, model=model, **given)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
    assert prune.records[-1].sparsity > 0


@pytest.mark.parametrize(
    ("argument", "options"),
    [("threshold", {"threshold": SparsityTarget(0.5)}), ("strength", {"threshold": 0.1, "strength": StrengthRamp()})],
)
def test_a_rule_that_must_know_the_epochs_says_so(argument, options):
    model = network()
    callbacks = keras.callbacks.CallbackList([PruneAtEpochEnd(**options)], model=model)
    with pytest.raises(ArgumentError, match=f"`{argument}` must be a rule that does not need.*CallbackList"):
        model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
    assert "train_step" not in vars(model)


# Metrics


def test_the_parts_of_a_loss_are_counted_once():
    """For recurrent models the loss sensitivity computes the loss a second time."""
    logs = []
    x = RNG.normal(size=(32, 4, 3)).astype("float32")
    y = {name: RNG.normal(size=(32, 1)) for name in "ab"}
    for pruned in (False, True):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4, 3))
        hidden = keras.layers.Dropout(0.5)(keras.layers.LSTM(5)(inputs))
        outputs = {
            name: keras.layers.Dense(1, name=name, kernel_regularizer=SensitivityRegularizer(0.0))(hidden)
            for name in "ab"
        }
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.1), "mse", metrics={"a": ["mae"]})
        callbacks = [PruneAtEpochEnd(0.0, Sensitivity("loss", every=1))] if pruned else []
        history = model.fit(x, y, 8, epochs=2, shuffle=False, verbose=0, callbacks=callbacks).history
        logs.append({name: history[name] for name in ("loss", "a_loss", "b_loss", "a_mae")})
    assert logs[0] == logs[1]


# A run without epochs


def test_when_no_epoch_is_left_the_records_are_those_of_the_file(tmp_path):
    path = str(tmp_path / "pruning.state")
    model, first = network(optimizer=keras.optimizers.SGD(0.1)), PruneAtEpochEnd(0.1, state_path=path)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[first])
    again = PruneAtEpochEnd(0.1, state_path=path)
    model.fit(X, Y, initial_epoch=2, epochs=2, verbose=0, callbacks=[again])
    assert again.records == first.records
    other = network()
    with pytest.raises(DataError, match="the model has made 0"):
        other.fit(X, Y, initial_epoch=2, epochs=2, verbose=0, callbacks=[PruneAtEpochEnd(0.1, state_path=path)])
    assert "train_step" not in vars(other)
