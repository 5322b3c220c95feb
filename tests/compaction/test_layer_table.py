"""Every row of the table of layer types: what compacts, what units pass through, what stops them."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_sensprune import compact
from keras_sensprune.compaction.layers import OPERATIONS, TABLE
from keras_sensprune.compaction.rules import Stop
from tests.compaction.networks import kept, kill_incoming, kill_outgoing, randomized, same

L = keras.layers
# Sums of up to some 200 float32 products of order 1: 200 * 6e-8, with a factor of 5 for what layers amplify.
CLOSE = 6e-5


def between(shape, *middle, tail=()):
    """A producer of 6 channels, what is tested, and a reader: units 1 and 4 of the producer die, biases included."""
    rank = len(shape)
    producer = L.Dense(6, name="units") if rank == 1 else getattr(L, f"Conv{rank - 1}D")(6, 1, name="units")
    reader = [*tail, L.Dense(3, name="reader")]
    model = randomized(keras.Sequential([keras.Input(shape), producer, *middle, *reader]))
    kill_incoming(producer, [1, 4], biases=True)
    return model


# layer -> (input shape, layers to be tested, layers before the reader)
GAP = {2: L.GlobalAveragePooling1D, 3: L.GlobalAveragePooling2D, 4: L.GlobalAveragePooling3D}
PASSES = {
    "BatchNormalization": ((4,), lambda: [L.BatchNormalization()]),
    "Activation": ((4,), lambda: [L.Activation("gelu")]),
    "ReLU": ((4,), lambda: [L.ReLU(6.0)]),
    "LeakyReLU": ((4,), lambda: [L.LeakyReLU(0.2)]),
    "ELU": ((4,), lambda: [L.ELU()]),
    "PReLU": ((5, 5, 3), lambda: [L.PReLU(shared_axes=[1, 2])]),
    "Dropout": ((4,), lambda: [L.Dropout(0.5)]),
    "AlphaDropout": ((4,), lambda: [L.AlphaDropout(0.5)]),
    "GaussianNoise": ((4,), lambda: [L.GaussianNoise(0.5)]),
    "GaussianDropout": ((4,), lambda: [L.GaussianDropout(0.5)]),
    "ActivityRegularization": ((4,), lambda: [L.ActivityRegularization(0.1)]),
    "Identity": ((4,), lambda: [L.Identity()]),
    "RepeatVector": ((4,), lambda: [L.RepeatVector(3)]),
    "Flatten": ((5, 5, 3), lambda: [L.Flatten()]),
    "Reshape": ((4, 6, 3), lambda: [L.Reshape((24, 6))]),
    "DepthwiseConv1D": ((7, 3), lambda: [L.DepthwiseConv1D(3, depth_multiplier=2)]),
    "DepthwiseConv2D": ((7, 7, 3), lambda: [L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")]),
}
for _d in (1, 2, 3):
    _shape = (*(6,) * _d, 3)
    for _name in ("MaxPooling", "AveragePooling"):
        PASSES[f"{_name}{_d}D"] = (_shape, lambda n=f"{_name}{_d}D": [getattr(L, n)(2, padding="same")])
    for _name in ("GlobalMaxPooling", "GlobalAveragePooling"):
        PASSES[f"{_name}{_d}D"] = (_shape, lambda n=f"{_name}{_d}D": [getattr(L, n)()])
    PASSES[f"SpatialDropout{_d}D"] = (_shape, lambda n=f"SpatialDropout{_d}D": [getattr(L, n)(0.5)])
    PASSES[f"Cropping{_d}D"] = (_shape, lambda n=f"Cropping{_d}D": [getattr(L, n)(1)])
    PASSES[f"UpSampling{_d}D"] = (_shape, lambda n=f"UpSampling{_d}D": [getattr(L, n)(2)])
    PASSES[f"ZeroPadding{_d}D"] = (_shape, lambda n=f"ZeroPadding{_d}D": [getattr(L, n)(1)])


@pytest.mark.parametrize("name", PASSES)
def test_units_pass_through(name):
    shape, middle = PASSES[name]
    model = between(shape, *middle())
    small, record = compact(model, round_to=1)
    assert kept(record, "units") == [0, 2, 3, 5]
    assert record.stops == ()
    assert same(model, small) <= CLOSE


MERGES = ("Add", "Subtract", "Average", "Maximum", "Minimum", "Multiply")


@pytest.mark.parametrize("name", MERGES)
def test_merged_units_go_together(name):
    x = keras.Input((4,))
    a, b = L.Dense(6, name="a"), L.Dense(6, name="b")
    model = randomized(keras.Model(x, L.Dense(3)(getattr(L, name)()([a(x), b(x)]))))
    kill_incoming(a, [0, 1, 2], biases=True)
    kill_incoming(b, [1, 2, 3], biases=True)
    small, record = compact(model, round_to=1)
    # a product is 0 if one factor is; a sum is constant only if both terms are
    assert kept(record, "a") == kept(record, "b") == ([4, 5] if name == "Multiply" else [0, 3, 4, 5])
    assert same(model, small) <= CLOSE


def test_concatenated_units_stay_apart():
    x = keras.Input((4,))
    a, b = L.Dense(6, name="a"), L.Dense(5, name="b")
    model = randomized(keras.Model(x, L.Dense(3)(L.Concatenate()([a(x), b(x)]))))
    kill_incoming(a, [0, 1])
    kill_incoming(b, [4])
    small, record = compact(model, round_to=1)
    assert kept(record, "a") == [2, 3, 4, 5]
    assert kept(record, "b") == [0, 1, 2, 3]
    assert same(model, small) <= CLOSE


COMPACTS = {
    "Dense": lambda: ((4,), L.Dense(6, "tanh"), ()),
    "Conv1D": lambda: ((7, 3), L.Conv1D(6, 3, padding="causal"), (GAP[2](),)),
    "Conv2D": lambda: ((7, 7, 3), L.Conv2D(6, 3, strides=2, padding="same", dilation_rate=1), (GAP[3](),)),
    "Conv3D": lambda: ((5, 5, 5, 2), L.Conv3D(6, 3), (GAP[4](),)),
    "Conv1DTranspose": lambda: ((5, 3), L.Conv1DTranspose(6, 3, strides=2), (GAP[2](),)),
    "Conv2DTranspose": lambda: ((5, 5, 3), L.Conv2DTranspose(6, 3, strides=2), (GAP[3](),)),
    "Conv3DTranspose": lambda: ((3, 3, 3, 2), L.Conv3DTranspose(6, 3), (GAP[4](),)),
}


@pytest.mark.parametrize("name", COMPACTS)
def test_units_that_are_not_read_go(name):
    shape, layer, tail = COMPACTS[name]()
    model = keras.Sequential([keras.Input(shape), layer, *tail, L.Dense(3, name="reader")])
    randomized(model)
    layer.name = "units"
    kill_outgoing(model.get_layer("reader"), [0, 5])
    small, record = compact(model, round_to=1)
    assert kept(record, "units") == [1, 2, 3, 4]
    assert same(model, small) <= CLOSE


@pytest.mark.parametrize("name", COMPACTS)
def test_units_without_input_go_from_both_sides(name):
    shape, layer, tail = COMPACTS[name]()
    again = type(layer).from_config({**layer.get_config(), "name": "second"})
    model = randomized(keras.Sequential([keras.Input(shape), layer, again, *tail, L.Dense(3)]))
    layer.name = "units"
    values = layer.get_weights()
    transposed = "Transpose" in name
    values[0][(..., [2, 3], slice(None)) if transposed else (..., [2, 3])] = 0
    values[1][[2, 3]] = 0  # constant 0, so padding does not matter
    layer.set_weights(values)
    small, record = compact(model, round_to=1)
    assert kept(record, "units") == [0, 1, 4, 5]
    assert small.layers[1].get_weights()[0].shape[-1 if transposed else -2] == 4
    assert same(model, small) <= CLOSE


def test_embedding_columns():
    table = L.Embedding(5, 6, name="units")
    model = randomized(keras.Sequential([keras.Input((None,), dtype="int32"), table, GAP[2](), L.Dense(3)]))
    values = table.get_weights()[0]
    values[:, 1], values[:, 2] = 0, 0.7  # constant columns
    table.set_weights([values])
    data = np.array([[0, 1, 2], [3, 4, 0]])
    small, record = compact(model, round_to=1, data=data)
    assert kept(record, "units") == [0, 3, 4, 5]
    assert same(model, small) <= CLOSE


RECURRENT = {
    "LSTM": (4, lambda: L.LSTM(6, return_sequences=True, name="units")),
    "GRU": (3, lambda: L.GRU(6, return_sequences=True, name="units")),
    "GRU, reset before": (3, lambda: L.GRU(6, return_sequences=True, reset_after=False, name="units")),
    "SimpleRNN": (1, lambda: L.SimpleRNN(6, return_sequences=True, name="units")),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_units_that_stay_zero_or_are_not_read_go(name):
    gates, make = RECURRENT[name]
    first, layer, last = L.Dense(5, "relu", name="first"), make(), L.Dense(3, name="last")
    model = randomized(keras.Sequential([keras.Input((7, 4)), first, layer, last]))
    kill_incoming(first, [2])  # constant, to be folded into the gates' biases
    candidate = 2 if gates > 1 else 0
    values = layer.get_weights()
    for value in values:
        value[..., candidate * 6 + 1] = 0  # its candidate is silent, so unit 1 stays 0
    values[1][4] = 0  # unit 4 is read by no unit
    values[1][4, 4] = 0.5  # but by itself
    layer.set_weights(values)
    kill_outgoing(last, [4])
    small, record = compact(model, round_to=1)
    assert kept(record, "first") == [0, 1, 3, 4]
    assert kept(record, "units") == [0, 2, 3, 5]
    assert same(model, small) <= CLOSE


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("round_to", [1, 4])
def test_recurrent_units_that_read_only_each_other_go(name, round_to):
    gates, make = RECURRENT[name]
    layer, last = make(), L.Dense(3, name="last")
    model = randomized(keras.Sequential([keras.Input((7, 4)), layer, last]))
    values = layer.get_weights()
    reads = values[1].reshape(6, gates, 6)  # (unit, gate, by which unit)
    reads[[0, 1, 5]] = 0
    reads[0, :, 1] = reads[1, :, 0] = 1  # 0 and 1 read each other,
    reads[5, :, 4] = 1  # 5 is read by 4, which is read by a layer
    layer.set_weights(values)
    kill_outgoing(last, [0, 1, 5])
    small, record = compact(model, round_to=round_to)
    assert kept(record, "units") == [2, 3, 4, 5]
    assert same(model, small) <= CLOSE


@pytest.mark.parametrize("options", [{"stateful": True}, {"activation": "softmax"}])
def test_recurrent_layers_that_are_not_exact_stop(options):
    layer = L.LSTM(6, name="units", **options)
    model = randomized(keras.Sequential([keras.Input(batch_shape=(2, 5, 4)), layer, L.Dense(3)]))
    kill_incoming(layer, [0], gates=4, biases=True)
    small, record = compact(model, round_to=1)
    assert [stop.path for stop in record.stops] == ["units"]
    assert small.count_params() == model.count_params()


def test_a_state_that_is_given_stops():
    x = keras.Input((5, 4))
    layer = L.LSTM(6, name="units")
    model = randomized(keras.Model(x, L.Dense(3)(layer(x, initial_state=[x[:, 0, :1] * np.ones((1, 6))] * 2))))
    _, record = compact(model, round_to=1)
    assert ("units", "its state is given or returned") in [(stop.path, stop.reason) for stop in record.stops]


STOPS = {
    "Softmax": lambda: L.Softmax(),
    "LayerNormalization": lambda: L.LayerNormalization(),
    "GroupNormalization": lambda: L.GroupNormalization(2),
    "UnitNormalization": lambda: L.UnitNormalization(),
    "RMSNormalization": lambda: L.RMSNormalization(),
    "EinsumDense": lambda: L.EinsumDense("abc,cd->abd", (None, 6)),
    "Permute": lambda: L.Permute((2, 1)),
    "SeparableConv1D": lambda: L.SeparableConv1D(6, 3),
    "TimeDistributed": lambda: L.TimeDistributed(L.Dense(6)),
    "Bidirectional": lambda: L.Bidirectional(L.LSTM(3, return_sequences=True)),
    "RNN": lambda: L.RNN(L.LSTMCell(6), return_sequences=True),
    "Lambda": lambda: L.Lambda(lambda x: x[..., ::-1]),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_is_named_and_both_sides_are_compacted(name):
    before, after = L.Conv1D(6, 1, name="before"), L.Dense(8, "relu", name="after")
    first = L.Conv1D(7, 1, name="first")
    stop = STOPS[name]()
    tail = [] if name == "Permute" else [GAP[2]()]
    model = randomized(keras.Sequential([keras.Input((6, 3)), first, before, stop, *tail, after, L.Dense(3)]))
    kill_incoming(first, [3], biases=True)
    kill_incoming(before, [1], biases=True)
    kill_incoming(after, [2])
    small, record = compact(model, round_to=1)
    assert [(row.path, row.kind) for row in record.stops] == [(stop.name, type(stop).__name__)]
    assert record.stops[0].reason
    assert kept(record, "first") == [0, 1, 2, 4, 5, 6]
    assert kept(record, "before") == [0, 1, 2, 3, 4, 5]
    assert 2 not in kept(record, "after")
    assert same(model, small) <= CLOSE


def _self(layer):
    return lambda x: layer([x, x])


# layer -> (input shape, what is applied to the tensor `before`)
OTHER_STOPS = {
    "MultiHeadAttention": ((6, 3), lambda: (layer := L.MultiHeadAttention(2, 3), lambda x: layer(x, x))),
    "GroupQueryAttention": ((6, 3), lambda: (layer := L.GroupQueryAttention(2, 2, 1), lambda x: layer(x, x))),
    "Attention": ((6, 3), lambda: (layer := L.Attention(), _self(layer))),
    "AdditiveAttention": ((6, 3), lambda: (layer := L.AdditiveAttention(), _self(layer))),
    "Dot": ((6, 3), lambda: (layer := L.Dot(axes=2), _self(layer))),
    "SeparableConv2D": ((6, 6, 3), lambda: (layer := L.SeparableConv2D(6, 3), layer)),
    "ConvLSTM1D": ((3, 6, 3), lambda: (layer := L.ConvLSTM1D(4, 3), layer)),
    "ConvLSTM2D": ((3, 6, 6, 3), lambda: (layer := L.ConvLSTM2D(4, 3), layer)),
    "ConvLSTM3D": ((2, 4, 4, 4, 3), lambda: (layer := L.ConvLSTM3D(4, 3), layer)),
}


@pytest.mark.parametrize("name", OTHER_STOPS)
def test_other_stops_are_named_and_both_sides_are_compacted(name):
    shape, make = OTHER_STOPS[name]
    layer, apply = make()
    assert type(layer) is getattr(L, name)
    x = keras.Input(shape)
    first, before, after = L.Dense(7, name="first"), L.Dense(6, name="before"), L.Dense(8, "relu", name="after")
    y = L.Dense(3)(after(L.Flatten()(apply(before(first(x))))))
    model = randomized(keras.Model(x, y))
    kill_incoming(first, [3], biases=True)
    kill_incoming(before, [1], biases=True)
    kill_incoming(after, [2])
    small, record = compact(model, round_to=1)
    (stop,) = record.stops
    assert (stop.path, stop.reason) == (layer.name, TABLE[name](layer).obstacle([]))
    assert stop.reason != Stop(layer).reason
    assert kept(record, "first") == [0, 1, 2, 4, 5, 6]
    assert kept(record, "before") == [0, 1, 2, 3, 4, 5]
    assert kept(record, "after") == [0, 1, 3, 4, 5, 6, 7]
    # attention multiplies sums of some 10 terms with each other, and 16 of these are added: 2 * CLOSE
    assert same(model, small) <= 2 * CLOSE


def test_every_row_of_the_table_is_tested():
    tested = {*PASSES, *MERGES, "Concatenate", *COMPACTS, "Embedding", "LSTM", "GRU", "SimpleRNN", *STOPS, *OTHER_STOPS}
    assert set(TABLE) == tested
    assert all(TABLE[name].kind == "stops" for name in {*STOPS, *OTHER_STOPS})
    assert all(TABLE[name].kind == "passes through" for name in {*PASSES, *MERGES, "Concatenate"})
    assert all(hasattr(L, name) for name in TABLE)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_on_tensors(name):
    module = keras.ops
    snake = {
        "Relu6": "relu6",
        "LeakyRelu": "leaky_relu",
        "HardSigmoid": "hard_sigmoid",
        "HardSilu": "hard_silu",
        "Absolute": "abs",
    }
    operation = getattr(module, snake.get(name, name.lower()))
    x = keras.Input((4,))
    a, b = L.Dense(6, name="a"), L.Dense(6, name="b")
    merges = name in ("Add", "Subtract", "Maximum", "Minimum", "Multiply")
    y = operation(a(x), b(x)) if merges else operation(a(x))
    model = randomized(keras.Model(x, L.Dense(3)(y)))
    kill_incoming(a, [1, 4])
    if merges:
        kill_incoming(b, [1, 4])
    small, record = compact(model, round_to=1)
    assert kept(record, "a") == [0, 2, 3, 5]
    assert same(model, small) <= CLOSE


def test_an_operation_with_a_constant_array_stops():
    x = keras.Input((4,))
    a = L.Dense(6, name="a")
    model = randomized(keras.Model(x, L.Dense(3)(a(x) * np.arange(6, dtype="float32"))))
    kill_incoming(a, [1])
    _, record = compact(model, round_to=1)
    assert [stop.reason for stop in record.stops] == ["it is called with more than tensors"]
    assert kept(record, "a") == [0, 1, 2, 3, 4, 5]


def test_the_page_shows_the_table():
    page = (Path(__file__).parents[2] / "docs" / "compaction.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    shown = {name.strip(" `"): kind.strip() for names, kind in rows for name in names.split(",")}
    assert shown == {name: rule.kind for name, rule in TABLE.items()}
