"""Keras 3 to tf_keras and back: every layer of the table, sharing, fusion, refusals by name."""

import keras
import numpy as np
import pytest

from keras_sensprune import compact, export_tflite, from_tf_keras, sparsity_report, to_tf_keras
from keras_sensprune.errors import ArgumentError, ModelError
from keras_sensprune.tfmot.importing import import_tf_keras, import_tfmot, quiet_warnings
from keras_sensprune.tfmot.layers import ACTIVATIONS, TABLE

IMAGE, SEQUENCE, VOLUME = (6, 6, 2), (6, 2), (4, 4, 4, 2)
MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
# Settings other than the defaults wherever a default could hide that a setting is lost.
SETTINGS = {
    "Dense": {"units": 3, "activation": "gelu"},
    "Conv1D": {"filters": 3, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
    "Conv2D": {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same", "groups": 2},
    "Conv3D": {"filters": 2, "kernel_size": 2},
    "Conv1DTranspose": {"filters": 3, "kernel_size": 3, "strides": 2},
    "Conv2DTranspose": {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
    "DepthwiseConv1D": {"kernel_size": 3, "depth_multiplier": 2},
    "DepthwiseConv2D": {"kernel_size": 3, "depth_multiplier": 2, "activation": "relu6"},
    "SeparableConv1D": {"filters": 3, "kernel_size": 3},
    "SeparableConv2D": {"filters": 3, "kernel_size": 3, "depth_multiplier": 2},
    "Embedding": {"input_dim": 5, "output_dim": 3},
    "LSTM": {"units": 3, "return_sequences": True, "go_backwards": True},
    "GRU": {"units": 3, "reset_after": False},
    "SimpleRNN": {"units": 3, "activation": "relu"},
    "BatchNormalization": {"epsilon": 0.1, "scale": False},
    "LayerNormalization": {"epsilon": 0.1},
    "Activation": {"activation": "mish"},
    "ReLU": {"max_value": 2.0, "negative_slope": 0.1, "threshold": 0.1},
    "LeakyReLU": {"negative_slope": 0.2},
    "ELU": {"alpha": 0.5},
    "PReLU": {"shared_axes": [1, 2]},
    "Reshape": {"target_shape": (-1, 2)},
    "Permute": {"dims": (2, 1, 3)},
    "RepeatVector": {"n": 3},
    "UpSampling2D": {"interpolation": "bilinear"},
    "Rescaling": {"scale": 0.5, "offset": 1.0},
    "Dropout": {"rate": 0.5},
    "SpatialDropout1D": {"rate": 0.5},
    "SpatialDropout2D": {"rate": 0.5},
    "GaussianNoise": {"stddev": 1.0},
    "GaussianDropout": {"rate": 0.5},
    **{name: {"pool_size": 2} for name in TABLE if name.startswith(("MaxPooling", "AveragePooling"))},
}


def shape_for(kind):
    if kind in ("RepeatVector", "Embedding"):
        return (4,)
    if "1D" in kind or kind in ("LSTM", "GRU", "SimpleRNN"):
        return SEQUENCE
    return VOLUME if "3D" in kind else IMAGE


def model_of(kind):
    settings = SETTINGS.get(kind, {})
    dtype = "int32" if kind == "Embedding" else "float32"
    first = keras.Input(shape_for(kind), dtype=dtype, name="in_1")
    layer = getattr(keras.layers, kind)(name="row", **settings)
    if kind not in MERGES:
        return keras.Model(first, layer(first), name="net")
    second = keras.Input(shape_for(kind), name="in_2")
    return keras.Model([first, second], layer([first, second]), name="net")


def randomize(model, seed=0):
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.dtype == "float32":  # positive: moving variances must be
            variable.assign(generator.uniform(0.1, 1.0, variable.shape))


@pytest.mark.parametrize("kind", TABLE)
def test_each_row_goes_there_and_back(kind):
    # Both functions compare outputs themselves; here once more, on other data than they use.
    model = model_of(kind)
    randomize(model)
    there = to_tf_keras(model)
    back = from_tf_keras(there)
    generator = np.random.default_rng(7)
    arrays = [generator.integers(0, 5, (3, *x.shape[1:])).astype(x.dtype) for x in model.inputs]
    expected = model(arrays if len(arrays) > 1 else arrays[0], training=False).numpy()
    answers = [net(arrays if len(arrays) > 1 else arrays[0], training=False).numpy() for net in (there, back)]
    for answer in answers:
        # float32 rounding in sums of fewer than 100 terms: 100 * 2**-24 = 6e-6 of the largest output
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max()))
    assert [type(layer).__module__.split(".")[0] for layer in there.layers] == ["tf_keras"] * len(there.layers)
    assert isinstance(back, keras.Model)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_is_the_same_function(name):
    model = keras.Sequential([keras.Input((50,)), keras.layers.Activation(name, name="row")], name="net")
    there = to_tf_keras(model)
    x = np.linspace(-8, 8, 50, dtype="float32")[None]
    # the two formulas differ by a few roundings: 1e-5 is 80 of them at 2**-23
    np.testing.assert_allclose(there(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-5)


REFUSED = {
    "hard_sigmoid": lambda: keras.layers.Dense(2, activation="hard_sigmoid", name="bad"),
    "hard_silu": lambda: keras.layers.Dense(2, activation="hard_silu", name="bad"),
    "recurrent hard_sigmoid": lambda: keras.layers.LSTM(2, recurrent_activation="hard_sigmoid", name="bad"),
    "own function": lambda: keras.layers.Dense(2, activation=lambda x: x * 2, name="bad"),
    "renorm": lambda: keras.layers.BatchNormalization(renorm=True, name="bad"),
    "RMSNormalization": lambda: keras.layers.RMSNormalization(name="bad"),
    "Bidirectional": lambda: keras.layers.Bidirectional(keras.layers.LSTM(2), name="bad"),
    "half precision": lambda: keras.layers.Dense(2, dtype="mixed_float16", name="bad"),
    "stateful": lambda: keras.layers.LSTM(2, stateful=True, name="bad"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_defined_differently_is_refused_by_name(case):
    model = keras.Sequential([keras.Input(batch_shape=(1, 4, 3)), REFUSED[case]()], name="net")
    with pytest.raises(ModelError, match="'bad'"):
        to_tf_keras(model)


def test_masks_operations_and_subclassed_models_are_refused():
    embedding = keras.layers.Embedding(5, 3, mask_zero=True, name="bad")
    with pytest.raises(ModelError, match="mask_zero"):
        to_tf_keras(keras.Sequential([keras.Input((4,), dtype="int32"), embedding], name="net"))
    x = keras.Input((4,), name="x")
    with pytest.raises(ModelError, match="operation GetItem"):
        to_tf_keras(keras.Model(x, x[:, :2], name="net"))

    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.fc = keras.layers.Dense(2, name="fc")

        def call(self, x):
            return self.fc(x)

    own = Own()
    own(np.zeros((1, 3), "float32"))
    with pytest.raises(ModelError, match="'own' is neither Sequential nor functional"):
        to_tf_keras(own)
    with pytest.raises(ArgumentError, match="tf_keras model"):
        from_tf_keras(own)


def test_sharing_is_kept_and_inner_models_are_opened():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="fc")], name="inner")
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    shared = keras.layers.Dense(3, name="fc")  # the same name as inside, on purpose
    model = keras.Model([a, b], keras.layers.Add(name="sum")([shared(inner(a)), shared(inner(b))]), name="net")
    before = [v.numpy().copy() for v in model.weights]
    copy = to_tf_keras(model)
    assert copy.count_params() == model.count_params() == 24
    assert len({layer.name for layer in copy.layers}) == len(copy.layers)
    assert sum(type(layer).__name__ == "Dense" for layer in copy.layers) == 2
    assert from_tf_keras(copy).count_params() == 24
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(model.weights, before, strict=True))


def test_only_an_activation_right_after_and_read_by_nobody_else_is_fused():
    x = keras.Input((6, 6, 1), name="x")
    conv = keras.layers.Conv2D(2, 3, name="conv")(x)
    fused = keras.layers.ReLU(name="fused")(conv)
    normal = keras.layers.BatchNormalization(name="bn")(keras.layers.Conv2D(2, 1, name="conv_bn")(fused))
    y = keras.layers.Activation("relu", name="after_bn")(normal)
    read_twice = keras.layers.Conv2D(2, 1, name="twice")(y)
    z = keras.layers.Add(name="sum")([read_twice, keras.layers.ReLU(name="kept")(read_twice)])
    copy = to_tf_keras(keras.Model(x, z, name="net"))
    names = [layer.name for layer in copy.layers]
    assert "fused" not in names
    assert {"after_bn", "kept"} <= set(names)
    activations = {name: copy.get_layer(name).activation.__name__ for name in ("conv", "conv_bn", "twice")}
    assert activations == {"conv": "relu", "conv_bn": "linear", "twice": "linear"}


def test_fusion_looks_into_models_but_not_across_shared_layers():
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="inside"), layers.ReLU(name="relu")], name="inner"
    )
    outermost = keras.Sequential([keras.Input((4,)), keras.Sequential([keras.Input((4,)), inner])], name="net")
    assert [x.name for x in to_tf_keras(outermost).layers][1:] == ["inside"]
    x = keras.Input((4,), name="x")
    twice = to_tf_keras(keras.Model(x, inner(inner(x)), name="twice"))
    assert twice.get_layer("inside").activation.__name__ == "linear"
    shared = layers.Dense(4, name="shared")
    part_input = keras.Input((4,), name="part_input")
    part = keras.Model(part_input, layers.ReLU(name="relu")(shared(part_input)), name="part")
    copy = to_tf_keras(keras.Model(x, part(shared(x)), name="net"))
    assert copy.get_layer("shared").activation.__name__ == "linear"


@pytest.mark.parametrize("strip", [False, True])
def test_a_model_pruned_by_tf_mot_is_reported_compacted_and_exported(strip, tmp_path):
    tf_keras, tfmot = import_tf_keras(), import_tfmot()
    with quiet_warnings():
        layers = tf_keras.layers
        dense = [layers.Dense(8, activation="relu", name="fc"), layers.Dense(2, name="head")]
        net = tf_keras.Sequential([tf_keras.Input((16,)), *dense], name="net")
        schedule = tfmot.sparsity.keras.ConstantSparsity(0.75, 0, frequency=1)
        pruned = tfmot.sparsity.keras.prune_low_magnitude(net, pruning_schedule=schedule)
        pruned.compile("sgd", "mse")
        x = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")
        pruned.fit(x, x[:, :2], verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
        source = tfmot.sparsity.keras.strip_pruning(pruned) if strip else pruned
    model = from_tf_keras(source)
    report = sparsity_report(model)
    assert [(row.path, row.weights, row.nonzero_weights) for row in report.layers] == [
        ("fc", 128, 32),  # 25 % of 128
        ("head", 16, 4),
    ]
    record = export_tflite(model, tmp_path / "net.tflite", data=x, runtimes=("litert",))
    assert sorted(tensor.zeros for tensor in record.tensors) == [12, 96]
    kernel = model.get_layer("fc").kernel
    kernel.assign(kernel.numpy() * (np.arange(8) > 0))  # unit 0 of 8 is dead
    small, _ = compact(model, round_to=1)
    assert small.count_params() < model.count_params()
    # the compacted model answers the same but for rounding in sums of 16 terms: 16 * 2**-24 = 1e-6
    np.testing.assert_allclose(small(x).numpy(), model(x).numpy(), rtol=1e-4, atol=1e-5)
