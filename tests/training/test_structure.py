"""Structures in `fit`: the step against the oracle, counts, what stays, warnings, errors."""

import keras
import numpy as np
import pytest

from keras_sensprune import (
    Block,
    NofM,
    PruneAtEpochEnd,
    Sensitivity,
    SensitivityRegularizer,
    make_pruning_step,
    weight_sensitivities,
)
from keras_sensprune.errors import ArgumentError, ModelError
from tests.reference import structure_oracle as oracle

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(strength=0.02, inputs=8, hidden=8, activation="relu"):
    """Units of the first layer from small to large, so that a threshold divides them."""
    sparse = SensitivityRegularizer(strength)
    first = L.Dense(hidden, activation, kernel_regularizer=sparse, name="first")
    model = keras.Sequential([keras.Input((inputs,)), first, L.Dense(3, kernel_regularizer=sparse, name="last")])
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    first.kernel.assign(first.kernel.numpy() * np.linspace(0.3, 1.7, hidden))
    return model


def batch(model, count=12):
    generator = np.random.default_rng(1)
    return generator.normal(size=(count, *model.input_shape[1:])).astype("float32"), generator.integers(0, 3, count)


def fitted(model, structure, threshold, epochs=2, optimizer="sgd", **options):
    model.compile(optimizer, LOSS, **options)
    callback = PruneAtEpochEnd(threshold, structure=structure)
    history = model.fit(*batch(model), epochs=epochs, batch_size=6, shuffle=False, verbose=0, callbacks=[callback])
    return callback, history.history


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("structure", ["unit", Block(1, 4), NofM(2, 4), "weight"])
def test_one_step_is_the_oracle_s(structure, jit):
    model = mlp(strength=0.1)
    first = model.get_layer("first").kernel
    first.assign(first.numpy() * (np.arange(64).reshape(8, 8) % 5 != 0))  # some weights are dead already
    x, y = batch(model)
    before = [v.numpy().astype(float) for v in model.trainable_variables]
    sensitivities = weight_sensitivities(model, x, y, sensitivity=Sensitivity("unspecific"))
    model.compile(keras.optimizers.SGD(0.0), LOSS, jit_compile=jit)  # the shrinkage alone
    with make_pruning_step(model, Sensitivity("unspecific", every=1, estimator="exact"), structure=structure) as step:
        step((x, y))
    kernel, last = before[0], before[2]
    groups = {
        "unit": oracle.unit_groups((8, 8)),
        Block(1, 4): oracle.block_groups((8, 8), 4),
    }.get(structure, [[i] for i in np.ndindex(8, 8)])
    last_groups = oracle.block_groups((8, 3), 4) if structure == Block(1, 4) else [[i] for i in np.ndindex(8, 3)]
    for value, sensitivity, own, variable in (
        (kernel, sensitivities[0], groups, model.trainable_variables[0]),
        (last, sensitivities[1], last_groups, model.trainable_variables[2]),
    ):
        expected = value - oracle.shrinkage(value, np.asarray(sensitivity), own, 0.1)
        # weights of order 3 in float32, with a sensitivity that is a mean of 12 float32 sums
        np.testing.assert_allclose(variable.numpy(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("structure", ["unit", Block(1, 4), NofM(2, 4)])
def test_zeros_are_whole_groups_and_what_the_log_said(structure):
    model = mlp(inputs=16)
    callback, history = fitted(model, structure, threshold=0.85)
    record = callback.records[-1]
    kernels = [model.get_layer(name).kernel.numpy() for name in ("first", "last")]
    zeros = sum(int(np.sum(kernel == 0)) for kernel in kernels)
    assert record.total - record.nonzero == zeros > 0
    assert history["sparsity"][-1] == pytest.approx(zeros / record.total, abs=1e-12)  # one float64 rounding
    assert record.structure == str(structure)
    assert not any(np.signbit(kernel[kernel == 0]).any() for kernel in kernels)
    if structure == "unit":
        dead = np.all(kernels[0] == 0, axis=0)
        assert 0 < dead.sum() < 8
        assert np.all(kernels[0][:, ~dead] != 0)
        assert (record.groups, record.nonzero_groups) == (8, 8 - dead.sum())
        assert [label.split("/")[-2] for label in record.by_weight] == ["last"]
    elif isinstance(structure, Block):
        blocks = kernels[0].reshape(4, 4, 8)
        assert np.all(np.any(blocks != 0, axis=1) == np.all(blocks != 0, axis=1))
        assert record.groups == 4 * 8 + 2 * 3
    else:
        assert np.all(np.sum(kernels[0].reshape(4, 4, 8) != 0, axis=1) == 2)
        assert np.all(np.sum(kernels[1][:4] != 0, axis=0) == 2)
        assert np.all(np.sum(kernels[1][4:] != 0, axis=0) == 2)


def test_compiled_is_eager():
    weights = []
    for eager in (False, True):
        model = mlp()
        fitted(model, "unit", 0.8, run_eagerly=eager)
        weights.append([w.copy() for w in model.get_weights()])
    for compiled, eager in zip(*weights, strict=True):
        # four steps of float32 sums of 12 terms of order 1
        np.testing.assert_allclose(compiled, eager, rtol=0, atol=5e-6)


def test_weight_is_what_it_was_without_a_structure():
    weights = []
    for options in ({}, {"structure": "weight"}):
        model = mlp()
        model.compile("adam", LOSS)
        model.fit(*batch(model), epochs=2, verbose=0, shuffle=False, callbacks=[PruneAtEpochEnd(0.3, **options)])
        weights.append(b"".join(w.tobytes() for w in model.get_weights()))
    assert weights[0] == weights[1]


def test_zeros_stay_in_a_second_fit():
    model = mlp()
    fitted(model, "unit", 0.85)
    dead = np.all(model.get_layer("first").kernel.numpy() == 0, axis=0)
    fitted(model, "unit", 0.0, optimizer="adam")
    assert dead.any()
    assert np.all(model.get_layer("first").kernel.numpy()[:, dead] == 0)


@pytest.mark.parametrize("scale", ["relative", "relevance"])
def test_scales_and_refreshes_go_together_with_groups(scale):
    model = mlp()
    model.compile("sgd", LOSS)
    callback = PruneAtEpochEnd(
        0.5, Sensitivity("unspecific", scale=scale, every=2, estimator="exact"), structure="unit"
    )
    model.fit(*batch(model), epochs=2, batch_size=6, verbose=0, callbacks=[callback])
    assert np.isfinite(callback.records[-1].penalty)
    assert callback.records[-1].nonzero_groups >= 1


def test_filters_and_recurrent_units():
    sparse = SensitivityRegularizer(0.05)
    image = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            L.Conv2D(8, 3, kernel_regularizer=sparse, name="filters"),
            L.GlobalAveragePooling2D(),
            L.Dense(3, name="out"),
        ]
    )
    sequence = keras.Sequential(
        [
            keras.Input((5, 4)),
            L.LSTM(8, kernel_regularizer=sparse, recurrent_regularizer=sparse, name="units"),
            L.Dense(3, name="out"),
        ]
    )
    for model in (image, sequence):
        generator = np.random.default_rng(0)
        scale = np.linspace(0.1, 2, 8)  # so that some units are small
        for variable in model.trainable_variables:
            factor = np.tile(scale, variable.shape[-1] // 8) if variable.shape[-1] % 8 == 0 else 1
            variable.assign(generator.normal(size=variable.shape) * factor)
        callback, _ = fitted(model, "unit", 0.7)
        assert 0 < callback.records[-1].nonzero_groups < callback.records[-1].groups
    filters = image.get_layer("filters").kernel.numpy().reshape(-1, 8)
    assert np.all(np.any(filters != 0, axis=0) == np.all(filters != 0, axis=0))
    kernel, recurrent = (v.numpy() for v in sequence.get_layer("units").trainable_variables[:2])
    dead = [np.all(value.reshape(-1, 4, 8) == 0, axis=(0, 1)) for value in (kernel, recurrent)]
    np.testing.assert_array_equal(dead[0], dead[1])
    assert 0 < dead[0].sum() < 8


def test_warnings_name_what_a_structure_does_not_fit():
    sparse = SensitivityRegularizer(0.01)
    stack = [L.Conv1D(4, 2, kernel_regularizer=sparse, name="conv"), L.GlobalAveragePooling1D()]
    model = keras.Sequential(
        [keras.Input((6, 3)), *stack, L.Dense(6, kernel_regularizer=sparse, name="fc"), L.Dense(3, name="out")]
    )
    with pytest.warns(UserWarning, match=r"structure=Block\(1, 4\) does not apply to .*conv.*: pruned weight by"):
        fitted(model, Block(1, 4), 0.3, epochs=1)
    layer = L.Dense(6, kernel_regularizer=sparse, name="fc")
    ragged = keras.Sequential([keras.Input((10,)), layer, L.Dense(3)])
    with pytest.warns(UserWarning, match=r"fc.* \(10 inputs\) are not a multiple of 4: the last block of each unit"):
        fitted(ragged, Block(1, 4), 0.3, epochs=1)


@pytest.mark.filterwarnings("ignore:All weights of")
def test_the_units_of_output_layers_stay():
    model = mlp()
    callback, _ = fitted(model, "unit", 5.0, epochs=1)  # far above every weight: only the floor is left
    last = model.get_layer("last").kernel.numpy()
    first = model.get_layer("first").kernel.numpy()
    assert np.count_nonzero(last) == 1  # pruned weight by weight
    assert np.count_nonzero(np.any(first != 0, axis=0)) == 1  # one whole unit
    assert len(callback.records[-1].kept_by_floor) == 2


def test_a_structure_that_fits_nothing_is_an_error():
    only_last = keras.Sequential(
        [keras.Input((4,)), L.Dense(3, kernel_regularizer=SensitivityRegularizer(0.1), name="o")]
    )
    only_last.compile("sgd", LOSS)
    with pytest.raises(ModelError, match=r"^structure=unit applies to no regularized weight of .*output layers\. Use"):
        only_last.fit(*batch(only_last), verbose=0, callbacks=[PruneAtEpochEnd(0.1, structure="unit")])
    with pytest.raises(ArgumentError, match="`structure` must be 'weight', 'unit'"):
        PruneAtEpochEnd(0.1, structure="filter")


def test_a_subclassed_model_cannot_tell_its_output_layers():
    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            sparse = SensitivityRegularizer(0.1)
            self.a, self.b = L.Dense(8, kernel_regularizer=sparse), L.Dense(3, kernel_regularizer=sparse)

        def call(self, x):
            return self.b(self.a(x))

    keras.utils.set_random_seed(0)  # so that some block is below the threshold, whatever was built before
    model = Net()
    model.compile("sgd", LOSS)
    x, y = np.ones((6, 4), "float32"), np.zeros(6, int)
    model(x)
    with pytest.raises(ModelError, match="a subclassed model has no graph to tell them"):
        model.fit(x, y, verbose=0, callbacks=[PruneAtEpochEnd(0.1, structure="unit")])
    model.fit(x, y, verbose=0, callbacks=[callback := PruneAtEpochEnd(0.4, structure=Block(1, 4))])
    assert 0 < callback.records[-1].nonzero_groups < callback.records[-1].groups


def test_n_of_m_prunes_nothing_at_threshold_0():
    model = mlp()
    callback, _ = fitted(model, NofM(2, 4), 0.0, epochs=1)
    assert callback.records[-1].nonzero == callback.records[-1].total
    assert np.all(model.get_layer("first").kernel.numpy() != 0)
