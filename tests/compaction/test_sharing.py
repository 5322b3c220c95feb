"""Layers that are called several times, and what belongs to several models."""

import keras
import pytest

from keras_sensprune import compact
from tests.compaction.networks import kept, kill_incoming, randomized, same

L = keras.layers
# Sums of up to some 200 float32 products of order 1: 200 * 6e-8, with a factor of 5 for what layers amplify.
CLOSE = 6e-5


@pytest.mark.parametrize("width", [8, 5])
def test_one_activation_behind_several_layers_ties_nothing(width):
    relu, a, b = L.ReLU(), L.Dense(8, name="a"), L.Dense(width, name="b")
    x = keras.Input((4,))
    model = randomized(keras.Model(x, L.Dense(2)(relu(b(relu(a(x)))))))
    kill_incoming(a, [1, 2])
    kill_incoming(b, [3])
    small, record = compact(model, round_to=1)
    assert kept(record, "a") == [0, 3, 4, 5, 6, 7]
    assert kept(record, "b") == [unit for unit in range(width) if unit != 3]
    assert same(model, small) <= CLOSE


def test_one_pooling_and_one_flatten_for_several_widths():
    pool, flat, a, b = L.MaxPooling2D(), L.Flatten(), L.Conv2D(8, 3, name="a"), L.Conv2D(6, 3, name="b")
    x = keras.Input((16, 16, 3))
    one = pool(a(x))
    both = L.Concatenate()([flat(one), flat(pool(b(one)))])
    model = randomized(keras.Model(x, L.Dense(2)(both)))
    kill_incoming(a, [1, 2])
    kill_incoming(b, [0])
    small, record = compact(model, round_to=1)
    assert kept(record, "a") == [0, 3, 4, 5, 6, 7]
    assert kept(record, "b") == [1, 2, 3, 4, 5]
    assert same(model, small) <= CLOSE


@pytest.mark.parametrize(("last", "left"), [(6, [0, 2, 4, 5]), (-1, [0, 2, 3, 4, 5])])
def test_one_reshape_to_a_fixed_size_ties_its_calls(last, left):
    reshape, a, b = L.Reshape((1, last)), L.Dense(6, name="a"), L.Dense(6, name="b")
    x = keras.Input((4,))
    outputs = [L.Dense(2)(reshape(layer(x))) for layer in (a, b)]
    model = randomized(keras.Model(x, outputs))
    kill_incoming(a, [1, 3])
    kill_incoming(b, [1, 3] if last == 6 else [1])
    small, record = compact(model, round_to=1)
    assert kept(record, "a") == [0, 2, 4, 5]
    assert kept(record, "b") == left
    assert same(model, small) <= CLOSE


def test_one_embedding_for_two_lengths():
    table, short, long = (
        L.Embedding(5, 6, name="table"),
        keras.Input((3,), dtype="int32"),
        keras.Input((7,), dtype="int32"),
    )
    pooled = [L.GlobalAveragePooling1D()(table(x)) for x in (short, long)]
    model = randomized(keras.Model([short, long], L.Dense(2)(L.Concatenate()(pooled))))
    values = table.get_weights()[0]
    values[:, 2] = 0
    table.set_weights([values])
    small, record = compact(model, round_to=1)
    assert kept(record, "table") == [0, 1, 3, 4, 5]
    assert same(model, small) <= CLOSE


def test_a_shared_batch_normalization_ties_its_calls():
    norm, a, b = L.BatchNormalization(), L.Dense(6, name="a"), L.Dense(6, name="b")
    x = keras.Input((4,))
    model = randomized(keras.Model(x, L.Dense(2)(norm(b(norm(a(x)))))))
    for layer in (a, b):
        kill_incoming(layer, [1], biases=True)
    kill_incoming(a, [3], biases=True)
    small, record = compact(model, round_to=1)
    assert kept(record, "a") == kept(record, "b") == [0, 2, 3, 4, 5]
    assert same(model, small) <= CLOSE
