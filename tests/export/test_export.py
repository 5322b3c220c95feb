"""`export_tflite`: the promise about the file, the folder, the model and the messages."""

import functools
import logging
import os

import keras
import numpy as np
import pytest

from keras_sensprune import errors
from keras_sensprune.errors import ArgumentError, ExportError, ModelError
from keras_sensprune.export import convert, flatbuffer, packing, tflite, verify
from keras_sensprune.records import from_json, to_json
from tests.export.test_flatbuffer import mlp, pruned

layers = keras.layers
export_tflite = functools.partial(tflite.export_tflite, runtimes=("litert",))  # starting tf.lite takes seconds


def two_by_two():
    zebra, ant = keras.Input((16,), name="zebra"), keras.Input((16,), name="ant")
    shared = layers.Dense(24, "relu")
    outputs = [layers.Dense(3)(shared(zebra)), layers.Dense(3)(shared(ant) - shared(zebra))]
    return keras.Model([zebra, ant], outputs)


def dictionaries():
    zebra, ant = keras.Input((16,), name="zebra"), keras.Input((16,), name="ant")
    return keras.Model({"zebra": zebra, "ant": ant}, {"sum": layers.Dense(30)(zebra + ant), "ant": ant})


def convolution():
    return keras.Sequential(
        [
            keras.Input((10, 10, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(32, "relu", activity_regularizer="l2"),
            layers.Dropout(0.5),
            layers.Dense(10, "softmax"),
        ]
    )


def recurrent(*stack, **options):
    return keras.Sequential([keras.Input((5, 16), **options), *stack, layers.Dense(4)])


def words():
    stack = [layers.Embedding(20, 16, mask_zero=True), layers.Bidirectional(layers.LSTM(16))]
    return keras.Sequential([keras.Input((5,), dtype="int32"), *stack, layers.Dense(4)])


# name: (model, tensors that become sparse at 90 % zeros, tensors)
NETWORKS = {
    "odd": (lambda: mlp(63, 37, 5), 2, 2),
    "convolution": (convolution, 3, 3),
    "two by two": (two_by_two, 3, 3),
    "dictionaries": (dictionaries, 1, 1),
    "lstm": (lambda: recurrent(layers.LSTM(24)), 3, 3),
    "gru, nested": (lambda: recurrent(keras.Sequential([layers.GRU(24, return_sequences=True)])), 3, 3),
    "words": (words, 5, 6),
    "unrolled": (lambda: recurrent(layers.SimpleRNN(24, unroll=True)), 3, 3),
    "stateful": (lambda: recurrent(layers.LSTM(24, stateful=True), batch_size=2), 3, 3),
}


def weight_bytes(model):
    return [variable.numpy().tobytes() for variable in model.variables]


def attributes(model):
    """Of the model and every layer in it: the attributes by identity (kept alive here), and the collected losses."""
    return [(dict(vars(layer)), list(layer._losses)) for layer in model._flatten_layers()]


def same_attributes(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(a[name] is b[name] for name in a) and list(map(id, x)) == list(map(id, y))
        for (a, x), (b, y) in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def small():
    return pruned(mlp(64, 32, 10), 0.9)


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, tmp_path):
    make, sparse, tensors = NETWORKS[name]
    model = pruned(make(), 0.9)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(np.linspace(-1, 1, 8))
            layer.moving_variance.assign(np.linspace(0.5, 2, 8))
    weights, before = weight_bytes(model), attributes(model)
    record = export_tflite(model, tmp_path / "model.tflite")
    assert weight_bytes(model) == weights
    assert same_attributes(attributes(model), before)
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert (record.encoding, record.sparse_tensors, len(record.tensors)) == ("sparse", sparse, tensors)
    assert record.bytes == (tmp_path / "model.tflite").stat().st_size < record.dense_bytes
    assert record.gzip_bytes < record.bytes
    # unit roundoff 6e-8 times the longest sum here (200) times outputs below 10
    assert 0 <= record.max_difference <= 1.2e-4
    assert record.max_difference <= record.tolerance
    assert (record.runs, record.examples) == (("LiteRT, default delegate", "LiteRT, no delegate"), 16)
    assert from_json(to_json(record)) == record


def test_dense_model_makes_a_dense_file(tmp_path):
    record = export_tflite(pruned(mlp(32, 16, 4), 0), tmp_path / "model.tflite")
    assert (record.encoding, record.sparse_tensors, record.bytes) == ("dense", 0, record.dense_bytes)


@pytest.mark.parametrize("sizes", [(1, 1), (40, 30, 20)])
def test_all_weights_zero(sizes, tmp_path):
    record = export_tflite(pruned(mlp(*sizes), 1), tmp_path / "model.tflite")
    assert all(tensor.zeros == tensor.shape[0] * tensor.shape[1] for tensor in record.tensors)
    assert record.encoding == ("dense" if sizes == (1, 1) else "sparse")


def test_negative_zeros_go_from_the_file_and_stay_in_the_model(tmp_path):
    model = pruned(mlp(64, 32), 0)
    kernel = model.layers[0].kernel
    kernel.assign(kernel * np.eye(64, 32))
    negative = np.signbit(kernel.numpy()) & (kernel.numpy() == 0)
    before = weight_bytes(model)
    record = export_tflite(model, tmp_path / "model.tflite")
    assert negative.sum() > 800
    assert weight_bytes(model) == before
    assert [tensor.zeros for tensor in record.tensors] == [64 * 32 - 32]


def test_subclassed_model_needs_data(tmp_path):
    class Sum(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(5)

        def call(self, inputs):
            return self.dense(inputs["left"]) + inputs["right"]

    model, data = Sum(), {"left": np.ones((3, 4)), "right": np.arange(3.0)[:, None]}
    model(data)
    with pytest.raises(ArgumentError) as caught:
        export_tflite(model, tmp_path / "model.tflite")
    assert str(caught.value) == (
        "Argument `data` must be given for a model that is neither Sequential nor functional. Received: None. "
        "Pass a few example inputs, as for `model.predict`."
    )
    assert export_tflite(model, tmp_path / "model.tflite", data=data).examples == 3


def test_free_sizes_need_data(tmp_path):
    model = keras.Sequential([keras.Input((None, 3), name="signal"), layers.Conv1D(4, 2), layers.GlobalMaxPooling1D()])
    with pytest.raises(ArgumentError) as caught:
        export_tflite(model, tmp_path / "model.tflite")
    assert str(caught.value) == (
        "Argument `data` must be given, because input 'signal' has the shape (None, None, 3), in which more than the "
        "batch is free. Received: None. Pass a few example inputs, as for `model.predict`."
    )
    record = export_tflite(model, tmp_path / "model.tflite", data=np.ones((70, 6, 3)))
    assert record.examples == 70


def test_data_by_list_by_name_and_wrong_data(tmp_path):
    model = pruned(two_by_two(), 0)
    inputs = convert.model_inputs(model, None)
    left, right = np.full((2, 16), 1.0), np.full((2, 16), 2.0)
    by_list = convert.example_arrays(inputs, [left, right])
    by_name = convert.example_arrays(inputs, {"ant": right, "zebra": left})
    for arrays in (by_list, by_name):
        assert list(arrays) == ["zebra", "ant"]
        np.testing.assert_array_equal(arrays["zebra"], left)
        np.testing.assert_array_equal(arrays["ant"], right)
    shapes = "example inputs of the shapes zebra (None, 16), ant (None, 16)"
    wrong = [
        (np.zeros((2, 16)), shapes, None),
        ({"ant": left}, shapes, None),
        ([left, np.zeros((2, 15))], shapes, "'float64 array of shape (2, 15)'"),
        ([left, np.full((2, 16), "a")], shapes, "'<U1 array of shape (2, 16)'"),
        ([left, np.full((2, 16), np.nan)], "finite", "'float64 array with NaN or infinity'"),
        ([left, np.zeros((3, 16))], "one or more examples, as many for every input", "[2, 3]"),
        ([left[:0], right[:0]], "one or more examples, as many for every input", "[0]"),
    ]
    for data, allowed, received in wrong:
        with pytest.raises(ArgumentError) as caught:
            export_tflite(model, tmp_path / "model.tflite", data=data)
        expected = errors.argument_error("data", allowed, data)
        assert str(caught.value) == (
            str(expected) if received is None else f"Argument `data` must be {allowed}. Received: {received}."
        )
    assert os.listdir(tmp_path) == []


def test_data_must_fill_the_batches_of_the_model(tmp_path):
    model = keras.Sequential([keras.Input(batch_shape=(4, 6)), layers.Dense(3)])
    with pytest.raises(ArgumentError) as caught:
        export_tflite(model, tmp_path / "model.tflite", data=np.zeros((6, 6)))
    assert str(caught.value) == (
        "Argument `data` must be one or more examples that fill batches of 4, as many for every input. Received: [6]."
    )


def test_argument_messages(small, tmp_path, monkeypatch):
    def message(model, path, **options):
        with pytest.raises((ArgumentError, ModelError)) as caught:
            export_tflite(model, path, **options)
        return str(caught.value)

    good = str(tmp_path / "model.tflite")
    (tmp_path / "file").write_text("kept")
    for folder in ("missing", "file"):
        path = str(tmp_path / folder / "model.tflite")
        assert message(small, path) == str(
            errors.argument_error("path", "in a folder that exists", path, "Create the folder first.")
        )
    assert message(small, 3) == "Argument `path` must be the name of a file. Received: 3."
    assert message(small, "") == "Argument `path` must be the name of a file. Received: ''."
    assert message(small, tmp_path) == str(
        errors.argument_error("path", "the name of a file, not of a folder", str(tmp_path))
    )
    assert message("model", good) == "Argument `model` must be a Keras model. Received: 'model'."
    assert message(small, good, overwrite=1) == "Argument `overwrite` must be True or False. Received: 1."
    for bad in (-1.0, float("nan"), "small", True):
        assert message(small, good, tolerance=bad) == (
            f"Argument `tolerance` must be a number of at least 0, or None. Received: {bad!r}."
        )
    unbuilt = keras.Sequential([layers.Dense(3)], name="unbuilt")
    assert message(unbuilt, good) == "The model 'unbuilt' is not built. Call it once, or give it a `keras.Input`."
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    assert message(small, good) == str(errors.argument_error("path", "in a folder that may be written to", good))
    assert os.listdir(tmp_path) == ["file"]


def test_the_caller_s_logging_is_as_before(small, tmp_path, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a program that has not set up logging yet
    tflite.export_tflite(small, tmp_path / "m.tflite", runtimes=("litert",))
    assert logging.root.handlers == []


@pytest.mark.parametrize(
    ("label", "name"),
    [("self", "input_0"), ("args", "input_0"), ("class", "input_0"), ("größe", "gr__e"), ("1st", "1st")],
)
def test_names_of_inputs_that_a_signature_does_not_take(tmp_path, label, name):
    model = pruned(keras.Sequential([keras.Input((64,), name=label), layers.Dense(8)]), 0.5)
    assert convert.model_inputs(model, None).names == (name,)
    assert export_tflite(model, tmp_path / "model.tflite").examples == 16


def test_nan_weight(tmp_path):
    model = pruned(mlp(6, 4), 0)
    bias = model.layers[0].bias
    bias.assign([0, 1, np.nan, 2])
    with pytest.raises(ExportError) as caught:
        export_tflite(model, tmp_path / "model.tflite")
    assert str(caught.value) == f"The weight {bias.path!r} of the model holds NaN or infinity."
    assert os.listdir(tmp_path) == []


def test_model_that_answers_nan(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: keras.ops.log(x))])
    with pytest.raises(ExportError) as caught:
        export_tflite(model, tmp_path / "model.tflite")
    assert str(caught.value) == ("Output 'output_0' of the Keras model holds NaN or infinity for the example inputs.")
    assert os.listdir(tmp_path) == []
    assert export_tflite(model, tmp_path / "model.tflite", data=np.ones((2, 4))).max_difference <= 1e-6


def corrupted(data, choices):
    """A sparse file in which the values of every CSR tensor are doubled."""
    buffer = bytearray(encode(data, choices))
    model = flatbuffer.schema.Model.GetRootAs(buffer)
    graph = model.Subgraphs(0)
    for tensor in map(graph.Tensors, range(graph.TensorsLength())):
        if tensor.Sparsity() is not None:
            model.Buffers(tensor.Buffer()).DataAsNumpy().view("<f4")[:] *= 2
    return bytes(buffer)


encode = packing.encode


def test_sparse_file_that_disagrees_gives_way_with_a_warning(small, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "encode", corrupted)
    with pytest.warns(UserWarning, match=r"The sparse file was not used.*differs from the dense file by") as caught:
        record = export_tflite(small, tmp_path / "model.tflite")
    assert [os.path.basename(warning.filename) for warning in caught] == ["test_export.py"]
    assert (record.encoding, record.bytes, record.sparse_tensors) == ("dense", record.dense_bytes, 0)
    assert os.listdir(tmp_path) == ["model.tflite"]


def test_dense_file_that_disagrees_is_not_written(small, tmp_path):
    (tmp_path / "model.tflite").write_text("precious")
    with pytest.raises(ExportError, match=r"differs from the Keras model by .*, more than the tolerance 0 "):
        export_tflite(small, tmp_path / "model.tflite", tolerance=0, overwrite=True)
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert (tmp_path / "model.tflite").read_text() == "precious"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_check_leaves_nothing(small, tmp_path, monkeypatch, error):
    seen = []

    def interrupt(file, *_, **__):
        seen.extend(os.listdir(tmp_path))
        raise error

    monkeypatch.setattr(verify, "verify_file", interrupt)
    before = attributes(small)
    with pytest.raises(error):
        export_tflite(small, tmp_path / "model.tflite")
    assert len(seen) == 1  # the temporary file was beside the target
    assert os.listdir(tmp_path) == []
    assert same_attributes(attributes(small), before)


def test_reduced_precision_says_what_to_do(tmp_path):
    policy = keras.DTypePolicy("mixed_float16")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype=policy)], name="half")
    before = attributes(model)
    with pytest.raises(ExportError) as caught:
        export_tflite(model, tmp_path / "model.tflite")
    assert str(caught.value) == (
        "The model 'half' could not be converted to TFLite. LiteRT cannot run these operations: BiasAdd, MatMul. "
        "The model computes in float16; copy its weights to the same model in float32."
    )
    assert same_attributes(attributes(model), before)
    assert os.listdir(tmp_path) == []


def test_string_inputs_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((1,), dtype="string"), layers.Lambda(lambda x: x)])
    with pytest.raises(ModelError, match=r"^The model has an input of type string; a \.tflite file takes float32,"):
        export_tflite(model, tmp_path / "model.tflite")


def test_training_goes_on_after_an_export(tmp_path):
    model = pruned(mlp(8, 6, 1), 0.5)
    model.compile("sgd", "mse")
    x, y = np.ones((4, 8)), np.zeros((4, 1))
    model.fit(x, y, verbose=0)
    export_tflite(model, tmp_path / "first.tflite")
    before = weight_bytes(model)
    model.fit(x, y, verbose=0)
    assert weight_bytes(model) != before
    assert export_tflite(model, tmp_path / "second.tflite").max_difference <= 1e-6


def test_export_is_silent(small, tmp_path, capfd):
    export_tflite(small, tmp_path / "model.tflite")
    assert capfd.readouterr() == ("", "")
