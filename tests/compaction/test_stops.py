"""What stops compaction is named, with the true reason; what only looks like a stop passes."""

import keras
import numpy as np
import pytest

from keras_sensprune import compact
from tests.compaction.networks import kept, kill_incoming, kill_outgoing, randomized, same

L = keras.layers
# Sums of up to some 200 float32 products of order 1: 200 * 6e-8, with a factor of 5 for what layers amplify.
CLOSE = 6e-5


@pytest.mark.parametrize("source", ["Embedding", "Masking"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("SimpleRNN", 1)])
def test_masked_recurrent_layers_are_compacted(kind, gates, source):
    layer = getattr(L, kind)(6, return_sequences=True, zero_output_for_mask=kind == "LSTM", name="units")
    second = getattr(L, kind)(5, name="second")
    if source == "Embedding":
        first = [keras.Input((5,), dtype="int32"), L.Embedding(9, 4, mask_zero=True)]
    else:
        first = [keras.Input((5, 4)), L.Masking(0.0)]
    model = randomized(keras.Sequential([*first, layer, second, L.Dense(2)]))
    kill_incoming(layer, [1, 3], gates=gates, biases=True)
    kill_incoming(second, [0], gates=gates, biases=True)
    small, record = compact(model, round_to=1)
    assert kept(record, "units") == [0, 2, 4, 5]
    assert kept(record, "second") == [1, 2, 3, 4]
    assert [stop.kind for stop in record.stops] == ([] if source == "Embedding" else ["Masking"])
    x = np.array([[1, 2, 0, 0, 3], [0, 0, 0, 0, 0], [4, 0, 5, 6, 0]])
    if source == "Masking":
        x = (x != 0)[..., None] * np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    np.testing.assert_allclose(small(x).numpy(), model(x).numpy(), rtol=0, atol=CLOSE)


def test_a_mask_that_is_given_keeps_what_makes_it():
    x = keras.Input((5, 4))
    maker = L.Dense(6, name="maker")
    mask = keras.ops.any(keras.ops.greater(maker(x), 0), axis=-1)
    layer = L.LSTM(6, name="units")
    model = randomized(keras.Model(x, L.Dense(2)(layer(x, mask=mask))))
    kill_incoming(layer, [1], gates=4, biases=True)
    kill_incoming(maker, [2])
    small, record = compact(model, round_to=1)
    assert kept(record, "units") == [0, 2, 3, 4, 5]
    assert kept(record, "maker") == [0, 1, 2, 3, 4, 5]
    assert same(model, small) <= CLOSE


def reasons(record):
    return {stop.path: stop.reason for stop in record.stops}


@keras.saving.register_keras_serializable("compaction_tests")
def doubled(x):
    return 2 * x


@pytest.mark.parametrize("activation", ["softmax", doubled])
def test_a_layer_that_keeps_all_its_units_is_named(activation):
    hidden = L.Dense(6, activation=activation, name="hidden")
    last = L.Dense(2, activation=activation, name="last")
    model = randomized(keras.Sequential([keras.Input((4,)), L.Dense(5, name="first"), hidden, last, L.Identity()]))
    kill_incoming(model.get_layer("first"), [2])
    kill_outgoing(last, [1])
    small, record = compact(model, round_to=1)
    assert kept(record, "hidden") == [0, 1, 2, 3, 4, 5]
    assert kept(record, "first") == [0, 1, 3, 4]  # its inputs may go
    # the last layer's units are outputs of the model and stay anyway
    assert reasons(record) == {"hidden": "its activation mixes its units or is not one of Keras, so all of them stay"}
    assert same(model, small) <= CLOSE


def test_a_returned_state_and_a_second_output_are_named():
    x = keras.Input((5, 4))
    y, h, c = L.LSTM(6, return_state=True, name="units")(x)
    model = randomized(keras.Model(x, L.Dense(2)(L.Concatenate()([y, h, c]))))
    assert reasons(compact(model, round_to=1)[1])["units"] == "its state is given or returned"
    inner_input = keras.Input((4,))
    hidden = L.Dense(6, "relu", name="hidden")(inner_input)
    inner = keras.Model(inner_input, [hidden, L.Dense(3)(hidden)], name="inner")
    x = keras.Input((4,))
    model = randomized(keras.Model(x, L.Dense(2)(L.Concatenate()(inner(x)))))
    assert reasons(compact(model, round_to=1)[1])["inner"].startswith("it is a model: what is inside is compacted")


@pytest.mark.parametrize(
    "expression",
    [lambda x: x * 2.0 + 1, lambda x: 1.5 - x, lambda x: keras.ops.maximum(x, 0), lambda x: 0.5 * (2 - x)],
)
def test_numbers_in_expressions_pass(expression):
    x = keras.Input((4,))
    a = L.Dense(6, name="a")
    model = randomized(keras.Model(x, L.Dense(2)(expression(a(x)))))
    kill_incoming(a, [1, 4])
    small, record = compact(model, round_to=1)
    assert kept(record, "a") == [0, 2, 3, 5]
    assert record.stops == ()
    assert same(model, small) <= CLOSE


def test_merged_inputs_of_different_widths_are_named():
    x = keras.Input((4,))
    model = randomized(keras.Model(x, L.Dense(2)(L.Dense(6, name="a")(x) + L.Dense(1, name="b")(x))))
    _, record = compact(model, round_to=1)
    assert list(reasons(record).values()) == ["its inputs have different numbers of channels"]


@pytest.mark.parametrize(("round_to", "left"), [(2, 2), (4, 4), (16, 6)])
def test_an_all_dead_layer_keeps_a_round_width_too(round_to, left):
    hidden = L.Dense(6, "relu", name="hidden")
    model = randomized(keras.Sequential([keras.Input((3,)), hidden, L.Dense(2)]))
    kill_incoming(hidden, range(6))
    small, record = compact(model, round_to=round_to)
    assert len(kept(record, "hidden")) == left
    assert same(model, small) <= CLOSE
