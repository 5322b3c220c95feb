"""The networks of the demo and of the recipes, as Keras models that end in logits."""

from __future__ import annotations

from typing import Any

from keras_sensprune.errors import choice_argument

INPUT_SHAPES: dict[str, tuple[int, ...]] = {"lenet-300-100": (28, 28), "lenet-5": (28, 28), "cifar-small": (32, 32, 3)}
NETWORKS = tuple(INPUT_SHAPES)


def input_shape(name: str) -> tuple[int, ...]:
    """The shape of one image for a network.

    Raises:
        ArgumentError: if the name is unknown.
    """
    return INPUT_SHAPES[choice_argument("network", name, NETWORKS)]


def build_network(name: str, regularizer: Any = None) -> Any:
    """A fresh network for small images and 10 classes.

    Args:
        name: `"lenet-300-100"` (dense layers of 300 and 100 ReLU units; 266,200 weights), `"lenet-5"` (the Caffe
            variant: 20 and 50 filters of 5 x 5 with max pooling, 500 ReLU units; 430,500 weights), both for 28 x 28
            gray images; or `"cifar-small"` (16, 32 and 64 filters of 3 x 3 with max pooling, 128 ReLU units; 155,824
            weights) for 32 x 32 color images.
        regularizer: put on every kernel; biases have none.

    Returns:
        A built Keras model, input (batch, ...) with the shape of an image, output logits (batch, 10).

    Raises:
        ArgumentError: if the name is unknown.
    """
    import keras
    from keras import layers

    shape = input_shape(name)

    def dense(units: int, activation: str | None, label: str) -> Any:
        return layers.Dense(units, activation, kernel_regularizer=regularizer, name=label)

    def conv(filters: int, label: str, size: int = 5, **options: Any) -> Any:
        return layers.Conv2D(filters, size, kernel_regularizer=regularizer, name=label, **options)

    if name == "lenet-300-100":
        body = [layers.Flatten(), dense(300, "relu", "fc1"), dense(100, "relu", "fc2"), dense(10, None, "fc3")]
    elif name == "lenet-5":
        body = [
            layers.Reshape((28, 28, 1)),
            conv(20, "conv1"),
            layers.MaxPooling2D(),
            conv(50, "conv2"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            dense(500, "relu", "fc1"),
            dense(10, None, "fc2"),
        ]
    else:
        body = []
        for number, filters in enumerate((16, 32, 64), 1):
            body += [conv(filters, f"conv{number}", 3, padding="same", activation="relu"), layers.MaxPooling2D()]
        body += [layers.Flatten(), dense(128, "relu", "fc1"), dense(10, None, "fc2")]
    return keras.Sequential([keras.Input(shape), *body], name=name.replace("-", "_"))


def compile_network(model: Any, learning_rate: Any, label_smoothing: float) -> None:
    """Compiles a network of this file: SGD, cross-entropy of the logits with one-hot labels, accuracy."""
    import keras

    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    model.compile(keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"])
