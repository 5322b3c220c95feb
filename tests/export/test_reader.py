"""Our reader of `.tflite` files: it agrees with LiteRT's, and no damaged file does more than raise DataError."""

import os
import struct
import time

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as litert
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sensprune.errors import DataError
from keras_sensprune.export import convert, flatbuffer, packing, schema, sites
from keras_sensprune.export.inspection import inspect_tflite
from keras_sensprune.export.reader import read_tflite

MUTATIONS = 300
# Reading these files (some kB) takes about a millisecond; a second is an endless loop or a huge allocation. The
# limit for all of them together allows 0.05 s each on a busy machine.
SECONDS_FOR_ALL = 15


@pytest.fixture(scope="module")
def sparse():
    return sparse_file()


def sparse_file():
    """A small file with CSR, 1x4 and CSR behind DENSIFY."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(8, name="blocks"),
            keras.layers.Dense(12, name="single"),
        ]
    )
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) * (generator.random(variable.shape) < 0.2))
    dense = flatbuffer.positive_zeros(convert.convert_dense(model, convert.model_inputs(model, None)))
    ways = {(4, 3, 3, 2): "csr + densify", (8, 64): "1x4", (12, 8): "csr"}
    found = sites.sparse_sites(litert.ModelT.InitFromPackedBuf(dense))
    return packing.encode(dense, {site.buffer: ways[site.shape] for site in found})


def capital(field):
    return "".join(part.capitalize() for part in field.split("_"))


@pytest.mark.parametrize(
    ("table", "field", "number"), [(t, f, n) for t, fields in schema.FIELDS.items() for f, n in fields.items()]
)
def test_the_field_numbers_are_those_of_the_public_schema(table, field, number):
    """The generated writer of LiteRT puts a field into the slot of its number."""
    slots = []

    class Builder:
        def __getattr__(self, name):
            return lambda slot, *rest: slots.append(slot)

    getattr(litert, f"{table}Add{capital(field)}")(Builder(), 1)
    assert slots == [number]


def test_operations_types_and_unions_are_those_of_the_public_schema():
    names = {value: name for name, value in vars(litert.BuiltinOperator).items() if name[0] != "_"}
    assert dict(enumerate(schema.OPERATORS)) == names
    types = {value: name.lower() for name, value in vars(litert.TensorType).items() if name[0] != "_"}
    assert {i: name for i, (name, _, _) in enumerate(schema.TYPES)} == types
    assert {i: name for i, (name, _) in schema.INDEX_VECTORS.items()} == {
        value: name for name, value in vars(litert.SparseIndexVector).items() if name[0] != "_" and value
    }
    assert all(getattr(litert.BuiltinOptions, name) == i for i, name in schema.OPTIONS.items())
    assert [getattr(litert.Padding, name) for name in schema.PADDINGS] == [0, 1]


def test_the_content_agrees_with_the_reader_of_litert(sparse):
    ours, theirs = read_tflite(sparse), litert.ModelT.InitFromPackedBuf(sparse)
    assert len(ours.subgraphs) == len(theirs.subgraphs) == 1
    for tensor, other in zip(ours.subgraphs[0].tensors, theirs.subgraphs[0].tensors, strict=True):
        assert (tensor.name, tensor.type, tensor.buffer) == (other.name.decode(), other.type, other.buffer)
        assert list(tensor.shape) == ([] if other.shape is None else list(other.shape))
        stored = theirs.buffers[other.buffer].data
        assert ours.stored(tensor).tobytes() == (b"" if stored is None else bytes(stored))
        assert (tensor.sparsity is None) == (other.sparsity is None)
        if tensor.sparsity is not None:
            for mine, dimension in zip(tensor.sparsity.dimensions, other.sparsity.dimMetadata, strict=True):
                assert (mine.compressed, mine.size) == (bool(dimension.format), dimension.denseSize)
                if mine.compressed:
                    assert list(mine.indices) == list(dimension.arrayIndices.values)
                    assert list(mine.segments) == list(dimension.arraySegments.values)
    for operator, other in zip(ours.subgraphs[0].operators, theirs.subgraphs[0].operators, strict=True):
        code = theirs.operatorCodes[other.opcodeIndex]
        assert (schema.OPERATORS.index(operator.name), operator.version) == (code.builtinCode, code.version)
        assert (list(operator.inputs), list(operator.outputs)) == (list(other.inputs), list(other.outputs))
    assert ours.signatures[0].key == "serving_default"


def outcome(source):
    """ "read" or the text of the DataError; anything else fails the test."""
    try:
        inspect_tflite(source) if not isinstance(source, bytes) else read_tflite(source)
    except DataError as error:
        return str(error)
    return "read"


def attempt(folder, data):
    path = folder / "file.tflite"
    path.write_bytes(data)
    text = outcome(path)
    assert text == "read" or str(path) in text
    return text


def mutations(data):
    """Seeded damage: cut off, bits flipped, 32-bit words overwritten with what an attacker would try."""
    generator = np.random.default_rng(0)
    words = [0, 1, 4, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, len(data), len(data) - 4]
    for i in range(MUTATIONS):
        changed = bytearray(data)
        if i % 3 == 0:
            del changed[int(generator.integers(len(data))) :]
        elif i % 3 == 1:
            for place in generator.integers(len(data), size=int(generator.integers(1, 9))):
                changed[place] ^= 1 << int(generator.integers(8))
        else:
            for place in generator.integers(len(data) - 4, size=int(generator.integers(1, 5))):
                changed[place : place + 4] = struct.pack("<I", words[generator.integers(len(words))])
        yield bytes(changed)


def test_damaged_files_are_read_or_refused_within_bounded_time(sparse, tmp_path):
    start = time.perf_counter()
    outcomes = [attempt(tmp_path, data) for data in mutations(sparse)]
    assert time.perf_counter() - start < SECONDS_FOR_ALL
    refused = [outcome for outcome in outcomes if outcome != "read"]
    assert len(refused) > MUTATIONS / 3  # every truncation (a third) but perhaps those in the padding at the end
    assert len(set(refused)) > 20  # for many different reasons


def test_every_word_of_the_graph_may_be_huge(sparse, tmp_path):
    """The tables are at the end of the file, the buffers at its start or the other way round: all words are tried."""
    start = time.perf_counter()
    for place in range(0, len(sparse) - 4, 4 * max(1, len(sparse) // 4 // 300)):
        attempt(tmp_path, sparse[:place] + struct.pack("<I", 0x7FFFFFFF) + sparse[place + 4 :])
    assert time.perf_counter() - start < SECONDS_FOR_ALL


@settings(max_examples=200, deadline=None, derandomize=True)
@given(body=st.binary(max_size=400), header=st.booleans())
def test_random_bytes_never_do_more_than_raise_data_error(body, header):
    data = struct.pack("<I", 8) + b"TFL3" + body if header else body
    text = outcome(data)
    assert text == "read" or "the given bytes" in text


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "0 bytes"),
        (b"TFL3", "4 bytes"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (b"A pruned network, it says here.", "something else"),
        (b"\x1f\x8b" + bytes(100), "gzipped"),
        (struct.pack("<I", 0xFFFFFFF0) + b"TFL3" + bytes(100), "outside of the file"),
        (struct.pack("<I", 8) + b"TFL3" + bytes(100), "impossible sizes"),
    ],
)
def test_what_is_no_tflite_file_is_named(tmp_path, content, what):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        read_tflite(path)
    assert str(path) in str(caught.value)


def test_missing_files_folders_and_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "none.tflite", "No such file"),
        (tmp_path, "regular file"),
        (tmp_path / "pipe", "regular file"),
        ("null\0byte", "null"),
    ):
        with pytest.raises(DataError, match=what):
            read_tflite(path)


def test_one_table_behind_a_million_references_costs_no_memory_or_time():
    """A thousand subgraphs that are all one table, with a thousand tensors that are all one table: 8 kB for 10^6."""
    data = bytearray(struct.pack("<I", 0) + b"TFL3")

    def table(field=None):
        """A table with one offset field or none: where it is, and where the offset is."""
        places = [] if field is None else [0] * field + [4]
        size = 4 + 4 * bool(places)
        data.extend(struct.pack(f"<HH{len(places)}H", 4 + 2 * len(places), size, *places))
        data.extend(struct.pack("<i", 4 + 2 * len(places)) + bytes(size - 4))
        return len(data) - size

    def thousand():
        data.extend(struct.pack("<I", 1000) + bytes(4000))
        return len(data) - 4004

    root, subgraphs, graph, tensors, tensor = table(2), thousand(), table(0), thousand(), table()
    struct.pack_into("<I", data, 0, root)
    for start, vector, target in ((root, subgraphs, graph), (graph, tensors, tensor)):
        struct.pack_into("<I", data, start + 4, vector - start - 4)
        for place in range(vector + 4, vector + 4004, 4):
            struct.pack_into("<I", data, place, target - place)
    start = time.perf_counter()
    with pytest.raises(DataError, match="far too often"):
        read_tflite(bytes(data))
    assert time.perf_counter() - start < 1  # some milliseconds: the work is bounded by the size of the file
    one = bytearray(data)
    struct.pack_into("<I", one, subgraphs, 1)
    struct.pack_into("<I", one, tensors, 1)
    assert len(read_tflite(bytes(one)).subgraphs[0].tensors) == 1  # each reference alone is sound


def test_offsets_of_buffers_behind_the_flatbuffer_are_checked():
    """Files above 2 GB store (offset, size) in place of the content."""
    model = litert.ModelT.InitFromPackedBuf(minimal())
    model.buffers[1].data = None
    model.buffers[1].offset, model.buffers[1].size = 1, 0  # placeholders: 1 means "not outside"
    assert len(read_tflite(packed(model)).buffers[1]) == 0
    content = np.arange(4, dtype="<f4").tobytes()
    model.buffers[1].offset, model.buffers[1].size = len(packed(model)) + 8, 16
    data = packed(model)
    model.buffers[1].offset = len(data)
    data = packed(model)
    assert read_tflite(data + content).buffers[1].tobytes() == content
    with pytest.raises(DataError, match="a buffer of 16 bytes lies outside"):
        read_tflite(data + content[:-1])


def packed(model):
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def minimal():
    """One subgraph with one constant of four floats."""
    tensor = litert.TensorT()
    tensor.shape, tensor.type, tensor.buffer, tensor.name = [4], 0, 1, b"weights \xff"
    graph = litert.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [tensor], [], [], []
    model = litert.ModelT()
    model.version, model.subgraphs = 3, [graph]
    model.buffers = [litert.BufferT(), litert.BufferT()]
    model.buffers[1].data = np.frombuffer(np.arange(4, dtype="<f4").tobytes(), np.uint8)
    return packed(model)


def test_names_that_are_no_utf8_are_shown_with_a_replacement():
    assert read_tflite(minimal()).subgraphs[0].tensors[0].name == "weights \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("kind", ["FLOAT32", "STRING"])
@pytest.mark.parametrize("shape", [[2**31 - 1] * 600, [2**31 - 1] * 3, [1] * 65])
def test_shapes_that_nobody_can_count_are_refused(kind, shape):
    """Python itself counts them, until the number is to be printed."""
    model = litert.ModelT()
    tensor = litert.TensorT()
    tensor.name, tensor.shape = b"huge", np.array(shape, np.int32)
    tensor.type, tensor.buffer = getattr(litert.TensorType, kind), 1
    graph, buffer = litert.SubGraphT(), litert.BufferT()
    graph.tensors, buffer.data = [tensor], np.arange(4, dtype=np.uint8)
    model.version, model.subgraphs, model.buffers = 3, [graph], [litert.BufferT(), buffer]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(DataError, match=f"tensor 'huge' has {len(shape)} axes, or more entries than can be counted"):
        read_tflite(bytes(builder.Output()))
