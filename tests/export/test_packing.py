"""Our sparse encodings against a slow decoder, and both interpreters on files that use them."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_sensprune.export import choices, convert, packing
from keras_sensprune.export.flatbuffer import weight_tensors
from keras_sensprune.export.sites import sparse_sites
from tests.export.test_flatbuffer import RESOLVERS, answers, assert_same_function, converted, mlp, pruned, read


def block_pruned(model, size, sparsity=0.9, seed=0):
    """Whole blocks of consecutive inputs of one unit are zero."""
    pruned(model, 0, seed)
    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        value = variable.numpy()
        if value.ndim == 2 and value.shape[0] % size == 0:
            keep = generator.random((value.shape[0] // size, value.shape[1])) >= sparsity
            variable.assign(value * np.repeat(keep, size, axis=0))
    return model


def expanded(values, dimensions, shape):
    """Slow oracle: stored values back to the full array, entry by entry."""
    *outer, compressed = dimensions[: len(shape)]
    assert compressed.format == schema.DimensionType.SPARSE_CSR
    block = int(np.prod([d.denseSize for d in dimensions[len(shape) :]], dtype=int))
    assert [d.denseSize for d in outer] == list(shape[:-1])
    segments, columns = compressed.arraySegments.values, compressed.arrayIndices.values
    rows = np.zeros((int(np.prod(shape[:-1])), -(-shape[-1] // block) * block), values.dtype)
    for row in range(len(rows)):
        for k in range(segments[row], segments[row + 1]):
            rows[row, block * columns[k] : block * (columns[k] + 1)] = values[k]
    return rows[:, : shape[-1]].reshape(shape)


@pytest.mark.parametrize("shape", [(5, 16), (1, 1), (3, 7), (4, 3, 3, 8), (1, 3, 3, 6)])
@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("sparsity", [0, 0.8, 1])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_is_stored_is_the_weight(shape, block, sparsity, dtype):
    generator = np.random.default_rng(0)
    values = (generator.integers(-100, 100, shape) * (generator.random(shape) >= sparsity)).astype(dtype)
    stored, dimensions = packing._compressed(values, block)
    np.testing.assert_array_equal(expanded(stored, dimensions, shape), values)
    assert len(stored) >= 1  # an empty buffer would mean "no constant"


@pytest.mark.parametrize("encoding", ["csr", "1x4"])
def test_bytes_are_foretold(encoding):
    dense = converted(block_pruned(mlp(64, 48), 4))
    (site,) = sparse_sites(read(dense))
    sparse = packing.encode(dense, {site.buffer: encoding})
    grown = len(sparse) - len(dense)
    foretold = packing.encoded_bytes(site.values(read(dense)), encoding) - 64 * 48 * 4
    assert abs(grown - foretold) <= 100  # TABLE_BYTES is an average over paddings and table layouts
    (record,) = weight_tensors(sparse)
    assert record.encoding == encoding
    assert_same_function(dense, sparse)


def test_blocks_are_chosen_where_they_are_smaller():
    model = block_pruned(mlp(64, 48, 63, 10), 4)
    last = model.layers[-1].kernel
    last.assign(last.numpy() * (np.arange(630).reshape(63, 10) % 10 == 0))
    dense = converted(model)
    # the layer with 63 inputs cannot have blocks of 4; its zeros are single ones
    sparse = packing.encode(dense, choices.smallest(dense, gzipped=False))
    assert sorted((t.shape, t.encoding) for t in weight_tensors(sparse)) == [
        ((10, 63), "csr"),
        ((48, 64), "1x4"),
        ((63, 48), "1x4"),
    ]
    assert_same_function(dense, sparse)


def test_a_convolution_that_is_shared():
    x = keras.Input((12, 12, 16))
    shared = keras.layers.Conv2D(16, 3, padding="same", name="shared")
    dense = converted(pruned(keras.Model(x, shared(shared(x))), 0.9))
    sparse = packing.encode(dense, choices.smallest(dense, gzipped=False))
    (record,) = weight_tensors(sparse)
    assert record.encoding == "csr + densify"
    assert_same_function(dense, sparse)


def test_convolutions_in_a_loop():
    """Their weights are in another subgraph of the file."""
    model = pruned(keras.Sequential([keras.Input((5, 8, 8, 16)), keras.layers.ConvLSTM2D(16, 3)]), 0.9)
    dense = converted(model)
    assert len(read(dense).subgraphs) > 1
    sparse = packing.encode(dense, choices.smallest(dense, gzipped=False))
    records = weight_tensors(sparse)
    assert len(records) >= 2
    assert {record.encoding for record in records} == {"csr + densify"}
    assert_same_function(dense, sparse, examples=1)


def test_dynamic_blocks_run_in_both_interpreters():
    model = block_pruned(mlp(64, 48, 32), 16)
    inputs = convert.model_inputs(model, None)
    dense = convert.convert_dense(model, inputs, "dynamic")
    sparse = packing.encode(dense, choices.smallest(dense, gzipped=False))
    assert {(t.dtype, t.encoding) for t in weight_tensors(sparse)} == {("int8", "1x16")}
    assert len(sparse) < 0.6 * len(dense)
    x = np.random.default_rng(1).normal(size=(5, 64)).astype("f4")
    for resolver in RESOLVERS:
        a, b = (answers(data, resolver, **{inputs.names[0]: x})["output_0"] for data in (dense, sparse))
        # the same int8 products; only the rounding of the inputs may be done elsewhere: 2**-8 of the largest
        np.testing.assert_allclose(a, b, rtol=0, atol=0.01 * np.abs(a).max())


def test_the_choice_by_time_keeps_only_what_is_faster():
    dense = converted(pruned(mlp(64, 48, 32), 0.95))
    sizes = {}

    def ratio(one, other):
        """Sparse is twice as fast in the first, larger layer only."""
        sizes.setdefault(len(one), len(other))
        encodings = {t.shape: t.encoding for t in weight_tensors(other)}
        return 0.5 if encodings[(48, 64)] == "csr" and encodings[(32, 48)] == "dense" else 1.0

    chosen = choices.fastest(dense, ratio)
    found = {t.shape: t.encoding for t in weight_tensors(packing.encode(dense, chosen))}
    assert found == {(48, 64): "csr", (32, 48): "dense"}


def test_full_layers_are_not_even_timed():
    dense = converted(pruned(mlp(64, 48), 0.2))
    assert choices.fastest(dense, lambda one, other: pytest.fail("it was timed")) == {}
