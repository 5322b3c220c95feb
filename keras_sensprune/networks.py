"""The two networks of the main job, as Keras models that end in logits."""

from __future__ import annotations

from typing import Any

from keras_sensprune.errors import choice_argument

NETWORKS = ("lenet-300-100", "lenet-5")


def build_network(name: str, regularizer: Any = None) -> Any:
    """A fresh network for 28 x 28 gray images and 10 classes.

    Args:
        name: `"lenet-300-100"` (dense layers of 300 and 100 ReLU units; 266,200 weights) or `"lenet-5"` (the Caffe
            variant: 20 and 50 filters of 5 x 5 with max pooling, 500 ReLU units; 430,500 weights).
        regularizer: put on every kernel; biases have none.

    Returns:
        A built Keras model, input (batch, 28, 28), output logits (batch, 10).

    Raises:
        ArgumentError: if the name is unknown.
    """
    import keras
    from keras import layers

    choice_argument("network", name, NETWORKS)

    def dense(units: int, activation: str | None, label: str) -> Any:
        return layers.Dense(units, activation, kernel_regularizer=regularizer, name=label)

    def conv(filters: int, label: str) -> Any:
        return layers.Conv2D(filters, 5, kernel_regularizer=regularizer, name=label)

    if name == "lenet-300-100":
        body = [layers.Flatten(), dense(300, "relu", "fc1"), dense(100, "relu", "fc2"), dense(10, None, "fc3")]
    else:
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
    return keras.Sequential([keras.Input((28, 28)), *body], name=name.replace("-", "_"))
