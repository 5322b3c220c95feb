"""Which weights are pruned, and how a built model is marked afterwards."""

import keras
import numpy as np
import pytest

from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, add_regularizer
from keras_sensprune.errors import ArgumentError, ModelError
from keras_sensprune.training.targets import owners, prunable_weights

HOW = (
    "has no trainable weight with a SensitivityRegularizer, so there is nothing to prune. Build its layers with "
    "`kernel_regularizer=SensitivityRegularizer(1e-4)`, or call `add_regularizer(model, SensitivityRegularizer(1e-4))`."
)


def mixed_model():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.SeparableConv2D(5, 3, name="separable")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Reshape((4, 5))(x)
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = keras.layers.Bidirectional(keras.layers.LSTM(3), name="both")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


def marked(model):
    return [v.path for v in model.trainable_variables if isinstance(v.regularizer, SensitivityRegularizer)]


def fit_once(model, *callbacks):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, *model.input_shape[1:])).astype("float32")
    y = rng.normal(size=(8, *model.output_shape[1:])).astype("float32")
    model.compile("sgd", "mse", run_eagerly=True)
    return model.fit(x, y, verbose=0, callbacks=list(callbacks)).history


def test_every_kernel_is_marked_and_save_and_clone_keep_it(tmp_path):
    model = mixed_model()
    paths = add_regularizer(model, SensitivityRegularizer(1e-3))
    assert sorted(paths) == sorted(marked(model))
    kinds = ["conv/", "depthwise/", "separable/", "attention/", "both/", "head/"]
    assert all(any(kind in path for path in paths) for kind in kinds)
    # conv, depthwise, head: 1 each; separable: 2; attention: query, key, value, output; LSTM: 2 kernels x 2 directions
    assert len(paths) == 3 + 2 + 4 + 4
    assert len(marked(keras.models.clone_model(model))) == len(paths)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(marked(loaded)) == len(paths)
    history = fit_once(loaded, PruneAtEpochEnd(0.05))
    assert history["sparsity"][0] > 0


@pytest.mark.slow
def test_a_keras_applications_model_is_marked_and_cloned():
    """It is fitted in tests/contracts, and fitted, saved and loaded in examples/pretrained.py."""
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=4)
    paths = add_regularizer(model, SensitivityRegularizer(1e-3))
    assert len(paths) == 53  # 52 convolutions (17 of them depthwise) and the classifier
    assert len(marked(keras.models.clone_model(model))) == len(paths)


def test_layers_can_be_named_and_embeddings_only_so():
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(10, 3, name="table")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.Flatten()(x)), name="net")
    assert add_regularizer(model, SensitivityRegularizer(1e-3)) == ["head/kernel"]
    assert add_regularizer(model, SensitivityRegularizer(2e-3), layers="table") == ["table/embeddings"]
    assert model.get_layer("table").embeddings_regularizer.strength == 2e-3
    assert model.get_layer("head").kernel_regularizer.strength == 1e-3


def test_a_wrong_layer_name_changes_nothing():
    layers = [keras.layers.Dense(2, name="a"), keras.layers.ReLU(name="b")]
    model = keras.Sequential([keras.Input((4,), name="x"), *layers])
    with pytest.raises(ArgumentError) as caught:
        add_regularizer(model, SensitivityRegularizer(1e-3), layers=["a", "c"])
    assert str(caught.value) == (
        "Argument `layers` must be names or layers of this model. Received: 'c'. Its layers are: a, b, x."
    )
    with pytest.raises(ArgumentError) as caught:
        add_regularizer(model, SensitivityRegularizer(1e-3), layers=["a", "b"])
    assert str(caught.value) == "Argument `layers` must be layers with a kernel. Received: 'b'. Leave it out."
    assert marked(model) == []


def test_another_regularizer_is_not_replaced_silently():
    layer = keras.layers.Dense(2, name="a", kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((4,)), layer])
    with pytest.raises(ArgumentError) as caught:
        add_regularizer(model, SensitivityRegularizer(1e-3))
    assert str(caught.value) == (
        "Argument `layers` must be layers without another regularizer. Received: 'a: L2'. Remove that regularizer "
        "first, or leave the layer out."
    )


def test_a_regularizer_of_another_class_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ArgumentError) as caught:
        add_regularizer(model, "l2")
    assert str(caught.value) == "Argument `regularizer` must be a SensitivityRegularizer. Received: 'l2'."


def test_a_model_without_regularizer_says_how_to_add_one():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="plain")
    with pytest.raises(ModelError) as caught:
        fit_once(model, PruneAtEpochEnd())
    assert str(caught.value) == f"Model 'plain' {HOW}"


def test_an_unbuilt_model_says_how_to_build_it():
    model = keras.Sequential([keras.layers.Dense(2)], name="unbuilt")
    with pytest.raises(ModelError) as caught:
        prunable_weights(model)
    assert str(caught.value) == (
        "Model 'unbuilt' is not built, so it has no weights yet. Give it an input shape (`keras.Input`), call it once "
        "on data, or call `model.build(input_shape)`."
    )


def test_what_is_no_model_is_refused():
    with pytest.raises(ArgumentError) as caught:
        prunable_weights([1])
    assert str(caught.value) == "Argument `model` must be a Keras model. Received: [1]."


def test_a_shared_weight_is_one_target_and_frozen_layers_are_left_alone():
    shared = keras.layers.Dense(4, kernel_regularizer=SensitivityRegularizer(1e-3))
    frozen = keras.layers.Dense(4, kernel_regularizer=SensitivityRegularizer(1e-3), trainable=False)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, frozen(shared(shared(inputs))))
    (target,) = prunable_weights(model)
    assert target.variable is shared.kernel
    assert target.layer is shared


def test_the_owner_is_the_innermost_layer():
    wrapped = keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(1e-3))
    model = keras.Sequential([keras.Input((4,)), keras.layers.SpectralNormalization(wrapped)])
    assert owners(model)[id(wrapped.kernel)] is wrapped


def test_one_regularizer_serves_any_weight_of_a_layer():
    r = SensitivityRegularizer(1e-2)
    layer = keras.layers.Dense(3, kernel_regularizer=r, bias_regularizer=r)
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.set_weights([np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3), np.array([0.9, 0.01, 0.9], "float32")])
    history = fit_once(model, PruneAtEpochEnd(0.3))
    zeros = sum(int(np.sum(w == 0)) for w in layer.get_weights())
    assert 0 < zeros < 15
    assert history["sparsity"] == [pytest.approx(zeros / 15)]
    assert len(prunable_weights(model)) == 2
