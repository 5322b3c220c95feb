"""Recurrent units from `fit` to `compact`: what is pruned as a unit is removed; biases of dead units stay zero."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, compact, make_pruning_step

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
KINDS = {
    "LSTM": (L.LSTM, {}),
    "GRU": (L.GRU, {}),
    "GRU, reset before": (L.GRU, {"reset_after": False}),
    "SimpleRNN": (L.SimpleRNN, {}),
}


def network(kind, units=12, **options):
    """Units from small to large, so that a threshold divides them; biases that are not zero."""
    layer, settings = KINDS[kind]
    sparse = SensitivityRegularizer(0.01)
    options = {"kernel_regularizer": sparse, "recurrent_regularizer": sparse} | options
    stack = [keras.Input((3, 4)), layer(units, name="units", **settings, **options), L.Dense(3, name="out")]
    model = keras.Sequential(stack)
    generator = np.random.default_rng(0)
    for variable in model.get_layer("units").trainable_variables:
        size = np.linspace(0.05, 1, units) if len(variable.shape) == 2 and variable.shape[0] > 2 else 1
        variable.assign(generator.normal(size=variable.shape) * np.tile(size, variable.shape[-1] // np.size(size)))
    return model


def batch():
    generator = np.random.default_rng(1)
    return generator.normal(size=(24, 3, 4)).astype("float32"), generator.integers(0, 3, 24)


def dead_units(model, units=12):
    parts = [v.numpy().reshape(-1, units) for v in model.get_layer("units").trainable_variables[:2]]
    return np.flatnonzero(np.all(np.concatenate(parts) == 0, axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_die_in_fit_are_exactly_those_that_compact_removes(kind):
    model = network(kind)
    model.compile("adam", LOSS, jit_compile=False)
    model.fit(*batch(), epochs=3, verbose=0, callbacks=[PruneAtEpochEnd(0.3, structure="unit")])
    dead = dead_units(model)
    assert 0 < len(dead) < 12
    bias = model.get_layer("units").trainable_variables[2].numpy().reshape(-1, 12)
    assert np.all(bias[:, dead] == 0)
    assert np.all(np.delete(bias, dead, axis=1) != 0)
    small, record = compact(model, round_to=1)
    assert list(record.layers[0].kept) == sorted(set(range(12)) - set(dead))
    x = batch()[0]
    # 3 steps of sums of 16 float32 products of order 1: 48 * 6e-8, with a factor of 2
    np.testing.assert_allclose(small(x).numpy(), model(x).numpy(), rtol=0, atol=5e-6)


def test_the_bias_stays_zero_while_the_rule_is_attached_and_is_given_back():
    model = network("LSTM", bias_constraint=keras.constraints.MaxNorm(50.0))
    bias = model.get_layer("units").cell.bias
    constraint = bias.constraint
    model.compile("adam", LOSS, jit_compile=False)
    with make_pruning_step(model, structure="unit") as step:
        compiled = tf.function(step)
        compiled(batch())
        step.prune(0.3)
        dead = dead_units(model)
        before = bias.numpy()
        compiled(batch())
        assert len(dead)
        assert np.all(bias.numpy().reshape(4, 12)[:, dead] == 0)
        assert np.any(bias.numpy() != before)  # the others are trained
    assert bias.constraint is constraint
    model.fit(*batch(), epochs=2, verbose=0, callbacks=[PruneAtEpochEnd(0.0, structure="unit")])
    assert np.all(bias.numpy().reshape(4, 12)[:, dead] == 0)
    assert bias.constraint is constraint


def test_without_a_bias_nothing_is_to_be_silenced():
    model = network("LSTM", use_bias=False)
    model.compile("adam", LOSS, jit_compile=False)
    model.fit(*batch(), verbose=0, callbacks=[PruneAtEpochEnd(0.3, structure="unit")])
    assert compact(model, round_to=1)[1].removed_units == len(dead_units(model)) > 0


def test_one_regularized_kernel_of_two_is_warned_of():
    model = network("GRU", recurrent_regularizer=None)
    model.compile("adam", LOSS, jit_compile=False)
    with pytest.warns(UserWarning, match=r"recurrent layers of .*units.*kernel only one of two kernels is regularized"):
        make_pruning_step(model, structure="unit").close()


@pytest.mark.parametrize("case", ["TimeDistributed", "Bidirectional", "Separable"])
def test_layers_that_compact_does_not_look_into_are_warned_of(case):
    sparse = SensitivityRegularizer(0.01)
    layer = {
        "TimeDistributed": lambda: L.TimeDistributed(L.Dense(4, kernel_regularizer=sparse)),
        "Bidirectional": lambda: L.Bidirectional(
            L.LSTM(4, kernel_regularizer=sparse, recurrent_regularizer=sparse, return_sequences=True)
        ),
        "Separable": lambda: L.SeparableConv1D(4, 3, pointwise_regularizer=sparse),
    }[case]()
    model = keras.Sequential([keras.Input((3, 4)), layer, L.GlobalAveragePooling1D(), L.Dense(3, name="out")])
    model.compile("adam", LOSS, jit_compile=False)
    with pytest.warns(UserWarning, match=r"`compact` takes no units out of the layers of .*kernel"):
        make_pruning_step(model, structure="unit").close()
