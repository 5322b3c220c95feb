"""The census: which layers have rows, what counts as a weight, which units are dead."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from keras_sensprune import SensitivityRegularizer, sparsity_report
from keras_sensprune.errors import ArgumentError, ModelError


def built(*parts: keras.layers.Layer, shape: tuple[int | None, ...]) -> keras.Model:
    return keras.Sequential([keras.Input(shape), *parts], name="net")


def fill(variable: keras.Variable, nonzero: dict[tuple[int, ...], float]) -> None:
    values = np.zeros(variable.shape, "float32")
    for index, value in nonzero.items():
        values[index] = value
    variable.assign(values)


def the_row(model: keras.Model):
    (row,) = sparsity_report(model).layers
    return row


def test_dense_row_counts_weights_biases_and_dead_units():
    dense = layers.Dense(3, name="fc", bias_initializer="ones")
    model = built(dense, shape=(4,))
    fill(dense.kernel, {(0, 0): 0.5, (3, 2): -2.0})
    row = the_row(model)
    assert (row.path, row.kind, row.shape) == ("net/fc", "Dense", (4, 3))
    assert (row.weights, row.nonzero_weights) == (4 * 3, 2)
    assert (row.biases, row.nonzero_biases) == (3, 3)
    assert (row.units, row.dead_units) == (3, 1)  # column 1 is all zero; its bias does not count
    assert row.percent_left == 100 * 2 / 12


def test_report_sums_the_rows():
    model = built(layers.Dense(3, bias_initializer="ones"), layers.Dense(2), shape=(4,))
    fill(model.layers[1].kernel, {(0, 0): 1.0})
    report = sparsity_report(model)
    assert (report.model, report.weights, report.nonzero_weights) == ("net", 12 + 6, 12 + 1)
    assert (report.parameters, report.nonzero_parameters) == (18 + 3 + 2, 13 + 3 + 0)
    assert report.compression == 18 / 13
    assert report.compression_with_biases == 23 / 16


def test_negative_zero_is_zero_and_nan_is_not():
    dense = layers.Dense(3, use_bias=False)
    model = built(dense, shape=(1,))
    dense.kernel.assign([[-0.0, float("nan"), 0.0]])
    row = the_row(model)
    assert (row.nonzero_weights, row.dead_units, sum(row.histogram)) == (1, 2, 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_tiny_numbers_of_other_dtypes_are_not_zero(dtype):
    dense = layers.Dense(2, use_bias=False, dtype=dtype)
    model = built(dense, shape=(1,))
    tiny = {"float16": 1e-7, "bfloat16": 2e-38, "float64": 1e-300}[dtype]
    dense.kernel.assign(keras.ops.convert_to_tensor([[tiny, 0.0]], dtype))
    row = the_row(model)
    assert (row.nonzero_weights, row.histogram[0]) == (1, 1)


def test_histogram_puts_each_weight_into_its_quarter_decade():
    dense = layers.Dense(4, use_bias=False)
    model = built(dense, shape=(1,))
    dense.kernel.assign([[0.0, 1e-9, -0.5, 100.0]])
    histogram = the_row(model).histogram
    # log10(0.5) = -0.30 lies in [-0.5, -0.25): bin (-0.5 + 6) / 0.25 = 22 of 28; the ends are open.
    assert [(i, count) for i, count in enumerate(histogram) if count] == [(0, 1), (22, 1), (27, 1)]


@pytest.mark.parametrize(
    ("layer", "shape", "alive", "units"),
    [
        pytest.param(layers.Conv2D(4, 3), (8, 8, 2), (0, 0, 0, 1), 4, id="conv: output channels"),
        pytest.param(layers.Conv2D(4, 3, groups=2), (8, 8, 2), (0, 0, 0, 1), 4, id="grouped conv: output channels"),
        pytest.param(layers.Conv2DTranspose(4, 3), (8, 8, 2), (0, 0, 1, 0), 4, id="transposed: axis before the last"),
        pytest.param(layers.Conv1DTranspose(4, 3), (8, 2), (0, 1, 0), 4, id="transposed 1-D"),
        pytest.param(layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 3), (0, 0, 1, 1), 6, id="depthwise: pairs"),
        pytest.param(layers.DepthwiseConv1D(3, depth_multiplier=2), (8, 3), (0, 1, 1), 6, id="depthwise 1-D"),
        pytest.param(layers.EinsumDense("ab,bc->ac", 5), (4,), (0, 1), 5, id="einsum as dense"),
        pytest.param(layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (7, 4), (0, 1, 1), 6, id="einsum: heads x key"),
        pytest.param(layers.EinsumDense("abde,dec->abc", (None, 4)), (7, 2, 3), (0, 0, 1), 4, id="einsum: merge heads"),
    ],
)
def test_one_nonzero_weight_keeps_one_unit_alive(layer, shape, alive, units):
    layer = layer.__class__.from_config(layer.get_config())  # parameters live as long as the test session
    model = built(layer, shape=shape)
    fill(layer.kernel, {alive: 1.0})
    row = the_row(model)
    assert (row.units, row.dead_units, row.nonzero_weights) == (units, units - 1, 1)


def test_separable_units_are_the_pointwise_channels():
    layer = layers.SeparableConv2D(5, 3, depth_multiplier=2)
    model = built(layer, shape=(8, 8, 2))
    fill(layer.pointwise_kernel, {(0, 0, 0, 4): 1.0})
    row = the_row(model)
    assert row.weights == 3 * 3 * 2 * 2 + 1 * 1 * 4 * 5  # depthwise and pointwise
    assert (row.units, row.dead_units) == (5, 4)


def test_embedding_units_are_the_columns():
    layer = layers.Embedding(7, 3)
    model = built(layer, shape=(2,))
    fill(layer.embeddings, {(6, 1): 1.0})
    row = the_row(model)
    assert (row.weights, row.units, row.dead_units) == (21, 3, 2)


@pytest.mark.parametrize(("kind", "gates"), [("SimpleRNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_recurrent_row_is_named_by_the_layer_and_a_unit_lives_through_any_gate(kind, gates):
    layer = getattr(layers, kind)(5, name="memory")
    model = built(layer, shape=(6, 2))
    fill(layer.cell.kernel, {(0, (gates - 1) * 5 + 3): 1.0})  # unit 3 of the last gate
    fill(layer.cell.recurrent_kernel, {(0, 1): 1.0})  # unit 1 of the first gate
    row = the_row(model)
    assert (row.path, row.kind, row.shape) == ("net/memory", kind, (2, gates * 5))
    assert row.weights == (2 + 5) * gates * 5
    assert row.biases == gates * 5 * (2 if kind == "GRU" else 1)  # GRU's bias has rank 2 and is still a bias
    assert (row.units, row.dead_units) == (5, 3)


def test_convolutional_lstm_units_are_its_filters():
    layer = layers.ConvLSTM2D(3, 2)
    model = built(layer, shape=(2, 4, 4, 1))
    fill(layer.cell.kernel, {(0, 0, 0, 3 * 3 + 1): 1.0})  # gate 3, filter 1
    fill(layer.cell.recurrent_kernel, {})
    row = the_row(model)
    assert (row.kind, row.units, row.dead_units) == ("ConvLSTM2D", 3, 2)


def test_bidirectional_has_two_rows_and_stacked_cells_one_each():
    cells = [layers.LSTMCell(2, name="first"), layers.SimpleRNNCell(3, name="second")]
    stack = layers.RNN(layers.StackedRNNCells(cells, name="cells"), name="stack")
    lstm = layers.LSTM(2, return_sequences=True, name="lstm")
    model = built(layers.Bidirectional(lstm, name="both"), stack, shape=(5, 4))
    assert [(row.path, row.kind, row.units) for row in sparsity_report(model).layers] == [
        ("net/both/forward_lstm", "LSTM", 2),
        ("net/both/backward_lstm", "LSTM", 2),
        ("net/stack/cells/first", "LSTMCell", 2),
        ("net/stack/cells/second", "SimpleRNNCell", 3),
    ]


def test_attention_projections_have_rows_and_their_rank_two_biases_are_biases():
    x = keras.Input((5, 4))
    model = keras.Model(x, layers.MultiHeadAttention(2, 3)(x, x))
    rows = sparsity_report(model).layers
    assert [row.units for row in rows] == [2 * 3, 2 * 3, 2 * 3, 4]  # query, key, value; output
    assert [row.weights for row in rows] == [4 * 6, 4 * 6, 4 * 6, 6 * 4]
    assert [row.biases for row in rows] == [6, 6, 6, 4]


def test_normalization_has_biases_but_no_moving_statistics_nor_units():
    model = built(layers.BatchNormalization(name="norm"), shape=(4,))
    row = the_row(model)
    assert (row.weights, row.biases, row.nonzero_biases) == (0, 8, 4)  # gamma ones, beta zeros
    assert (row.units, row.dead_units, row.histogram, row.shape) == (0, 0, (), (4,))


def test_frozen_layers_count_as_before():
    model = built(layers.Dense(3), layers.BatchNormalization(), layers.Dense(2, trainable=False), shape=(4,))
    before = sparsity_report(model)
    model.trainable = False
    assert sparsity_report(model) == before
    assert before.weights == 4 * 3 + 3 * 2


def test_shared_layer_and_shared_variable_count_once():
    class Tied(keras.layers.Layer):
        def __init__(self, other):
            super().__init__()
            self.kernel = other.kernel

        def call(self, x):
            return x @ keras.ops.transpose(self.kernel)

    dense = layers.Dense(4, use_bias=False, name="dense")
    x = keras.Input((4,))
    y = dense(dense(x))
    model = keras.Model(x, Tied(dense)(y))
    assert [(row.path, row.weights) for row in sparsity_report(model).layers] == [("dense", 16)]


def test_wrapper_that_tracks_an_inner_kernel_leaves_it_to_its_owner():
    model = built(layers.SpectralNormalization(layers.Dense(3, name="inner")), shape=(4,))
    row = the_row(model)
    assert (row.kind, row.weights, row.biases) == ("Dense", 12, 3)


class Subclassed(keras.Model):
    """Own weight, a nested model and layers in a list."""

    def __init__(self):
        super().__init__(name="outer")
        self.inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.Dropout(0.5)], name="inner")
        self.many = [layers.Dense(2, name="b"), layers.Dense(2, name="c")]

    def build(self, shape):
        self.gate = self.add_weight(shape=(2, 2), name="gate")
        super().build(shape)

    def call(self, x):
        x = self.inner(x)
        for layer in self.many:
            x = layer(x)
        return x @ self.gate


def test_nested_and_subclassed_models_are_walked_in_order_and_own_weights_come_last():
    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    rows = sparsity_report(model).layers
    assert [(row.path, row.kind) for row in rows] == [
        ("inner/a", "Dense"),
        ("outer/b", "Dense"),
        ("outer/c", "Dense"),
        ("outer", "Subclassed"),
    ]
    assert rows[-1].weights == 4


def test_compiled_model_has_no_rows_for_metrics_seeds_or_optimizer_and_is_not_changed():
    model = built(layers.Dense(3), layers.Dropout(0.5), layers.Dense(2), shape=(4,))
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((4, 4), "float32"), np.ones((4, 2), "float32"), verbose=0)
    before = [np.asarray(v).copy() for v in model.variables]
    report = sparsity_report(model)
    assert report.parameters == model.count_params() == 4 * 3 + 3 + 3 * 2 + 2
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, np.asarray(variable))


def test_regularized_tells_our_regularizer_from_others():
    ours = SensitivityRegularizer(1e-4)
    model = built(
        layers.Dense(3, kernel_regularizer=ours),
        layers.Dense(3, kernel_regularizer="l2"),
        layers.Dense(3),
        layers.Reshape((3, 1)),
        layers.LSTM(2, recurrent_regularizer=ours),
        shape=(4,),
    )
    assert [row.regularized for row in sparsity_report(model).layers] == [True, False, False, True]


def test_model_without_variables_has_no_rows():
    assert sparsity_report(built(layers.Flatten(), shape=(2, 2))).layers == ()


def test_unbuilt_model_is_refused_with_a_remedy():
    with pytest.raises(ModelError) as caught:
        sparsity_report(keras.Sequential([layers.Dense(3)], name="fresh"))
    assert str(caught.value) == (
        "Model 'fresh' is not built, so it has no weights yet. "
        "Give it an input shape (`keras.Input`), call it once on data, or call `model.build(input_shape)`."
    )


def test_what_is_no_model_is_refused():
    with pytest.raises(ArgumentError) as caught:
        sparsity_report("model.keras")
    assert str(caught.value) == "Argument `model` must be a Keras model. Received: 'model.keras'."
