"""Training for int8 and clustering: no zero is lost, neither in the model nor in the file."""

import dataclasses

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_sensprune import cluster_preserving, export_quantized, export_tflite, quantize_aware, to_tf_keras
from keras_sensprune.errors import ArgumentError, ExportError, ModelError
from keras_sensprune.export.flatbuffer import weight_tensors
from keras_sensprune.tfmot import qat
from keras_sensprune.tfmot.exporting import _check_zeros

KERNELS = {"conv": (3, 3, 1, 4), "conv_bn": (1, 1, 4, 8), "dw": (3, 3, 8, 1), "fc": (128, 16), "head": (16, 3)}
LOSS = "sparse_categorical_crossentropy"


def pruned_model():
    """A network with every pattern: separate ReLU, separate Activation, BatchNormalization, depthwise; 75 % zeros."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, name="conv"),
            layers.ReLU(name="relu"),
            layers.Conv2D(8, 1, name="conv_bn"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu_bn"),
            layers.DepthwiseConv2D(3, name="dw"),
            layers.Flatten(name="flat"),
            layers.Dense(16, name="fc"),
            layers.Activation("relu", name="act"),
            layers.Dense(3, activation="softmax", name="head"),
        ],
        name="net",
    )
    generator = np.random.default_rng(3)
    for layer in model.layers:
        if layer.name in KERNELS:
            value = generator.normal(size=KERNELS[layer.name]) * 0.3
            layer.kernel.assign(value * (generator.permutation(value.size).reshape(value.shape) % 4 == 0))
    return model


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(4)
    return generator.normal(size=(64, 8, 8, 1)).astype("float32"), generator.integers(0, 3, 64)


@pytest.fixture(scope="module")
def model():
    return pruned_model()


@pytest.fixture(scope="module")
def quantized(model, data):
    return quantize_aware(model, data, loss=LOSS, epochs=2)


@pytest.fixture(scope="module")
def exported(quantized, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "net.tflite"
    return export_quantized(quantized, path, data=data[0], runtimes=("litert",)), path


def test_every_layer_keeps_its_zeros_and_is_trained(quantized, model):
    sizes = {row.layer: (row.weights, row.zeros_before) for row in quantized.layers}
    assert sizes == {name: (int(np.prod(s)), int(np.prod(s)) * 3 // 4) for name, s in KERNELS.items()}
    assert {row.layer: row.kept_by for row in quantized.layers} == dict.fromkeys(KERNELS, "TF-MOT") | {"dw": "mask"}
    for row in quantized.layers:
        variable, mask = quantized.kernels[row.layer]
        before = model.get_layer(row.layer).kernel.numpy()
        assert np.array_equal(mask, before != 0)
        assert not np.any(variable.numpy()[~mask])
        assert row.zeros_after >= row.zeros_before
        assert not np.array_equal(variable.numpy(), before)  # it did learn


def test_zeros_that_the_scheme_would_lose_are_set_back(quantized):
    restored = {row.layer: row.restored for row in quantized.layers}
    assert restored["dw"] > 0  # TF-MOT leaves depthwise layers out
    assert restored["fc"] == restored["head"] == restored["conv"] == restored["conv_bn"] == 0  # so none is in the hole


def test_the_model_that_was_given_is_not_changed(model, quantized):
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), pruned_model().get_weights(), strict=True))


def test_the_int8_file_read_back_has_the_zeros_and_agrees(exported, quantized):
    record, path = exported
    assert record.quantize == "int8"
    assert path.stat().st_size == record.bytes
    tensors = {int(np.prod(t.shape)): t for t in weight_tensors(path.read_bytes())}
    for row in quantized.layers:
        found = tensors[row.weights]
        assert found.dtype == "int8"
        assert row.zeros_before <= found.zeros < row.weights
    # softmax answers of order 0.3 with 8 bits: several steps of 1/256 after five layers, far from garbage (0.5)
    assert record.max_difference < 0.1
    assert record.examples == 64


def test_activations_are_int8_too(exported):
    # Dynamic quantization would store int8 weights as well, but compute in float.
    model = schema.ModelT.InitFromPackedBuf(exported[1].read_bytes())
    graph = model.subgraphs[0]
    made = [int(i) for operator in graph.operators for i in operator.outputs if int(i) not in set(graph.outputs)]
    kinds = {graph.tensors[i].type for i in made if model.buffers[graph.tensors[i].buffer].data is None}
    assert kinds == {schema.TensorType.INT8}


def test_a_file_that_lost_zeros_is_refused(exported, quantized):
    tensors = exported[0].tensors
    worse = tuple(dataclasses.replace(t, zeros=t.zeros // 2) for t in tensors)
    _check_zeros(quantized, tensors)
    with pytest.raises(ExportError, match="zeros in the weights of"):
        _check_zeros(quantized, worse)


def test_nothing_is_overwritten(quantized, tmp_path):
    path = tmp_path / "old.tflite"
    path.write_bytes(b"old")
    with pytest.raises(ArgumentError, match="overwrite=True"):
        export_quantized(quantized, path)
    with pytest.raises(ArgumentError, match="example inputs of the shapes"):
        export_quantized(quantized, tmp_path / "new.tflite", data=np.zeros((2, 3), "float32"))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["old.tflite"]


@pytest.mark.parametrize("clusters", [4, 16])
def test_clusters_are_few_and_zeros_stay(model, data, clusters):
    clustered = cluster_preserving(model, data, loss=LOSS, clusters=clusters)
    for name in KERNELS:
        before, after = (m.get_layer(name).kernel.numpy() for m in (model, clustered))
        assert not np.any(after[before == 0])
        if name != "dw":
            assert len(np.unique(after)) <= clusters
            assert np.count_nonzero(after)


def test_a_clustered_model_goes_to_int8_with_its_zeros(model, data, tmp_path):
    clustered = cluster_preserving(model, data, loss=LOSS, clusters=8, epochs=0)
    path = tmp_path / "net.tflite"
    export_tflite(clustered, path, quantize="int8", representative_data=data[0], data=data[0], runtimes=("litert",))
    tensors = {int(np.prod(t.shape)): t for t in weight_tensors(path.read_bytes())}
    for name, shape in KERNELS.items():
        size = int(np.prod(shape))
        assert tensors[size].dtype == "int8"
        assert tensors[size].zeros >= size * 3 // 4, name


def dense_with(layer):
    return keras.Sequential([keras.Input((6, 4)), layer, keras.layers.Dense(2, name="fc")], name="net")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (keras.layers.Conv1D(2, 3, name="bad"), "no int8 training"),
        (keras.layers.LSTM(2, name="bad"), "no int8 training"),
        (keras.layers.LayerNormalization(name="bad"), "no int8 training"),
        (keras.layers.BatchNormalization(name="bad"), "right after"),
        (keras.layers.Dense(2, activation="elu", name="bad"), "activation 'elu'"),
    ],
)
def test_layers_without_int8_training_are_named(layer, reason, data):
    x = np.zeros((4, 6, 4), "float32")
    with pytest.raises(ModelError, match=f"'bad'.*{reason}"):
        quantize_aware(dense_with(layer), (x, x[..., 0]), loss="mse")


def test_shared_layers_and_relu_that_cannot_be_fused_are_named():
    x = keras.Input((4,), name="x")
    shared = keras.layers.Dense(4, name="bad")
    y = np.zeros((4, 4), "float32")
    with pytest.raises(ModelError, match=r"'bad' .* more than once"):
        quantize_aware(keras.Model(x, shared(shared(x)), name="net"), (y, y), loss="mse")
    layers = [keras.Input((4,)), keras.layers.Dense(4, name="fc"), keras.layers.ReLU(max_value=6, name="bad")]
    with pytest.raises(ModelError, match=r"'bad' .* right after a layer with weights"):
        quantize_aware(keras.Sequential(layers, name="net"), (y, y), loss="mse")


def convolution(before):
    """conv -> (activation) -> BatchNormalization, or BatchNormalization beside another reader."""
    x, layers = keras.Input((6, 6, 2)), keras.layers
    if before == "read twice":
        y = layers.Conv2D(3, 3, name="conv")(x)
        y = layers.Add(name="sum")([layers.BatchNormalization(name="bad")(y), y])
    elif before == "an output":
        y = layers.Conv2D(3, 3, name="conv")(x)
        return keras.Model(x, [layers.BatchNormalization(name="bad")(y), y], name="net")
    elif before == "Dense":
        y = layers.BatchNormalization(name="bad")(layers.Dense(3, "relu", name="conv")(x))
    else:
        settings = {"kernel_size": 3} | ({"filters": 3} if before == "Conv2D" else {})
        y = layers.BatchNormalization(name="bad")(
            getattr(layers, before)(**settings, activation="tanh", name="conv")(x)
        )
    return keras.Model(x, layers.Dense(1, name="fc")(layers.Flatten(name="flat")(y)), name="net")


@pytest.mark.parametrize("before", ["Dense", "Conv2D", "DepthwiseConv2D", "read twice", "an output"])
def test_batch_normalization_that_tf_mot_cannot_fold_is_named(before):
    x = np.zeros((4, 6, 6, 2), "float32")
    y = [np.zeros((4, 4, 4, 3), "float32")] * 2 if before == "an output" else np.zeros((4, 1))
    with pytest.raises(ModelError, match=r"'bad' \(BatchNormalization\) is only supported right after .* nothing else"):
        quantize_aware(convolution(before), (x, y), loss="mse")


def test_what_tf_mot_refuses_in_its_own_words_is_a_model_error(monkeypatch):
    monkeypatch.setattr(qat, "check_layers", lambda model: None)
    x = np.zeros((4, 6, 6, 2), "float32")
    with pytest.raises(
        ModelError, match=r"^TF-MOT cannot train the model 'net' for int8: Layer bad.* is not supported"
    ):
        quantize_aware(convolution("Conv2D"), (x, np.zeros((4, 1))), loss="mse")


def test_a_relu_inside_a_nested_model_is_fused_and_trained():
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    layers = keras.layers
    stack = [layers.Conv2D(4, 3, name="conv"), layers.ReLU(name="relu"), layers.GlobalAveragePooling2D(name="pool")]
    base = keras.Sequential([keras.Input((8, 8, 3)), *stack], name="base")
    model = keras.Sequential([keras.Input((8, 8, 3)), base, layers.Dense(2, name="fc")], name="net")
    kernel = base.get_layer("conv").kernel
    kernel.assign(kernel.numpy() * (np.arange(108).reshape(kernel.shape) % 2))
    result = quantize_aware(model, (x, x[:, 0, 0, :2]), loss="mse")
    row = next(row for row in result.layers if row.layer == "conv")
    assert (row.zeros_before, row.restored, row.kept_by) == (54, 0, "TF-MOT")
    assert row.zeros_after >= 54


def test_relu6_behind_batch_normalization_is_trained():
    layers = keras.layers
    stack = [layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="bn"), layers.Activation("relu6")]
    model = keras.Sequential([keras.Input((6, 6, 2)), *stack, layers.Flatten(), layers.Dense(2, name="fc")], name="net")
    x = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype("float32")
    result = quantize_aware(model, (x, x[:, 0, 0]), loss="mse")
    assert [row.layer for row in result.layers] == ["conv", "fc"]


def test_before_a_concatenation_it_is_the_mask_that_keeps_the_zeros():
    x, layers = keras.Input((8,), name="x"), keras.layers
    branches = [layers.Dense(6, "relu", name="a")(x), layers.Dense(6, "tanh", name="b")(x)]
    model = keras.Model(x, layers.Dense(2, name="fc")(layers.Concatenate(name="cat")(branches)), name="net")
    for name in ("a", "b", "fc"):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel.numpy() * (np.arange(kernel.numpy().size).reshape(kernel.shape) % 5 > 1))
    data = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    result = quantize_aware(model, (data, data[:, :2]), loss="mse")
    assert {row.layer: row.kept_by for row in result.layers} == {"a": "mask", "b": "mask", "fc": "TF-MOT"}
    assert all(row.restored > 0 for row in result.layers if row.kept_by == "mask")
    assert all(row.zeros_after >= row.zeros_before > 0 for row in result.layers)


@pytest.mark.slow
def test_a_tf_keras_model_can_be_given(model, data):
    copy = to_tf_keras(model)
    before = copy.get_weights()
    result = quantize_aware(copy, data, loss=LOSS)
    assert [row.zeros_after >= row.zeros_before > 0 for row in result.layers] == [True] * 5
    assert all(np.array_equal(a, b) for a, b in zip(copy.get_weights(), before, strict=True))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"optimizer": keras.optimizers.SGD(0.1)}, "optimizer"),
        ({"loss": keras.losses.MeanSquaredError()}, "loss"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_arguments(model, data, change, name):
    with pytest.raises(ArgumentError, match=f"`{name}`"):
        quantize_aware(model, data, **({"loss": LOSS} | change))


def test_wrong_data(model, data):
    for wrong in (data[0], (data[0], data[1][:3]), (data[0] * np.nan, data[1])):
        with pytest.raises(ArgumentError, match="`data`"):
            quantize_aware(model, wrong, loss=LOSS)
    with pytest.raises(ArgumentError, match="`clusters`"):
        cluster_preserving(model, data, loss=LOSS, clusters=2)
