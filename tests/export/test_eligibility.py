"""`check_sparse_inference` on small networks: what qualifies, and that what does not is named with the layer.

The expected verdicts are those seen with a patched copy of the runtime on x86: each network here has its like there.
"""

import re
import struct

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as litert
from keras import layers

from keras_sensprune import check_sparse_inference
from keras_sensprune.errors import ArgumentError, DataError
from keras_sensprune.export import convert, flatbuffer, packing, sites
from keras_sensprune.records import from_json, to_json


def network(*, padding="explicit", channels=3, strides=2, middle=None, end="mean", depthwise="explicit"):
    """Stem, depthwise blocks, a residual, a squeeze-and-excite gate, and an end."""
    inputs = keras.Input((32, 32, channels), name="image")
    x = layers.ZeroPadding2D(1, name="stem_pad")(inputs) if padding == "explicit" else inputs
    stem = "valid" if padding == "explicit" else "same"
    x = layers.Conv2D(8, 3, strides=strides, padding=stem, name="stem")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(max_value=6, name="relu6")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="dw1")(x)
    y = layers.Conv2D(16, 1, activation="relu", name="pw1")(x)
    if middle is not None:
        y = middle(y)
    y = layers.Add(name="add")([y, layers.Conv2D(y.shape[-1], 1, name="pw2")(y)])
    if depthwise == "explicit":
        y = layers.ZeroPadding2D(1, name="dw_pad")(y)
        y = layers.DepthwiseConv2D(3, strides=2, padding="valid", name="dw2")(y)
    else:
        y = layers.DepthwiseConv2D(3, strides=2, padding="same", name="dw2")(y)
    if end == "mean":
        gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(y)
        y = layers.Multiply(name="gate")([y, layers.Conv2D(y.shape[-1], 1, activation="sigmoid", name="excite")(gate)])
    y = layers.Conv2D(24, 1, activation="hard_swish", name="pw3")(y)
    y = {"mean": layers.GlobalAveragePooling2D, "flatten": layers.Flatten, "max": layers.GlobalMaxPooling2D}[end](
        name="end"
    )(y)
    return keras.Model(inputs, layers.Dense(4, name="head")(y))


def exported(model, sparsity=0.9, *, sparse=True):
    """The file, with that share of zeros in each 1x1 convolution, stored as CSR behind DENSIFY."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1):
            value = layer.kernel.numpy()
            value.flat[generator.permutation(value.size)[: round(sparsity * value.size)]] = 0
            layer.kernel.assign(value)
    data = flatbuffer.positive_zeros(convert.convert_dense(model, convert.model_inputs(model, None)))
    found = sites.sparse_sites(litert.ModelT.InitFromPackedBuf(data))
    pointwise = [site.buffer for site in found if site.structure == "convolution" and site.shape[1:3] == (1, 1)]
    return packing.encode(data, dict.fromkeys(pointwise, "csr + densify")) if sparse else data


@pytest.fixture(scope="module")
def eligible():
    return exported(network())


def test_a_network_built_by_the_rules_is_eligible(eligible):
    record = check_sparse_inference(eligible)
    assert record.eligible
    assert record.obstacles == ()
    kinds = [name.split()[0] for name in record.cluster]
    assert kinds[0] == "CONV_2D"
    assert kinds[-1] == "MEAN"
    assert [kinds.count(kind) for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MUL", "MEAN")] == [5, 2, 1, 1, 2]
    assert "FULLY_CONNECTED" not in kinds
    # 8 x 16, 16 x 16 twice (one is the gate), 16 x 24; nine tenths of each, rounded
    assert record.weights == 128 + 256 + 256 + 384
    assert record.zeros == round(115.2) + 2 * round(230.4) + round(345.6)
    assert "not measured on ARM" in record.note
    assert from_json(to_json(record)) == record


@pytest.mark.parametrize(
    ("options", "kind", "layer", "reason"),
    [
        ({"padding": "same"}, "CONV_2D", "stem", "padding SAME"),
        ({"channels": 1}, "CONV_2D", "stem", "1 input channels"),
        ({"strides": 1}, "CONV_2D", "stem", r"stride \(1, 1\)"),
        ({"depthwise": "same"}, "DEPTHWISE_CONV_2D", "dw2", "SAME with a stride"),
        ({"end": "max"}, "file", "", "no mean over height and width"),
        ({"end": "flatten"}, "file", "", "no mean over height and width"),
        (
            {"middle": lambda y: layers.Conv2D(16, 3, padding="same", name="middle")(y)},
            "CONV_2D",
            "middle",
            "must be the first one",
        ),
        (
            {"middle": lambda y: layers.Concatenate(name="concat")([y, y])},
            "CONCATENATION",
            "concat",
            "no form for channels-first",
        ),
        (
            {"middle": lambda y: layers.MaxPooling2D(2, 1, "same", name="pool")(y)},
            "MAX_POOL_2D",
            "pool",
            "no form for channels-first",
        ),
        (
            {"middle": lambda y: layers.Conv2D(16, 1, strides=2, name="strided")(y)},
            "CONV_2D",
            "strided",
            "must have stride 1",
        ),
        (
            {"middle": lambda y: layers.DepthwiseConv2D(7, padding="same", name="wide")(y)},
            "DEPTHWISE_CONV_2D",
            "wide",
            "3x3 or 5x5",
        ),
        (
            {"middle": lambda y: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="double")(y)},
            "DEPTHWISE_CONV_2D",
            "double",
            "depth multiplier",
        ),
    ],
)
def test_what_is_in_the_way_is_named(options, kind, layer, reason):
    record = check_sparse_inference(exported(network(**options)))
    assert not record.eligible
    assert record.cluster == ()
    found = [item for item in record.obstacles if item.kind == kind and layer in item.name]
    assert len(found) == 1, record.obstacles
    assert re.search(reason, found[0].reason)
    assert found[0].change


def test_a_five_by_five_depthwise_and_pointwise_activations_are_fine():
    def middle(y):
        return layers.Activation("gelu", name="gelu")(layers.DepthwiseConv2D(5, padding="same", name="dw5")(y))

    assert check_sparse_inference(exported(network(middle=middle))).eligible


def test_a_result_inside_that_is_also_an_output_is_in_the_way():
    model = network()
    two = keras.Model(model.input, [model.output, model.get_layer("add").output])
    record = check_sparse_inference(exported(two))
    assert not record.eligible
    assert any("also an output" in item.reason and item.kind == "ADD" for item in record.obstacles)


@pytest.mark.parametrize(("sparsity", "fits"), [(0.6, False), (0.7, True)])
def test_more_than_two_thirds_must_be_zero(sparsity, fits):
    record = check_sparse_inference(exported(network(), sparsity))
    assert record.eligible == fits
    assert any("more than two thirds" in item.reason for item in record.obstacles) != fits


def test_zeros_that_are_stored_dense_are_not_used():
    record = check_sparse_inference(exported(network(), sparse=False))
    assert not record.eligible
    (obstacle,) = record.obstacles
    assert "no weight is stored sparse" in obstacle.reason


def test_int8_is_in_the_way(eligible):
    model = litert.ModelT.InitFromPackedBuf(eligible)
    graph = model.subgraphs[0]
    position = next(i for i, t in enumerate(graph.tensors) if b"add" in t.name)
    graph.tensors[position].type = litert.TensorType.INT8
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    record = check_sparse_inference(bytes(builder.Output()))
    assert not record.eligible
    assert any("only float32 and float16" in item.reason for item in record.obstacles)


def test_a_file_is_read_from_disk_and_other_things_are_refused(eligible, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(eligible)
    assert check_sparse_inference(path).path == str(path)
    with pytest.raises(ArgumentError, match="path"):
        check_sparse_inference(None)
    path.write_bytes(eligible[:-100])
    with pytest.raises(DataError, match=r"model\.tflite"):
        check_sparse_inference(path)


def test_damaged_files_are_read_or_refused(eligible):
    """Words of the file overwritten at random: a record or a DataError, nothing else."""
    generator, outcomes = np.random.default_rng(1), []
    for _ in range(150):
        changed = bytearray(eligible)
        for place in generator.integers(len(eligible) - 4, size=3):
            changed[place : place + 4] = struct.pack("<I", int(generator.integers(0, 40)))
        try:
            outcomes.append(type(check_sparse_inference(bytes(changed))).__name__)
        except DataError:
            outcomes.append("DataError")
    assert set(outcomes) == {"SparseInferenceRecord", "DataError"}
