"""The penalty of groups and its gradient against the oracle in loops."""

import keras
import numpy as np
import pytest

from keras_sensprune import Block, NofM, Sensitivity, SensitivityRegularizer, make_pruning_step, weight_sensitivities
from tests.reference import structure_oracle as oracle

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
UNSPECIFIC = Sensitivity("unspecific", every=1, estimator="exact")


def network(decoupled, strength=0.1):
    """One regularized kernel of 8x8, with some dead weights."""
    sparse = SensitivityRegularizer(strength, decoupled=decoupled) if strength else None
    first = L.Dense(8, "relu", kernel_regularizer=sparse, name="first")
    model = keras.Sequential([keras.Input((8,)), first, L.Dense(3, name="last")])
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    first.kernel.assign(first.kernel.numpy() * (np.arange(64).reshape(8, 8) % 5 != 0))
    return model


def batch(shape=(8,)):
    generator = np.random.default_rng(1)
    return generator.normal(size=(12, *shape)).astype("float32"), generator.integers(0, 3, 12)


def groups_of(structure):
    if structure == "unit":
        return oracle.unit_groups((8, 8))
    return oracle.block_groups((8, 8), 4) if isinstance(structure, Block) else [[i] for i in np.ndindex(8, 8)]


@pytest.mark.parametrize("structure", ["weight", "unit", Block(1, 4), NofM(2, 4)])
def test_the_gradient_of_the_coupled_penalty_is_the_shrinkage_of_the_oracle(structure):
    x, y = batch()
    model, plain = network(decoupled=False), network(decoupled=False, strength=0)
    before = model.get_layer("first").kernel.numpy().astype(float)
    sensitivity = np.asarray(weight_sensitivities(model, x, y, sensitivity=UNSPECIFIC)[0])
    model.compile(keras.optimizers.SGD(0.5), LOSS)
    with make_pruning_step(model, UNSPECIFIC, structure=structure) as step:
        step((x, y))
    plain.compile(keras.optimizers.SGD(0.5), LOSS)
    plain.train_on_batch(x, y)
    moved = plain.get_layer("first").kernel.numpy().astype(float) - model.get_layer("first").kernel.numpy()
    alive = before != 0
    expected = 0.5 * oracle.shrinkage(before, sensitivity, groups_of(structure), 0.1)
    # two float32 weights of order 3 after one step each: 2 * 3 * 6e-8, and a sensitivity of 12 float32 sums
    np.testing.assert_allclose(moved[alive], expected[alive], rtol=0, atol=5e-6)


@pytest.mark.parametrize("structure", ["weight", "unit", Block(1, 4), NofM(2, 4)])
def test_the_logged_penalty_is_that_of_the_oracle(structure):
    model = network(decoupled=True)
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    with make_pruning_step(model, UNSPECIFIC, structure=structure) as step:
        step(batch())
        record = step.prune(0.0)
        sensitivity = step._session.weights[0].sensitivity.numpy()
    kernel = model.get_layer("first").kernel.numpy().astype(float)
    expected = oracle.penalty(kernel, sensitivity, groups_of(structure), 0.1)
    # a float32 sum of 64 terms of one sign: 64 * 6e-8 relative
    assert record.penalty == pytest.approx(expected, rel=4e-6)


def test_a_recurrent_unit_has_one_sensitivity_for_both_kernels():
    sparse = SensitivityRegularizer(0.1)
    layer = L.LSTM(4, kernel_regularizer=sparse, recurrent_regularizer=sparse)
    model = keras.Sequential([keras.Input((3, 5)), layer, L.Dense(3)])
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    model.compile(keras.optimizers.SGD(0.0), LOSS, jit_compile=False)
    with make_pruning_step(model, UNSPECIFIC, structure="unit") as step:
        step(batch((3, 5)))
        record = step.prune(0.0)
        states = step._session.weights
        sensitivity = np.concatenate([state.sensitivity.numpy() for state in states])
        both = np.concatenate([state.variable.numpy().astype(float) for state in states])
    assert both.shape == (9, 16)
    expected = oracle.penalty(both, sensitivity, oracle.unit_groups((9, 16), gates=4), 0.1)
    # a float32 sum of 144 terms of one sign: 144 * 6e-8 relative
    assert record.penalty == pytest.approx(expected, rel=1e-5)
