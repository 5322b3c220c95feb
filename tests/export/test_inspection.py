"""What `inspect_tflite` says of files: counts against NumPy, encodings, and what is known not to run."""

import subprocess
import sys

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as litert
from ai_edge_litert.interpreter import Interpreter

from keras_sensprune import inspect_tflite
from keras_sensprune.errors import ArgumentError, DataError
from keras_sensprune.export import convert, flatbuffer, packing, sites
from keras_sensprune.export.graph import Dimension, Sparsity
from keras_sensprune.export.layout import encoding_name, stored_entries
from keras_sensprune.records import from_json, to_json

FC, CONV = (12, 64), (4, 3, 3, 2)


def packed(model):
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="module")
def dense():
    """Convolution (4, 3, 3, 2) and Dense (12, 64), about 80 % zeros, as the file has them."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(12, name="dense"),
        ]
    )
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(generator.normal(size=variable.shape) * (generator.random(variable.shape) < 0.2))
    return flatbuffer.positive_zeros(convert.convert_dense(model, convert.model_inputs(model, None)))


def encode(data, ways):
    """The file with weights encoded by their shape."""
    found = sites.sparse_sites(litert.ModelT.InitFromPackedBuf(data))
    return packing.encode(data, {site.buffer: ways[site.shape] for site in found if site.shape in ways})


def inspected(folder, data):
    path = folder / "file.tflite"
    path.write_bytes(data)
    return inspect_tflite(path)


def constant(record, shape):
    (found,) = [tensor for tensor in record.tensors if tensor.shape == shape]
    return found


def edited(data, edit):
    """The file after `edit(model, weight tensor of the dense layer, its operator)`."""
    model = litert.ModelT.InitFromPackedBuf(data)
    graph = model.subgraphs[0]
    (tensor,) = [t for t in graph.tensors if t.shape is not None and tuple(t.shape) == FC]
    position = graph.tensors.index(tensor)
    (operator,) = [op for op in graph.operators if op.inputs is not None and position in list(op.inputs)]
    edit(model, tensor, operator)
    return packed(model)


def test_zeros_bytes_and_uses_of_a_dense_file(dense, tmp_path):
    record = inspected(tmp_path, dense)
    model = litert.ModelT.InitFromPackedBuf(dense)
    for shape, operator in ((FC, "FULLY_CONNECTED"), (CONV, "CONV_2D")):
        (site,) = [site for site in sites.sparse_sites(model) if site.shape == shape]
        found, values = constant(record, shape), site.values(model)
        assert (found.entries, found.zeros) == (values.size, int(np.sum(values == 0)))
        assert (found.bytes, found.dtype, found.encoding, found.execution) == (
            values.nbytes,
            "float32",
            "dense",
            "dense",
        )
        assert [use.split()[0] for use in found.operators] == [operator]
    assert record.bytes == len(dense)
    assert record.supported
    assert record.warnings == ()
    assert record.signatures[0].startswith("serving_default(")
    assert record.signatures[0].endswith(": float32 [-1, 6, 6, 2]) -> (output_0: float32 [-1, 12])")
    names = [operator.name for operator in record.operators]
    assert {"CONV_2D", "FULLY_CONNECTED"} <= set(names)


@pytest.mark.parametrize(
    ("ways", "shape", "encoding", "execution"),
    [
        ({FC: "csr"}, FC, "csr", "native sparse kernel"),
        ({FC: "1x4"}, FC, "1x4", "native sparse kernel"),
        ({CONV: "csr + densify"}, CONV, "csr + densify", "densified at load"),
    ],
)
def test_our_encodings_keep_their_zeros_and_have_an_execution(dense, tmp_path, ways, shape, encoding, execution):
    before = constant(inspected(tmp_path, dense), shape)
    record = inspected(tmp_path, encode(dense, ways))
    after = next(t for t in record.tensors if t.shape == shape and t.encoding != "dense")
    assert (after.encoding, after.execution) == (encoding, execution)
    assert (after.entries, after.zeros) == (before.entries, before.zeros)
    assert record.supported


def test_the_bytes_are_those_that_the_writer_counts(dense, tmp_path):
    tensors = {tensor.name: tensor for tensor in flatbuffer.weight_tensors(encode(dense, {FC: "csr"}))}
    for name, found in (
        (t.name, t) for t in inspected(tmp_path, encode(dense, {FC: "csr"})).tensors if t.name in tensors
    ):
        assert (found.bytes, found.zeros, found.shape) == (
            tensors[name].bytes,
            tensors[name].zeros,
            tensors[name].shape,
        )
    assert len(tensors) == 2


def set_version(model, tensor, operator):
    old = model.operatorCodes[operator.opcodeIndex]
    old.version = 1


def to_convolution(model, tensor, operator):
    model.operatorCodes[operator.opcodeIndex].builtinCode = litert.BuiltinOperator.BATCH_MATMUL
    model.operatorCodes[operator.opcodeIndex].deprecatedBuiltinCode = litert.BuiltinOperator.BATCH_MATMUL


@pytest.mark.parametrize(
    ("way", "edit", "reason"),
    [("csr", set_version, "has version 1, not 8"), ("csr", to_convolution, "BATCH_MATMUL has no sparse kernel")],
)
def test_sparse_weights_without_a_kernel_are_named(dense, tmp_path, way, edit, reason):
    record = inspected(tmp_path, edited(encode(dense, {FC: way}), edit))
    found = constant(record, FC)
    assert found.execution.startswith("unsupported: ")
    assert reason in found.execution
    assert not record.supported
    assert any(found.name in warning and reason in warning for warning in record.warnings)


@pytest.mark.parametrize("ways", [{FC: "csr"}, {FC: "1x4", CONV: "csr + densify"}])
def test_what_is_called_native_or_densified_answers_as_the_dense_file(dense, ways):
    def answer(data):
        runner = Interpreter(model_content=data).get_signature_runner()
        (name,) = runner.get_input_details()
        (value,) = runner(**{name: np.ones((1, 6, 6, 2), "float32")}).values()
        return value

    # rounding of a sum of 64 terms of order 1: 64 * 6e-8, with room for the convolution before it
    np.testing.assert_allclose(answer(encode(dense, ways)), answer(dense), atol=1e-4)


def test_blocks_that_drop_the_last_inputs_are_unsupported(dense, tmp_path):
    """What the converter of TensorFlow writes when the inputs are no multiple of 4: a silent error."""

    def narrow(model, tensor, operator):
        tensor.shape = np.array([12, 66], np.int32)

    found = next(
        t for t in inspected(tmp_path, edited(encode(dense, {FC: "1x4"}), narrow)).tensors if t.shape == (12, 66)
    )
    assert "66 inputs do not fill blocks of 1x4" in found.execution


def test_int8_rules_follow_the_activations(dense, tmp_path):
    def as_int8(model, tensor, operator):
        count = len(model.buffers[tensor.buffer].data) // 4
        model.buffers[tensor.buffer].data = np.ones(count, np.uint8)
        tensor.type = litert.TensorType.INT8

    found = constant(inspected(tmp_path, edited(encode(dense, {FC: "csr"}), as_int8)), FC)
    assert found.dtype == "int8"
    assert "no kernel for single int8 zeros" in found.execution


def test_zeros_of_integers_are_those_at_the_zero_point(dense, tmp_path):
    def quantize(model, tensor, operator):
        values = np.arange(12 * 64, dtype=np.int64) % 7 - 3
        model.buffers[tensor.buffer].data = values.astype(np.int8).view(np.uint8)
        tensor.type = litert.TensorType.INT8
        tensor.quantization = litert.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5], [2]

    found = constant(inspected(tmp_path, edited(dense, quantize)), FC)
    assert found.zeros == np.sum(np.arange(12 * 64) % 7 - 3 == 2)


@pytest.mark.parametrize("shape", [(12, 64), (11, 3)])
def test_four_bit_numbers_are_unpacked(dense, tmp_path, shape):
    values = np.random.default_rng(0).integers(-8, 8, shape)

    def pack(model, tensor, operator):
        flat = np.resize(np.append(values, 0), values.size + values.size % 2) & 15
        model.buffers[tensor.buffer].data = (flat[::2] | flat[1::2] << 4).astype(np.uint8)
        tensor.type, tensor.shape = litert.TensorType.INT4, np.array(shape, np.int32)

    found = constant(inspected(tmp_path, edited(dense, pack)), shape)
    assert (found.dtype, found.entries, found.zeros) == ("int4", values.size, np.sum(values == 0))


def test_signed_zeros_and_foreign_operations_are_warned_of(dense, tmp_path):
    def damage(model, tensor, operator):
        values = np.zeros(12 * 64, "<f4")
        values[:5] = -0.0
        model.buffers[tensor.buffer].data = values.view(np.uint8)
        code = model.operatorCodes[operator.opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = litert.BuiltinOperator.CUSTOM
        code.customCode = b"FlexMatMul"

    record = inspected(tmp_path, edited(dense, damage))
    assert record.custom_operators == ("custom:FlexMatMul",)
    assert any("FlexMatMul" in warning and "TensorFlow" in warning for warning in record.warnings)
    assert any(warning.startswith("5 zeros are stored as -0.0") for warning in record.warnings)
    assert constant(record, FC).zeros == 12 * 64


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda d: d.arraySegments.values.__setitem__(3, 250), "do not rise"),
        (lambda d: d.arrayIndices.values.__setitem__(0, 64), "indices outside of 0 to 63"),
        (lambda d: d.arrayIndices.values.__setitem__(1, 0), "do not increase within a segment"),
        (lambda d: setattr(d.arraySegments, "values", d.arraySegments.values[:-1]), "segment limits for 12 segments"),
    ],
)
def test_index_arrays_that_are_not_sound_are_refused(dense, tmp_path, edit, what):
    def damage(model, tensor, operator):
        compressed = tensor.sparsity.dimMetadata[1]
        for vector in (compressed.arraySegments, compressed.arrayIndices):
            vector.values = np.array(vector.values)
        edit(compressed)

    with pytest.raises(DataError, match=what) as caught:
        inspected(tmp_path, edited(encode(dense, {FC: "csr"}), damage))
    assert "file.tflite" in str(caught.value)
    assert "at byte" in str(caught.value)


def test_a_buffer_that_does_not_fit_its_shape_is_refused(dense, tmp_path):
    def widen(model, tensor, operator):
        tensor.shape = np.array([2**31 - 1] * 2, np.int32)  # the number of bytes is beyond 64 bits

    with pytest.raises(DataError, match="the buffer has 3072 bytes"):
        inspected(tmp_path, edited(dense, widen))


def level(values, size=0):
    """A compressed level from rows of indices, or a dense one."""
    if values is None:
        return Dimension(False, size, np.empty(0, "<i4"), np.empty(0, "<i4"))
    segments = np.cumsum([0, *map(len, values)]).astype("<u1")
    return Dimension(True, 0, segments, np.array([i for row in values for i in row], "<u1"))


@pytest.mark.parametrize(
    ("sparsity", "entries", "name"),
    [
        (Sparsity((0, 1), (), (level(None, 2), level([[0, 3], [1]]))), 3, "csr"),
        (Sparsity((0, 1), (), (level(None, 2), level([[], []]))), 0, "csr"),
        (Sparsity((1, 0), (), (level(None, 4), level([[0], [1], [], [0, 1]]))), 4, "csr, transposed"),
        (Sparsity((0, 1, 2), (1,), (level(None, 2), level([[1], [0]]), level(None, 2))), 4, "1x2"),
        (Sparsity((0, 1), (), (level([[1]]), level([[0, 2]]))), 2, "other sparse"),
    ],
)
def test_levels_are_walked_in_their_order(sparsity, entries, name):
    """Shape (2, 4), counted by hand."""
    assert stored_entries((2, 4), sparsity) == entries
    assert encoding_name((2, 4), sparsity) == name


def test_the_record_survives_json_and_needs_neither_keras_nor_litert(dense, tmp_path):
    record = inspected(tmp_path, encode(dense, {FC: "csr"}))
    assert from_json(to_json(record)) == record
    code = (
        "import sys; from keras_sensprune.export.inspection import inspect_tflite; inspect_tflite(sys.argv[1]); "
        "print([m for m in ('keras', 'tensorflow', 'ai_edge_litert') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file.tflite")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_what_is_no_file_name_is_refused():
    for path in (None, "", 3):
        with pytest.raises(ArgumentError, match="path"):
            inspect_tflite(path)
