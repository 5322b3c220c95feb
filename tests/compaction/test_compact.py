"""`compact` on whole models: an oracle, residual blocks, borders, sharing, fixed points, and what it refuses."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_sensprune import compact
from keras_sensprune.compaction import model as compaction
from keras_sensprune.compaction import producers
from keras_sensprune.errors import ArgumentError, ModelError
from keras_sensprune.records import from_json, to_json
from tests.compaction.networks import kept, kill_incoming, kill_outgoing, randomized, same

L = keras.layers
# Sums of up to some 200 float32 products of order 1: 200 * 6e-8, with a factor of 5 for what layers amplify.
CLOSE = 6e-5


def test_a_fold_is_what_numpy_says():
    hidden, logits = L.Dense(4, "tanh", name="hidden"), L.Dense(2, name="logits")
    model = randomized(keras.Sequential([keras.Input((3,)), hidden, logits]))
    kill_incoming(hidden, [1, 3])
    (w1, b1), (w2, b2) = hidden.get_weights(), logits.get_weights()
    small, record = compact(model, round_to=1)
    first, second = (layer.get_weights() for layer in small.layers)
    np.testing.assert_array_equal(first[0], w1[:, [0, 2]])
    np.testing.assert_array_equal(first[1], b1[[0, 2]])
    np.testing.assert_array_equal(second[0], w2[[0, 2]])
    # the oracle adds two float32 numbers of order 1 in float64: one rounding of 6e-8 each
    np.testing.assert_allclose(second[1], b2 + np.tanh(b1[[1, 3]]) @ w2[[1, 3]], rtol=0, atol=3e-7)
    assert (kept(record, "hidden"), record.layers[0].folded, record.removed_units) == ([0, 2], 2, 2)
    assert (record.parameters_before, record.parameters_after) == (26, 14)
    assert (record.multiply_adds_before, record.multiply_adds_after) == (20, 10)
    assert from_json(to_json(record)) == record


def test_nothing_to_remove_gives_an_equal_copy():
    model = randomized(keras.Sequential([keras.Input((3,)), L.Dense(4, "relu"), L.Dense(2)], name="full"))
    small, record = compact(model)
    assert small is not model
    assert small.name == "full"
    assert isinstance(small, keras.Sequential)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert all(np.array_equal(a, b) for a, b in zip(small.get_weights(), model.get_weights(), strict=True))
    assert (record.removed_units, record.rounds, record.max_difference) == (0, 1, 0.0)


@pytest.mark.parametrize(
    ("padding", "activation", "left"), [("same", "relu", 6), ("same", "tanh", 8), ("valid", "tanh", 6)]
)
def test_a_constant_is_folded_behind_padding_only_if_it_is_zero(padding, activation, left):
    first = L.Conv2D(8, 3, activation=activation, name="first")
    second = L.Conv2D(4, 3, padding=padding, use_bias=False, name="second")
    model = randomized(keras.Sequential([keras.Input((9, 9, 3)), first, second]))
    kill_incoming(first, [2, 5])
    values = first.get_weights()
    values[1][[2, 5]] = -0.5  # relu: 0; tanh: -0.46
    first.set_weights(values)
    small, record = compact(model, round_to=1)
    assert record.layers[0].units_after == left
    assert small.get_layer("second").use_bias == (padding == "valid")
    assert same(model, small) <= CLOSE


def test_a_constant_behind_zero_padding_stays():
    first = L.Conv2D(8, 3, name="first")
    stack = [first, L.ZeroPadding2D(1), L.Conv2D(4, 3, name="second")]
    model = randomized(keras.Sequential([keras.Input((9, 9, 3)), *stack]))
    kill_incoming(first, [2, 5])
    small, record = compact(model, round_to=1)
    assert record.removed_units == 0
    assert same(model, small) <= CLOSE


def test_a_residual_stream_loses_a_channel_only_if_every_branch_does():
    x = keras.Input((8, 8, 3))
    stem, one, two = (L.Conv2D(6, 3, padding="same", use_bias=False, name=name) for name in ("stem", "one", "two"))
    y = L.ReLU()(L.BatchNormalization(name="norm")(stem(x)))
    y = L.Add()([y, L.BatchNormalization(name="norm1")(one(y))])
    y = y + two(L.ReLU()(y))
    model = randomized(keras.Model(x, L.Dense(3)(L.GlobalAveragePooling2D()(y))))
    for layer, dead in ((stem, [0, 1]), (one, [0, 1, 2]), (two, [0, 2])):
        kill_incoming(layer, dead)
    for name in ("norm", "norm1"):  # behind a dead filter, normalization gives its shift: set it to 0
        norm = model.get_layer(name)
        gamma, beta, mean, variance = norm.get_weights()
        beta[:3], mean[:3] = 0, 0
        norm.set_weights([gamma, beta, mean, variance])
    small, record = compact(model, round_to=1)
    assert kept(record, "stem") == kept(record, "one") == kept(record, "two") == [1, 2, 3, 4, 5]
    assert same(model, small) <= CLOSE


def test_a_shared_layer_keeps_what_one_of_its_calls_needs():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    first, second, shared = (
        L.Dense(5, "tanh", name="first"),
        L.Dense(5, "tanh", name="second"),
        L.Dense(3, name="shared"),
    )
    outputs = [L.Dense(2, name="a")(shared(first(left))), L.Dense(2, name="b")(shared(second(right)))]
    model = randomized(keras.Model([left, right], outputs))
    kill_incoming(first, [0, 1])
    kill_incoming(second, [0, 1])
    for layer, biases in ((first, [0.3, 0.5]), (second, [0.3, -0.5])):  # unit 1 differs between the calls
        values = layer.get_weights()
        values[1][[0, 1]] = biases
        layer.set_weights(values)
    small, record = compact(model, round_to=1)
    assert kept(record, "first") == kept(record, "second") == [1, 2, 3, 4]
    assert same(model, small) <= CLOSE


def test_a_chain_of_dead_layers_is_followed_to_its_end():
    layers = [L.Dense(6, "relu", name=f"d{i}") for i in range(4)]
    model = randomized(keras.Sequential([keras.Input((3,)), *layers, L.Dense(2, name="logits")]))
    kill_outgoing(layers[3], [0])  # d2's unit 0 is not read
    values = layers[2].get_weights()
    values[0][1, 1:] = 0  # d1's unit 1 is read by that unit alone
    layers[2].set_weights(values)
    values = layers[1].get_weights()
    values[0][2, [0, 2, 3, 4, 5]] = 0  # d0's unit 2 by that one alone
    layers[1].set_weights(values)
    small, record = compact(model, round_to=1)
    assert [kept(record, f"d{i}") for i in range(3)] == [[0, 1, 3, 4, 5], [0, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    assert record.rounds >= 3
    again, second = compact(small, round_to=1)
    assert (second.removed_units, again.count_params()) == (0, small.count_params())
    assert same(model, small) <= CLOSE


def test_an_all_dead_layer_keeps_one_unit():
    hidden = L.Dense(6, "relu", name="hidden")
    model = randomized(keras.Sequential([keras.Input((3,)), hidden, L.Dense(2)]))
    kill_incoming(hidden, range(6))
    small, record = compact(model, round_to=1)
    assert kept(record, "hidden") == [0]
    assert same(model, small) <= CLOSE


@pytest.mark.parametrize(("round_to", "left"), [(1, 20), (8, 24), (16, 32), (64, 40)])
def test_widths_are_rounded_up_by_dead_units(round_to, left):
    hidden = L.Dense(40, "relu", name="hidden")
    model = randomized(keras.Sequential([keras.Input((3,)), hidden, L.Dense(2)]))
    kill_incoming(hidden, range(1, 40, 2))
    small, record = compact(model, round_to=round_to)
    assert small.layers[0].units == left == len(kept(record, "hidden"))
    assert {0, 2, 4, 38} <= set(kept(record, "hidden"))
    assert same(model, small) <= CLOSE


def test_a_vgg_like_network():
    conv = [L.Conv2D(8, 3, padding="same", use_bias=False, name=f"c{i}") for i in range(3)]
    body = [x for c in conv for x in (c, L.BatchNormalization(center=False), L.ReLU(), L.MaxPooling2D())]
    fc = L.Dense(12, "relu", name="fc")
    stack = [*body, L.Flatten(), L.Dropout(0.5), fc, L.Dense(4, "softmax", name="out")]
    model = randomized(keras.Sequential([keras.Input((16, 16, 3)), *stack]))
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_mean.assign(np.zeros(8))
    for layer in conv:
        kill_incoming(layer, [1, 6])
    kill_incoming(fc, [0, 3, 7])
    small, record = compact(model, round_to=1)
    assert [kept(record, f"c{i}") for i in range(3)] == [[0, 2, 3, 4, 5, 7]] * 3
    assert small.get_layer("fc").get_weights()[0].shape == (2 * 2 * 6, 9)
    assert record.stops == ()
    assert same(model, small) <= CLOSE


def test_a_model_inside_a_model_is_compacted_inside():
    inner_layer = L.Dense(8, "relu", name="inner_hidden")
    inner = keras.Sequential([keras.Input((5,)), inner_layer, L.Dense(6, name="inner_out")], name="inner")
    head = L.Dense(7, "relu", name="head")
    model = randomized(
        keras.Sequential([keras.Input((4,)), L.Dense(5, name="stem"), inner, head, L.Dense(2, name="o")])
    )
    kill_incoming(inner_layer, [0, 7])
    kill_incoming(head, [3])
    small, record = compact(model, round_to=1)
    assert kept(record, "inner/inner_hidden") == [1, 2, 3, 4, 5, 6]
    assert kept(record, "head") == [0, 1, 2, 4, 5, 6]
    assert [(stop.path, stop.kind) for stop in record.stops] == [("inner", "Sequential")]
    assert record.multiply_adds_after < record.multiply_adds_before
    assert same(model, small) <= CLOSE


@keras.saving.register_keras_serializable("compaction_tests")
class Doubled(L.Dense):
    """Not what its parent is."""

    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


def test_a_subclass_of_a_known_layer_stops():
    hidden, custom = L.Dense(6, name="hidden"), Doubled(5, name="custom")
    model = randomized(keras.Sequential([keras.Input((4,)), hidden, custom, L.Dense(2, name="o")]))
    kill_incoming(hidden, [0])
    small, record = compact(model, round_to=1)
    assert [(s.path, s.kind, s.reason) for s in record.stops] == [
        ("custom", "Doubled", "it is not known to compaction")
    ]
    assert record.removed_units == 0
    assert same(model, small) <= CLOSE


def test_settings_of_layers_survive():
    hidden = L.Dense(6, "relu", kernel_regularizer="l2", kernel_constraint="non_neg", name="hidden", trainable=False)
    model = randomized(keras.Sequential([keras.Input((4,)), hidden, L.Dense(2, dtype="float64", name="o")]))
    kill_incoming(hidden, [0])
    layer = compact(model, round_to=1)[0].get_layer("hidden")
    assert isinstance(layer.kernel_regularizer, keras.regularizers.L2)
    assert isinstance(layer.kernel_constraint, keras.constraints.NonNeg)
    assert (layer.units, layer.trainable) == (5, False)


def test_the_given_model_is_as_before_also_after_an_error(monkeypatch):
    hidden = L.Dense(6, "relu", name="hidden")
    model = randomized(
        keras.Sequential([keras.Input((4,)), hidden, L.BatchNormalization(), L.Dropout(0.3), L.Dense(2)])
    )
    model.compile("adam", "mse")
    model.fit(np.ones((4, 4)), np.zeros((4, 2)), verbose=0)
    kill_incoming(hidden, [0])
    before = [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    small, _ = compact(model)
    assert [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)] == before

    def wrong(self, constants):
        return np.zeros(len(constants), bool)  # as if nothing were read

    monkeypatch.setattr(producers.Dense, "needs", wrong)
    with pytest.raises(
        ModelError, match=r"^The compacted model differs from .* in output 0 by .*nothing was changed\.$"
    ):
        compact(model, round_to=1)
    assert [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)] == before
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    small.compile("adam", "mse")
    assert np.isfinite(small.fit(np.ones((4, 4)), np.zeros((4, 2)), verbose=0).history["loss"][0])


def test_what_is_refused():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="subclassed")
            self.dense = L.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    model(np.ones((1, 3)))
    with pytest.raises(
        ModelError, match=r"^The model 'subclassed' is neither Sequential nor functional, so it has no graph"
    ):
        compact(model)
    with pytest.raises(ModelError, match="not built"):
        compact(keras.Sequential([L.Dense(2)]))
    good = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    for value in (0, -1, 1.5, True):
        with pytest.raises(ArgumentError, match="`round_to` must be an integer of at least 1"):
            compact(good, round_to=value)
    with pytest.raises(ArgumentError, match="`tolerance` must be a number of at least 0, or None"):
        compact(good, tolerance=-1)
    with pytest.raises(ArgumentError, match="`model` must be a"):
        compact("model")
    free = keras.Sequential([keras.Input((None, 3)), L.Conv1D(2, 3)])
    with pytest.raises(ArgumentError, match="`data` must be given, because an input has the shape"):
        compact(free)
    with pytest.raises(ArgumentError, match="`data` must be"):
        compact(good, data=np.ones((2, 4)))
    assert compact(free, data=np.ones((2, 7, 3), "float32"))[1].examples == 2


def test_multiply_adds_of_layers():
    stack = [L.Conv2D(4, 3, name="a"), L.DepthwiseConv2D(3, name="b"), L.Conv2DTranspose(5, 3, name="c")]
    model = keras.Sequential([keras.Input((10, 10, 2)), *stack])
    assert compaction.multiply_adds(model) == 8 * 8 * 9 * 2 * 4 + 6 * 6 * 9 * 4 + 6 * 6 * 9 * 4 * 5
    recurrent = keras.Sequential([keras.Input((7, 3)), L.LSTM(4, name="d")])
    assert compaction.multiply_adds(recurrent) == 7 * 16 * (3 + 4)


@given(st.integers(0, 2**31), st.lists(st.sampled_from(["dense", "relu", "norm", "tanh"]), min_size=2, max_size=5))
def test_random_chains_of_dense_layers(seed, kinds):
    generator = np.random.default_rng(seed)
    make = {"relu": lambda: L.ReLU(), "tanh": lambda: L.Activation("tanh"), "norm": lambda: L.BatchNormalization()}
    make["dense"] = lambda: L.Dense(int(generator.integers(1, 9)), use_bias=bool(generator.integers(2)))
    model = randomized(keras.Sequential([keras.Input((3,)), *(make[kind]() for kind in kinds), L.Dense(2)]), seed)
    for variable in model.weights:  # whole rows and columns die, biases and scales too
        value = variable.numpy()
        if "variance" not in variable.path:
            value[..., generator.random(value.shape[-1]) < 0.4] = 0
        variable.assign(value)
    small, record = compact(model, round_to=1)
    assert record.parameters_after <= record.parameters_before
    assert same(model, small) <= CLOSE


@pytest.mark.slow
def test_mobilenet():
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    for layer in model.layers:  # a third of the expanded channels dies
        if layer.name.endswith("_expand"):
            kill_incoming(layer, range(0, layer.filters, 3))
        elif isinstance(layer, L.BatchNormalization):
            layer.moving_mean.assign(np.random.default_rng(0).normal(size=layer.moving_mean.shape) * 0)
    small, record = compact(model, round_to=1)
    expanded = [row for row in record.layers if row.path.endswith("_expand")]
    assert len(expanded) == 16
    assert all(row.units_after == row.units_before - len(range(0, row.units_before, 3)) for row in expanded)
    assert record.multiply_adds_after < 0.8 * record.multiply_adds_before
    assert same(model, small, examples=2) <= CLOSE
