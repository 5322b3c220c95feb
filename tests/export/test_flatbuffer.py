"""The rewritten flatbuffer: what is stored sparse, how, and that both interpreters still compute the same."""

import gzip
import json

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from keras_sensprune.export import choices, convert, flatbuffer, packing

RESOLVERS = (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
FULLY_CONNECTED = schema.BuiltinOperator.FULLY_CONNECTED


def pruned(model, sparsity, seed=0):
    """Normal weights of variance 1 / fan-in; round(sparsity * n) entries of every matrix are zero."""
    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        value = generator.normal(size=variable.shape) / np.sqrt(variable.shape[0])
        if len(variable.shape) > 1:
            value.flat[generator.permutation(value.size)[: round(sparsity * value.size)]] = 0
        variable.assign(value)
    return model


def converted(model):
    return flatbuffer.positive_zeros(convert.convert_dense(model, convert.model_inputs(model, None)))


def sparsely(data):
    """The file with every weight encoded that gets smaller."""
    return packing.encode(data, choices.smallest(data, gzipped=False))


def mlp(*sizes):
    return keras.Sequential([keras.Input(sizes[:1]), *(keras.layers.Dense(n, "relu") for n in sizes[1:])])


def read(data):
    return schema.ModelT.InitFromPackedBuf(data)


def packed(model):
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operations(data):
    """(operation, version) of every operator of every subgraph."""
    model = read(data)
    codes = [(max(c.builtinCode, c.deprecatedBuiltinCode), c.version) for c in model.operatorCodes]
    return [codes[op.opcodeIndex] for subgraph in model.subgraphs for op in subgraph.operators]


def decoded(data):
    """Slow oracle: every float32 matrix by name, CSR expanded entry by entry."""
    model, found = read(data), {}
    for tensor in (t for subgraph in model.subgraphs for t in subgraph.tensors):
        stored = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or stored is None or tensor.shape is None or len(tensor.shape) != 2:
            continue
        values = np.frombuffer(bytes(stored), "<f4")
        if tensor.sparsity is None:
            found[tensor.name] = values.reshape(tensor.shape)
            continue
        assert list(tensor.sparsity.traversalOrder) == [0, 1]
        dense, compressed = tensor.sparsity.dimMetadata
        assert (dense.format, dense.denseSize) == (schema.DimensionType.DENSE, tensor.shape[0])
        assert compressed.format == schema.DimensionType.SPARSE_CSR
        segments, columns = compressed.arraySegments.values, compressed.arrayIndices.values
        matrix = np.zeros(tensor.shape, "f4")
        for row in range(tensor.shape[0]):
            for k in range(segments[row], segments[row + 1]):
                matrix[row, columns[k]] = values[k]
        found[tensor.name] = matrix
    return found


def answers(data, resolver, **inputs):
    runner = Interpreter(model_content=data, experimental_op_resolver_type=resolver).get_signature_runner()
    return runner(**inputs)


def assert_same_function(first, second, examples=5):
    """Both files answer the same. Sums of at most 784 products of order 1/sqrt(784) in another order: float32's
    unit roundoff 6e-8 times 784 is 5e-5 in the worst case."""
    details = Interpreter(model_content=first).get_signature_runner().get_input_details()
    generator = np.random.default_rng(1)
    inputs = {}
    for name, detail in details.items():
        shape = [examples if size == -1 else size for size in detail["shape_signature"]]
        inputs[name] = generator.normal(size=shape).astype("f4")
    for resolver in RESOLVERS:
        a, b = answers(first, resolver, **inputs), answers(second, resolver, **inputs)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=5e-5)


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 0.95, 0.99, 1])
def test_same_function_and_same_weights_at_every_sparsity(sparsity):
    dense = converted(pruned(mlp(784, 300, 100, 10), sparsity))
    sparse = sparsely(dense)
    records = flatbuffer.weight_tensors(sparse)
    assert sorted(record.shape for record in records) == [(10, 100), (100, 300), (300, 784)]
    for record in records:
        size = record.shape[0] * record.shape[1]
        assert record.zeros == round(sparsity * size)
        assert record.encoding == ("csr" if sparsity else "dense")
        assert record.bytes == 4 * size if record.encoding == "dense" else record.bytes < 4 * size
    assert (sparse is dense) == (sparsity == 0)
    assert (len(sparse) < len(dense)) == (sparsity > 0)
    for name, matrix in decoded(dense).items():
        np.testing.assert_array_equal(decoded(sparse)[name], matrix)
    assert_same_function(dense, sparse)
    assert schema.BuiltinOperator.DENSIFY not in {operation for operation, _ in operations(sparse)}


@pytest.mark.parametrize(
    ("inputs", "units", "sparsity", "index_types"),
    [
        # (segments, columns): segments count nonzeros, columns are below `inputs`; tags 3, 2, 1 are u8, u16, i32
        (63, 37, 0.95, (3, 3)),  # 117 nonzeros; inputs are no multiple of 4
        (63, 37, 0.5, (2, 3)),  # 1166 nonzeros
        (300, 37, 0.98, (3, 2)),  # 222 nonzeros
        (784, 300, 0.5, (1, 2)),  # 117600 nonzeros
        (70000, 3, 0.9995, (3, 1)),  # 105 nonzeros
    ],
)
def test_index_types_are_the_smallest_that_fit(inputs, units, sparsity, index_types):
    dense = converted(pruned(mlp(inputs, units), sparsity))
    sparse = sparsely(dense)
    (parameters,) = (t.sparsity for t in read(sparse).subgraphs[0].tensors if t.sparsity is not None)
    compressed = parameters.dimMetadata[1]
    assert (compressed.arraySegmentsType, compressed.arrayIndicesType) == index_types
    assert_same_function(dense, sparse)


def test_tiny_tensor_stays_dense():
    dense = converted(pruned(mlp(1, 1), 1))
    assert sparsely(dense) is dense


def test_only_the_pruned_layer_changes_its_operation():
    model = pruned(mlp(64, 64, 48), 0)
    model.layers[0].kernel.assign(np.eye(64))
    dense = converted(model)
    before = {version for operation, version in operations(dense) if operation == FULLY_CONNECTED}
    sparse = sparsely(dense)
    assert 8 not in before
    assert [version == 8 for operation, version in operations(sparse) if operation == FULLY_CONNECTED] == [True, False]
    assert {version for operation, version in operations(sparse) if operation == FULLY_CONNECTED} == before | {8}
    assert_same_function(dense, sparse)


def test_shared_layer_converts_all_its_uses():
    left, right = keras.Input((32,), name="left"), keras.Input((32,), name="right")
    shared = keras.layers.Dense(40)
    dense = converted(pruned(keras.Model([left, right], [shared(left), shared(right)]), 0.9))
    sparse = sparsely(dense)
    assert operations(sparse).count((FULLY_CONNECTED, 8)) == 2
    (record,) = flatbuffer.weight_tensors(sparse)
    assert (record.encoding, record.shape, record.zeros) == ("csr", (40, 32), round(0.9 * 1280))
    assert_same_function(dense, sparse)


@pytest.fixture(scope="module")
def one_layer():
    return converted(pruned(mlp(64, 32), 0.9))


def test_weight_that_is_also_an_output_stays_dense(one_layer):
    model = read(one_layer)
    subgraph = model.subgraphs[0]
    subgraph.outputs = np.array([*subgraph.outputs, subgraph.operators[0].inputs[1]], np.int32)
    data = packed(model)
    assert sparsely(data) is data


def test_weight_used_by_another_operation_stays_dense(one_layer):
    model = read(one_layer)
    operators = model.subgraphs[0].operators
    weight = operators[0].inputs[1]
    other = schema.OperatorT()
    other.inputs, other.outputs = np.array([weight, weight], np.int32), np.array([], np.int32)
    other.opcodeIndex = operators[0].opcodeIndex
    other.builtinOptionsType, other.builtinOptions = operators[0].builtinOptionsType, operators[0].builtinOptions
    operators.append(other)
    data = packed(model)
    # the second operator takes it as input 0 and as weight: the first of these spoils it
    assert sparsely(data) is data


def test_buffer_of_another_tensor_stays_dense(one_layer):
    model = read(one_layer)
    subgraph = model.subgraphs[0]
    twin = schema.TensorT()
    twin.name, twin.shape, twin.type = "twin", np.array([64, 32], np.int32), schema.TensorType.FLOAT32
    twin.buffer = subgraph.tensors[subgraph.operators[0].inputs[1]].buffer
    subgraph.tensors.append(twin)
    data = packed(model)
    assert sparsely(data) is data


def test_weight_in_another_layout_stays_dense(one_layer):
    model = read(one_layer)
    shuffled = schema.FullyConnectedOptionsWeightsFormat.SHUFFLED4x16INT8
    model.subgraphs[0].operators[0].builtinOptions.weightsFormat = shuffled
    data = packed(model)
    assert sparsely(data) is data


def test_sparse_file_is_not_rewritten_twice(one_layer):
    sparse = sparsely(one_layer)
    assert sparsely(sparse) is sparse


def test_weights_inside_a_loop_become_sparse():
    dense = converted(pruned(keras.Sequential([keras.Input((4, 16)), keras.layers.LSTM(24)]), 0.95))
    sparse = sparsely(dense)
    inside = [t.sparsity for subgraph in read(sparse).subgraphs[1:] for t in subgraph.tensors]
    assert sum(parameters is not None for parameters in inside) == 2  # kernel and recurrent kernel
    assert [record.encoding for record in flatbuffer.weight_tensors(sparse)] == ["csr", "csr"]
    assert_same_function(dense, sparse)


def test_convolutions_are_expanded_at_load_and_embeddings_stay_dense():
    layers = keras.layers
    image = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(32, 3), layers.DepthwiseConv2D(3)])
    words = keras.Sequential([keras.Input((4,), dtype="int32"), layers.Embedding(50, 8)])
    dense = converted(pruned(image, 0.9))
    sparse = sparsely(dense)
    shapes = {((32, 3, 3, 4), "csr + densify"), ((1, 3, 3, 32), "csr + densify")}
    assert {(r.shape, r.encoding) for r in flatbuffer.weight_tensors(sparse)} == shapes
    assert [code for code, _ in operations(sparse)].count(schema.BuiltinOperator.DENSIFY) == 2
    assert_same_function(dense, sparse)
    table = converted(pruned(words, 0.9))
    assert sparsely(table) is table
    assert {(r.shape, r.encoding) for r in flatbuffer.weight_tensors(table)} == {((50, 8), "dense")}


def test_positive_zeros_changes_nothing_but_the_sign_of_zeros():
    model = pruned(mlp(300, 100), 0)
    kernel = model.layers[0].kernel
    mask = np.random.default_rng(2).random(kernel.shape) < 0.1
    kernel.assign(kernel * mask)  # leaves -0.0 in about 45 % of the entries
    raw = convert.convert_dense(model, convert.model_inputs(model, None))
    clean = flatbuffer.positive_zeros(raw)
    changed = np.frombuffer(raw, np.uint8) != np.frombuffer(clean, np.uint8)
    negative = np.signbit(kernel.numpy()) & (kernel.numpy() == 0)
    assert changed.sum() == negative.sum() > 0.4 * mask.size
    assert set(np.frombuffer(raw, np.uint8)[changed]) == {0x80}
    assert set(np.frombuffer(clean, np.uint8)[changed]) == {0}
    assert len(gzip.compress(clean)) < 0.8 * len(gzip.compress(raw))
    assert flatbuffer.positive_zeros(clean) == clean


def test_records_are_plain_numbers(one_layer):
    records = flatbuffer.weight_tensors(sparsely(one_layer))
    nonzero = round(64 * 32 * 0.1)
    # 205 values of 4 bytes, 33 segments and 205 columns of 1 byte
    assert [json.loads(json.dumps((r.shape, r.zeros, r.bytes))) for r in records] == [
        [[32, 64], 64 * 32 - nonzero, 5 * nonzero + 33]
    ]
