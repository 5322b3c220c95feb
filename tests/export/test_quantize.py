"""float16, dynamic and full int8: zeros stay zeros, sparse where it is allowed, refused with a reason where not."""

import functools
import os

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_sensprune.errors import ArgumentError, ExportError
from keras_sensprune.export import packing, tflite
from keras_sensprune.records import from_json, to_json
from tests.export.test_flatbuffer import mlp, pruned, read
from tests.export.test_packing import block_pruned

layers = keras.layers
export_tflite = functools.partial(tflite.export_tflite, runtimes=("litert",))  # starting tf.lite takes seconds


def image_network():
    stack = [layers.Conv2D(32, 3, activation="relu"), layers.DepthwiseConv2D(3), layers.Conv2D(40, 1)]
    stack += [layers.BatchNormalization(), layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return pruned(keras.Sequential([keras.Input((10, 10, 3)), *stack]), 0.9)


NETWORKS = {
    "dense": lambda: pruned(mlp(64, 72, 32, 10), 0.9),
    "blocks": lambda: block_pruned(mlp(64, 48, 32), 16),
    "image": image_network,
    "recurrent": lambda: pruned(keras.Sequential([keras.Input((6, 16)), layers.LSTM(48), layers.Dense(10)]), 0.9),
}


@pytest.fixture(scope="module")
def networks():
    return {name: make() for name, make in NETWORKS.items()}


def images(model, count=48):
    return np.random.default_rng(3).normal(size=(count, *model.input_shape[1:])).astype("float32")


def zeros_of(model):
    """Shape (outputs first, as in the file) -> zeros of each kernel of a Dense or recurrent layer."""
    kernels = [v.numpy() for v in model.trainable_variables if len(v.shape) == 2]
    return {kernel.shape[::-1]: int(np.sum(kernel == 0)) for kernel in kernels}


# network and format -> encodings that are in the file
ENCODINGS = {
    ("dense", "float16"): {("float16", "dense")},
    ("dense", "dynamic"): {("int8", "1x16"), ("int8", "dense"), ("float32", "csr")},
    ("dense", "int8"): {("int8", "1x16"), ("int8", "dense")},
    ("blocks", "dynamic"): {("int8", "1x16")},
    ("blocks", "int8"): {("int8", "1x16")},
    ("image", "float16"): {("float16", "dense")},
    ("image", "dynamic"): {("float32", "csr + densify"), ("int8", "dense"), ("float32", "csr")},
    ("image", "int8"): {("int8", "csr + densify"), ("int8", "dense")},
    ("recurrent", "float16"): {("float16", "dense")},
    ("recurrent", "dynamic"): {("int8", "1x16"), ("int8", "dense"), ("float32", "csr")},
}


@pytest.mark.parametrize(("name", "quantize"), ENCODINGS)
def test_zeros_stay_zeros_and_encodings_are_allowed_ones(networks, tmp_path, name, quantize):
    model = networks[name]
    x = images(model)
    options = {"representative_data": x} if quantize == "int8" else {}
    record = export_tflite(model, tmp_path / "m.tflite", quantize=quantize, data=x, **options)
    assert record.quantize == quantize
    assert {(t.dtype, t.encoding) for t in record.tensors} <= ENCODINGS[name, quantize]
    assert any(t.dtype == ("float16" if quantize == "float16" else "int8") for t in record.tensors)
    for tensor in record.tensors:
        if len(tensor.shape) == 2:  # rounding may add zeros, never take one away
            assert tensor.zeros >= zeros_of(model)[tensor.shape]
            assert tensor.zeros <= zeros_of(model)[tensor.shape] + 0.02 * np.prod(tensor.shape)
    assert record.bytes < record.dense_bytes or record.encoding == "dense"
    assert record.max_difference < 0.2 * record.largest_output
    assert from_json(to_json(record)) == record


def test_int8_weights_have_no_offset(networks, tmp_path):
    x = images(networks["image"])
    export_tflite(networks["image"], tmp_path / "m.tflite", quantize="int8", representative_data=x, data=x)
    model = read((tmp_path / "m.tflite").read_bytes())
    weights = [
        tensor
        for tensor in model.subgraphs[0].tensors
        if tensor.type == schema.TensorType.INT8 and model.buffers[tensor.buffer].data is not None
    ]
    assert len(weights) >= 4
    assert all(np.all(np.asarray(tensor.quantization.zeroPoint) == 0) for tensor in weights)
    assert max(len(tensor.quantization.scale) for tensor in weights) == 40  # one scale per channel
    inputs = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    assert inputs.type == schema.TensorType.FLOAT32


def test_int8_of_a_recurrent_network_ends_the_converter_but_not_us(networks, tmp_path):
    model = networks["recurrent"]
    with pytest.raises(ExportError) as caught:
        export_tflite(model, tmp_path / "m.tflite", quantize="int8", representative_data=images(model))
    assert "The converter itself crashes on int8 for this model (SIG" in str(caught.value)
    assert str(caught.value).endswith("Use quantize='dynamic' or 'float16' instead.")
    assert os.listdir(tmp_path) == []


def test_labels_give_the_errors_of_model_and_file(networks, tmp_path):
    model = networks["dense"]
    x = images(model)
    labels = np.argmax(model(x), axis=-1)
    labels[:12] = (labels[:12] + 1) % 10  # a quarter is wrong
    record = export_tflite(model, tmp_path / "m.tflite", data=x, labels=labels)
    assert (record.keras_error, record.error) == (25.0, 25.0)


def test_clusters_leave_few_values_and_all_zeros(networks, tmp_path):
    model = networks["dense"]
    plain = export_tflite(model, tmp_path / "plain.tflite", sparse=False)
    few = export_tflite(model, tmp_path / "few.tflite", clusters=16, sparse=False)
    assert few.gzip_bytes < 0.75 * plain.gzip_bytes
    assert [t.zeros for t in few.tensors] == [t.zeros for t in plain.tensors]
    file = read((tmp_path / "few.tflite").read_bytes())
    for tensor in file.subgraphs[0].tensors:
        data = file.buffers[tensor.buffer].data
        if data is not None and tensor.shape is not None and len(tensor.shape) == 2 and tensor.type == 0:
            assert len(np.unique(np.asarray(data).view("<f4"))) <= 17
    assert few.information_bytes < 0.5 * plain.information_bytes


def test_the_smallest_gzipped_file_may_be_another_one(networks, tmp_path):
    raw = export_tflite(networks["blocks"], tmp_path / "raw.tflite", measure="raw")
    packed = export_tflite(networks["blocks"], tmp_path / "packed.tflite", measure="gzip")
    assert raw.bytes <= packed.bytes
    assert packed.gzip_bytes <= raw.gzip_bytes
    for record in (raw, packed):
        (chosen,) = (c for c in record.candidates if c.chosen)
        assert (chosen.bytes, chosen.gzip_bytes) == (record.bytes, record.gzip_bytes)
    assert raw.bytes == min(c.bytes for c in raw.candidates)
    assert packed.gzip_bytes == min(c.gzip_bytes for c in packed.candidates)


def test_by_latency_something_is_written_and_agrees(networks, tmp_path):
    record = export_tflite(networks["blocks"], tmp_path / "m.tflite", target="latency")
    assert record.max_difference <= record.tolerance
    assert {t.encoding for t in record.tensors} <= {"dense", "csr", "1x4"}


@pytest.mark.parametrize(
    ("name", "options", "encoding"),
    [("dense", {"sparse": "csr"}, "csr"), ("image", {"sparse": "csr + densify"}, "csr + densify")],
)
def test_one_encoding_can_be_asked_for(networks, tmp_path, name, options, encoding):
    record = export_tflite(networks[name], tmp_path / "m.tflite", **options)
    assert {t.encoding for t in record.tensors} <= {encoding, "dense"}
    assert record.sparse_tensors > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "dynamic", "sparse": "csr"}, r"cannot be stored as 'csr': the default delegate reads the short"),
        ({"quantize": "float16", "sparse": "1x4"}, r"cannot be stored as '1x4': DEQUANTIZE reads the short buffer"),
        ({"sparse": "1x16"}, r"cannot be stored as '1x16': no kernel takes it\. Use instead: 1x4 blocks\."),
        ({"sparse": "csr + densify"}, r"No convolution of the model has zeros that could be stored as"),
    ],
)
def test_forbidden_pairs_are_refused(networks, tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        export_tflite(networks["dense"], tmp_path / "m.tflite", **options)
    assert os.listdir(tmp_path) == []


BAD = [
    ({"quantize": "int4"}, "Argument `quantize` must be one of 'float16', 'dynamic', 'int8'. Received: 'int4'."),
    (
        {"sparse": True},
        "Argument `sparse` must be one of 'auto', 'csr', 'csr + densify', '1x4', '1x16'. Received: True.",
    ),
    ({"target": "speed"}, "Argument `target` must be one of 'size', 'latency'. Received: 'speed'."),
    ({"measure": "zip"}, "Argument `measure` must be one of 'raw', 'gzip'. Received: 'zip'."),
    ({"clusters": 1}, "Argument `clusters` must be an integer from 2 to 256, or None. Received: 1."),
    ({"runtimes": ("onnx",)}, "must be a tuple of one or more of 'litert', 'tflite'"),
    ({"clusters": 8, "quantize": "dynamic"}, "Weights of other formats have few values anyway."),
    ({"representative_data": np.ones((4, 64))}, "Argument `representative_data` must be None unless quantize='int8'."),
    ({"quantize": "int8"}, "Argument `representative_data` must be given for quantize='int8'."),
    ({"quantize": "int8", "representative_data": np.ones((4, 63))}, "`representative_data` must be example inputs of"),
    ({"quantize": "int8", "representative_data": np.full((4, 64), np.nan)}, "`representative_data` must be finite"),
    (
        {"quantize": "int8", "representative_data": np.ones((0, 64))},
        "`representative_data` must be one or more examples",
    ),
    ({"labels": np.zeros(16, int)}, "Argument `labels` must be 16 class numbers, one per example of `data`, or None."),
    ({"labels": np.zeros(3, int), "data": np.ones((4, 64))}, "must be 4 class numbers, one per example of `data`"),
]


@pytest.mark.parametrize(
    ("options", "message"), BAD, ids=[" ".join(map(str, o)) + str(i) for i, (o, _) in enumerate(BAD)]
)
def test_bad_arguments_are_refused_before_anything_is_written(networks, tmp_path, options, message):
    (tmp_path / "m.tflite").write_text("precious")
    with pytest.raises(ArgumentError) as caught:
        export_tflite(networks["dense"], tmp_path / "m.tflite", overwrite=True, **options)
    assert message in str(caught.value)
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("m.tflite", "precious")]


def test_a_broken_version_is_replaced_by_the_dense_file(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SPARSE_VERSION", 1)
    with pytest.warns(UserWarning, match="The sparse file was not used, the dense one is written instead"):
        record = export_tflite(networks["dense"], tmp_path / "m.tflite")
    assert (record.encoding, record.sparse_tensors) == ("dense", 0)
    assert record.candidates[0].chosen
    assert record.candidates[1].reason.startswith("does not agree: ")


def test_all_four_runs(networks, tmp_path):
    record = tflite.export_tflite(networks["blocks"], tmp_path / "m.tflite", quantize="dynamic")
    runs = [
        f"{runtime}, {delegate}"
        for runtime in ("LiteRT", "tf.lite")
        for delegate in ("default delegate", "no delegate")
    ]
    assert list(record.runs) == runs
