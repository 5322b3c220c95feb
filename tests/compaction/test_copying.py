"""Every layer is copied with its state; half precision is compared as such; what cannot be copied is named."""

import keras
import numpy as np
import pytest

from keras_sensprune import compact
from keras_sensprune.compaction import producers
from keras_sensprune.errors import ArgumentError, ModelError
from tests.compaction.networks import kept, kill_incoming, randomized, same

L = keras.layers
# Sums of up to some 200 float32 products of order 1: 200 * 6e-8, with a factor of 5 for what layers amplify.
CLOSE = 6e-5


def test_initializers_that_hold_an_array_do_not_fit_the_smaller_layer():
    matrix = np.random.default_rng(0).normal(size=(10, 8)).astype("float32")
    matrix[:, 3] = 0
    table = L.Embedding(10, 8, embeddings_initializer=keras.initializers.Constant(matrix), name="table")
    norm = L.BatchNormalization(gamma_initializer=keras.initializers.Constant(np.ones(8)), name="norm")
    stack = [table, norm, L.GlobalAveragePooling1D(), L.Dense(2)]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *stack])
    small, record = compact(model, round_to=1)
    assert kept(record, "table") == [0, 1, 2, 4, 5, 6, 7]
    assert same(model, small) <= CLOSE
    assert small.get_layer("norm").gamma.shape == (7,)


def test_initializers_of_keras_are_kept():
    hidden = L.Dense(6, "relu", kernel_initializer="he_normal", bias_initializer=keras.initializers.Constant(0.1))
    model = keras.Sequential([keras.Input((4,)), hidden, L.Dense(2)])
    kill_incoming(hidden, [1])
    copy = compact(model, round_to=1)[0].layers[0]
    assert copy.units == 5
    assert isinstance(copy.kernel_initializer, keras.initializers.HeNormal)
    assert copy.bias_initializer.value == 0.1


def between(before, first, data):
    """A model with a dead unit behind what is tested."""
    x = before[0]
    hidden = L.Dense(8, "relu", name="hidden")
    y = hidden(first(x))
    model = keras.Model(x, L.Dense(2)(L.Flatten()(y)))
    kill_incoming(hidden, [1, 2])
    small, record = compact(model, round_to=1, data=data)
    assert kept(record, "hidden") == [0, 3, 4, 5, 6, 7]
    return model, small


def test_adapted_normalization_keeps_its_statistics():
    norm = L.Normalization()
    norm.adapt(np.random.default_rng(0).normal(3, 2, size=(50, 4)))
    model, small = between([keras.Input((4,))], norm, None)
    assert same(model, small) <= CLOSE
    model, small = between([keras.Input((5, 4))], L.TimeDistributed(norm), None)
    assert same(model, small) <= CLOSE


def test_adapted_lookups_keep_their_tables():
    numbers = L.IntegerLookup(output_mode="multi_hot")
    numbers.adapt(np.array([1, 5, 7, 9]))
    x = np.array([[1, 5, 7], [9, 2, 1]])
    model, small = between([keras.Input((3,), dtype="int64")], numbers, x)
    np.testing.assert_allclose(small(x).numpy(), model(x).numpy(), rtol=0, atol=CLOSE)
    counted = L.IntegerLookup(output_mode="tf_idf")
    counted.adapt(np.array([[1, 5, 7], [9, 5, 1]]))
    model, small = between([keras.Input((3,), dtype="int64")], counted, x)
    np.testing.assert_allclose(small(x).numpy(), model(x).numpy(), rtol=0, atol=CLOSE)


def test_adapted_bins_are_kept():
    bins = L.Discretization(num_bins=4, output_mode="one_hot")
    bins.adapt(np.random.default_rng(0).normal(size=(100, 1)))
    model, small = between([keras.Input((1,))], bins, None)
    assert same(model, small) <= CLOSE


def test_text():
    words = L.TextVectorization(output_sequence_length=4)
    words.adapt(["a b c", "d e"])
    embedded = L.Embedding(10, 4, name="table")
    data = np.array(["a b", "c d e"])
    model, small = between([keras.Input((), dtype="string")], lambda x: embedded(words(x)), data)
    tensor = keras.ops.convert_to_tensor(["e a", "b"])
    np.testing.assert_allclose(small(tensor).numpy(), model(tensor).numpy(), rtol=0, atol=CLOSE)
    with pytest.raises(ArgumentError, match="`data` must be given, because an input takes strings"):
        compact(model)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64", "float32"])
def test_every_precision_is_compacted_and_compared(policy):
    stack = [L.Dense(64, "tanh", dtype=policy, name="a"), L.Dense(64, "tanh", dtype=policy, name="b")]
    model = randomized(keras.Sequential([keras.Input((32,)), *stack, L.Dense(10, dtype=policy)]))
    kill_incoming(model.layers[0], range(0, 64, 2))
    small, record = compact(model, round_to=1)
    assert kept(record, "a") == list(range(1, 64, 2))
    assert small.layers[0].dtype_policy.name == policy
    assert record.max_difference <= record.tolerance
    largest = float(np.max(np.abs(np.asarray(model(np.ones((1, 32), "float32")), np.float64))))
    coarse = {"mixed_float16": 0.05, "float16": 0.05, "mixed_bfloat16": 0.4, "bfloat16": 0.4}.get(policy, 1e-3)
    assert record.tolerance < coarse * max(1, 3 * largest)


def test_half_precision_does_not_hide_a_wrong_result(monkeypatch):
    model = keras.Sequential([keras.Input((8,)), L.Dense(8, dtype="mixed_float16"), L.Dense(2, dtype="mixed_float16")])
    monkeypatch.setattr(producers.Dense, "needs", lambda self, constants: np.arange(len(constants)) > 3)
    with pytest.raises(ModelError, match="differs from"):
        compact(randomized(model), round_to=1)


def test_quantized_layers_and_lora_are_refused_by_name():
    def network():
        return randomized(keras.Sequential([keras.Input((4,)), L.Dense(6, "relu", name="hidden"), L.Dense(2)]))

    quantized = network()
    quantized.layers[0].quantize("int8")
    with pytest.raises(ModelError, match=r"'hidden' is quantized \(int8\).*Compact before quantizing"):
        compact(quantized)
    lora = network()
    lora.layers[0].enable_lora(2)
    with pytest.raises(ModelError, match=r"'hidden' has LoRA weights"):
        compact(lora)


def test_nan_of_the_model_itself_is_no_difference():
    table = L.Embedding(9, 6, mask_zero=True, name="table")
    stack = [table, L.GlobalAveragePooling1D(), L.Dense(2)]
    model = randomized(keras.Sequential([keras.Input((2,), dtype="int32"), *stack]))
    values = table.get_weights()[0]
    values[:, 1] = 0
    table.set_weights([values])
    assert np.isnan(np.asarray(model(np.zeros((1, 2))))).all()  # all positions masked: 0 / 0
    _, record = compact(model, round_to=1)
    assert kept(record, "table") == [0, 2, 3, 4, 5]
    assert record.max_difference <= CLOSE
    with pytest.raises(ModelError, match=r"Output 0 of .* itself is NaN or infinite on all examples.*Pass `data=`"):
        compact(model, data=np.zeros((3, 2)))


def test_a_layer_of_two_models_is_refused_by_name():
    shared, inner_input, x = L.Dense(4, name="shared"), keras.Input((4,)), keras.Input((4,))
    inner = keras.Model(inner_input, L.Dense(4, "relu")(shared(inner_input)), name="inner")
    model = keras.Model(x, L.Dense(2)(inner(shared(x))), name="outer")
    with pytest.raises(ModelError, match=r"'shared' belongs to the model 'outer' and to the model 'inner'"):
        compact(model)
    twice = keras.Model(x, L.Dense(2)(inner(inner(x))), name="twice")  # one model called twice is one model
    small, record = compact(twice)
    assert record.parameters_after == record.parameters_before == small.count_params()
