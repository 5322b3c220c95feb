"""float16, dynamic and full int8: zeros stay zeros, sparse where it is allowed, refused with a reason where not."""

import functools
import os

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_sensprune.errors import ArgumentError, ExportError
from keras_sensprune.export import choices, convert, packing, tflite
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
    ("dense", "float16"): {("float16", "csr + densify")},
    ("dense", "dynamic"): {("int8", "1x16"), ("int8", "dense"), ("float32", "csr")},
    ("dense", "int8"): {("int8", "1x16"), ("int8", "dense")},
    ("blocks", "dynamic"): {("int8", "1x16")},
    ("blocks", "int8"): {("int8", "1x16")},
    ("image", "float16"): {("float16", "csr + densify")},
    ("image", "dynamic"): {("float32", "csr + densify"), ("int8", "dense"), ("float32", "csr")},
    ("image", "int8"): {("int8", "csr + densify"), ("int8", "dense")},
    ("recurrent", "float16"): {("float16", "csr + densify")},
    ("recurrent", "dynamic"): {("int8", "1x16"), ("float32", "csr")},
}


@pytest.mark.parametrize(("name", "quantize"), ENCODINGS)
def test_zeros_stay_zeros_and_encodings_are_allowed_ones(networks, tmp_path, name, quantize):
    model = networks[name]
    x = images(model)
    options = {"representative_data": x} if quantize == "int8" else {}
    record = export_tflite(model, tmp_path / "m.tflite", quantize=quantize, data=x, **options)
    assert record.quantize == quantize
    assert {(t.dtype, t.encoding) for t in record.tensors} == ENCODINGS[name, quantize]
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


@pytest.mark.slow
def test_by_latency_what_is_faster_becomes_sparse(tmp_path):
    """512 x 512 with 97 % zeros: 3 to 10 times faster in a sparse kernel, also on a busy machine."""
    model = pruned(mlp(512, 512, 512, 16), 0.97)
    record = export_tflite(model, tmp_path / "m.tflite", target="latency")
    assert record.max_difference <= record.tolerance
    large = [t.encoding for t in record.tensors if t.shape == (512, 512)]
    assert len(large) == 2
    assert set(large) <= {"csr", "1x4"}


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


def misplaced(data, chosen):
    """Encoded, then the first entry of the last block of every sparse int8 weight is another one."""
    buffer = bytearray(encode(data, chosen))
    model = schema.Model.GetRootAs(buffer)
    graph = model.Subgraphs(0)
    for tensor in map(graph.Tensors, range(graph.TensorsLength())):
        if tensor.Sparsity() is not None and tensor.Type() == schema.TensorType.INT8:
            model.Buffers(tensor.Buffer()).DataAsNumpy()[-16:] = 60
    return bytes(buffer)


encode = packing.encode


@pytest.mark.parametrize("quantize", ["dynamic", "int8"])
def test_one_wrong_block_of_a_quantized_file_is_found(tmp_path, monkeypatch, quantize):
    """One unit of 4,000: in the root mean square it is hardly seen, in its own error it is."""
    model = block_pruned(mlp(128, 4000), 16, 0.5)
    x = images(model)
    options = {"representative_data": x} if quantize == "int8" else {}
    monkeypatch.setattr(packing, "encode", misplaced)
    with pytest.warns(UserWarning, match=r"differs from the dense file by [^r]*, more than the tolerance"):
        record = export_tflite(model, tmp_path / "m.tflite", quantize=quantize, data=x, **options)
    assert (record.encoding, record.sparse_tensors) == ("dense", 0)


def test_a_row_that_is_too_full_for_its_kernel_stays_dense(tmp_path):
    """4,096 inputs, of the last unit none is zero: the kernel counts its 256 blocks as none."""
    model = block_pruned(mlp(4096, 64), 16)
    kernel = model.layers[0].kernel
    value = kernel.numpy()
    full = np.random.default_rng(0).normal(size=4096) / 64
    value[:, -1] = full
    kernel.assign(value)
    record = export_tflite(model, tmp_path / "m.tflite", quantize="dynamic")
    assert {t.encoding for t in record.tensors} == {"dense"}
    value[:16, -1] = 0
    kernel.assign(value)
    record = export_tflite(model, tmp_path / "n.tflite", quantize="dynamic")
    assert {t.encoding for t in record.tensors} == {"1x16"}
    value[:, -1] = full
    kernel.assign(value)
    with pytest.raises(ExportError, match="one of its rows has 256 nonempty blocks, and the kernel counts to 255"):
        export_tflite(model, tmp_path / "o.tflite", quantize="dynamic", sparse="1x16")


def test_the_largest_difference_of_one_unit_among_thousands_is_judged(tmp_path, monkeypatch):
    """Without the rule for full rows the comparison with the dense twin finds the wrong unit."""
    model = block_pruned(mlp(4096, 1024), 16)
    kernel = model.layers[0].kernel
    value = kernel.numpy()
    value[:, -1] = np.where(np.arange(4096) % 2, 0.5, -0.5) / 64
    kernel.assign(value)
    monkeypatch.setattr(choices, "encodings_for", lambda *_: ("1x16",))
    with pytest.warns(UserWarning, match=r"differs from the dense file by [^r]*, more than the tolerance"):
        record = export_tflite(model, tmp_path / "m.tflite", quantize="dynamic")
    assert record.encoding == "dense"


def test_small_layers_that_stay_float32_are_passed_over(tmp_path):
    model = block_pruned(mlp(64, 48, 10), 16)
    record = export_tflite(model, tmp_path / "m.tflite", quantize="dynamic", sparse="1x16")
    assert sorted((t.shape, t.dtype, t.encoding) for t in record.tensors) == [
        ((10, 48), "float32", "dense"),
        ((48, 64), "int8", "1x16"),
    ]
    with pytest.raises(ExportError, match="No dense layer of the model in dynamic format has zeros"):
        export_tflite(block_pruned(mlp(16, 10), 16, 0.5), tmp_path / "n.tflite", quantize="dynamic", sparse="1x16")


def test_int8_is_compared_on_the_inputs_that_its_ranges_come_from(tmp_path):
    """Ranges of pixels in [0, 1] say nothing about the default normal examples; of 300, whole batches up to 256."""
    inputs = keras.Input(batch_shape=(3, 12, 12, 1))
    model = pruned(keras.Sequential([inputs, layers.Conv2D(8, 3), layers.Flatten()]), 0.5)
    x = np.random.default_rng(0).random((300, 12, 12, 1)).astype("f4")
    record = export_tflite(model, tmp_path / "m.tflite", quantize="int8", representative_data=x)
    assert record.examples == 255
    assert record.max_difference < 0.05 * record.largest_output  # 8 bits: some steps of 1/255


@pytest.mark.parametrize(("batch", "examples"), [(None, 256), (3, 255), (300, 300)])
def test_examples_to_compare_on_fill_the_batch_of_the_file(batch, examples):
    model = keras.Sequential([keras.Input((4,), batch_size=batch, name="x"), layers.Dense(2)])
    x = np.arange(1200.0).reshape(300, 4)
    inputs = convert.model_inputs(model, x)
    compared = tflite._compared(inputs, None, convert.example_arrays(inputs, x))
    np.testing.assert_array_equal(compared["x"], x[:examples])
    assert len(tflite._compared(inputs, x, None)["x"]) == 300


def test_float16_behind_densify_in_a_transposed_convolution_stays_dense(tmp_path):
    """Measured: with the default delegate its numbers are wrong. In float32 it is stored sparse."""
    stack = [layers.Conv2DTranspose(32, 3, strides=2), layers.Conv2D(3, 3)]
    model = pruned(keras.Sequential([keras.Input((8, 8, 16)), *stack]), 0.9)
    half = export_tflite(model, tmp_path / "half.tflite", quantize="float16")
    whole = export_tflite(model, tmp_path / "whole.tflite")
    assert [t.encoding for t in half.tensors] == ["dense", "csr + densify"]
    assert [t.encoding for t in whole.tensors] == ["csr + densify", "csr + densify"]
    assert whole.bytes < 0.4 * whole.dense_bytes


def test_few_clusters_of_a_deep_network_are_no_damage(tmp_path):
    """The loss is what was asked for: it is reported, and judged only by a tolerance that the user sets."""
    model = pruned(mlp(*[64] * 9, 10), 0.5)
    with pytest.warns(
        UserWarning, match=r"4 values per tensor move the outputs by .* more clusters lose less"
    ) as caught:
        record = export_tflite(model, tmp_path / "m.tflite", clusters=4)
    assert [os.path.basename(warning.filename) for warning in caught] == ["test_quantize.py"]
    assert record.clustering_difference > 0.2
    assert record.max_difference > 100 * record.tolerance  # which the file before the clusters met
    assert record.twin_difference < record.tolerance
    message = r"4 values per tensor move the outputs by .*\. Ask for more clusters, or pass a larger `tolerance`\."
    with pytest.raises(ExportError, match=message):
        export_tflite(model, tmp_path / "n.tflite", clusters=4, tolerance=1e-3)
    assert os.listdir(tmp_path) == ["m.tflite"]


def test_damage_is_still_found_when_there_are_clusters(tmp_path, monkeypatch):
    """The file before the clusters is compared with Keras, and the clustered one between its runs."""
    model = pruned(mlp(64, 48, 10), 0.5)
    real = convert.convert_dense
    monkeypatch.setattr(convert, "convert_dense", lambda *_: real(pruned(mlp(64, 48, 10), 0.5, seed=1), *_[1:]))
    with pytest.raises(ExportError, match="differs from the Keras model"):
        export_tflite(model, tmp_path / "m.tflite", clusters=8)
    monkeypatch.undo()
    monkeypatch.setattr(packing, "SPARSE_VERSION", 1)
    with pytest.warns(UserWarning, match="The sparse file was not used"):
        assert export_tflite(model, tmp_path / "n.tflite", clusters=32).encoding == "dense"


def test_all_four_runs(networks, tmp_path):
    record = tflite.export_tflite(networks["blocks"], tmp_path / "m.tflite", quantize="dynamic")
    runs = [
        f"{runtime}, {delegate}"
        for runtime in ("LiteRT", "tf.lite")
        for delegate in ("default delegate", "no delegate")
    ]
    assert list(record.runs) == runs
