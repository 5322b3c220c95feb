"""The models of the contract table: a short function each. One line more in MODELS, and a model is in every route.

A function gets the regularizer and the layers that make a mask (none in most routes), and returns a built model, or a
list of layers: then the table puts an input before them and a regularized head of three logits after them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers as L

from keras_sensprune import SensitivityRegularizer, add_regularizer

CLASSES, TOKENS = 3, 11


@dataclass(frozen=True)
class Case:
    """A model of the table.

    Attributes:
        shape: of one example.
        build: (regularizer, mask layers) -> a model, or a list of layers.
        masks: whether it can take a mask.
        tokens: whether inputs are integers below TOKENS.
        heavy: whether a cell takes too long for the fast tests.
    """

    shape: tuple[int, ...]
    build: Callable[[Any, list[Any]], Any]
    masks: bool = False
    tokens: bool = False
    heavy: bool = False


def multi_output(r, mask):
    inputs = keras.Input((6,))
    body = L.Dense(8, "relu", kernel_regularizer=r)(inputs)
    kind = L.Dense(CLASSES, kernel_regularizer=r, name="kind")(body)
    return keras.Model(inputs, {"kind": kind, "size": L.Dense(1, kernel_regularizer=r, name="size")(body)})


def shared(r, mask):
    """One layer called twice."""
    inputs = keras.Input((6,))
    layer = L.Dense(6, "tanh", kernel_regularizer=r)
    return keras.Model(inputs, L.Dense(CLASSES, kernel_regularizer=r)(layer(layer(inputs)) + inputs))


class Own(keras.Model):
    """What Keras asks of a subclassed model that has arguments."""

    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def get_config(self):
        return {"strength": self.strength}


class Tied(Own):
    """One matrix that embeds tokens and, transposed, makes the logits."""

    def __init__(self, strength):
        super().__init__(strength)
        self.embedding = L.Embedding(CLASSES, 6, embeddings_regularizer=SensitivityRegularizer(strength))
        self.mixing = L.Dense(6, "tanh", kernel_regularizer=SensitivityRegularizer(strength))

    def call(self, x):
        mean = keras.ops.mean(self.embedding(x % CLASSES), axis=1)
        return keras.ops.matmul(self.mixing(mean), keras.ops.transpose(self.embedding.embeddings))


def tied(r, mask):
    model = Tied(r.strength)
    model(np.zeros((1, 5), "int32"))
    return model


def nested(r, mask):
    inner = keras.Sequential([keras.Input((6,)), L.Dense(8, "relu", kernel_regularizer=r)], name="inner")
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(CLASSES, kernel_regularizer=r)(inner(inputs)))


class Subclassed(Own):
    """Layers in a list, a branch that depends on `training`."""

    def __init__(self, strength):
        super().__init__(strength)
        sizes = {"relu": 8, "linear": CLASSES}
        self.stack = [L.Dense(n, a, kernel_regularizer=SensitivityRegularizer(strength)) for a, n in sizes.items()]
        self.noise = L.GaussianNoise(0.1, seed=5)

    def call(self, x, training=False):
        hidden = self.stack[0](x)
        return self.stack[1](self.noise(hidden, training=training) if training else hidden)


def subclassed(r, mask):
    model = Subclassed(r.strength)
    model(np.zeros((1, 6), "float32"))
    return model


def attention(r, mask):
    inputs = keras.Input((5, 4))
    x = inputs
    for layer in mask:
        x = layer(x)
    x = L.MultiHeadAttention(2, 3, kernel_regularizer=r)(x, x)
    return keras.Model(inputs, L.Dense(CLASSES, kernel_regularizer=r)(L.GlobalAveragePooling1D()(x)))


def application(name, **options):
    """A model of `keras.applications`, already built when it gets the regularizer."""

    def build(r, mask):
        make = getattr(keras.applications, name)
        settings = {"weights": None, "input_shape": (32, 32, 3), "classes": CLASSES, "classifier_activation": None}
        model = make(**settings, **options)
        add_regularizer(model, r)
        return model

    return build


def recurrent(layer, r, **options):
    return layer(5, kernel_regularizer=r, recurrent_regularizer=r, **options)


SERIES, IMAGE = (5, 4), (8, 8, 3)
MODELS = {
    "Dense": Case((6,), lambda r, mask: [L.Dense(8, "relu", kernel_regularizer=r)]),
    "BatchNormalization": Case((6,), lambda r, mask: [L.Dense(8, kernel_regularizer=r), L.BatchNormalization()]),
    "Dropout": Case((6,), lambda r, mask: [L.Dense(8, "relu", kernel_regularizer=r), L.Dropout(0.3, seed=3)]),
    "several outputs": Case((6,), multi_output),
    "shared layer": Case((6,), shared),
    "tied weights": Case((5,), tied, tokens=True),
    "nested": Case((6,), nested),
    "subclassed": Case((6,), subclassed),
    "LSTM": Case(SERIES, lambda r, mask: [*mask, recurrent(L.LSTM, r)], masks=True),
    "GRU": Case(SERIES, lambda r, mask: [*mask, recurrent(L.GRU, r)], masks=True),
    "Bidirectional": Case(  # a class for each position
        SERIES,
        lambda r, mask: [*mask, L.Bidirectional(recurrent(L.LSTM, r, return_sequences=True))],
        masks=True,
        heavy=True,
    ),
    "Embedding": Case(
        (5,),
        lambda r, mask: [
            L.Embedding(TOKENS, 6, embeddings_regularizer=r, mask_zero=bool(mask)),
            L.GlobalAveragePooling1D(),
        ],
        masks=True,
        tokens=True,
    ),
    "MultiHeadAttention": Case(SERIES, attention, masks=True),
    "Conv2D": Case(IMAGE, lambda r, mask: [L.Conv2D(4, 3, activation="relu", kernel_regularizer=r), L.Flatten()]),
    "SeparableConv2D": Case(
        IMAGE,
        lambda r, mask: [
            L.SeparableConv2D(4, 3, activation="relu", depthwise_regularizer=r, pointwise_regularizer=r),
            L.GlobalAveragePooling2D(),
        ],
    ),
    "DepthwiseConv2D": Case(
        IMAGE,
        lambda r, mask: [L.DepthwiseConv2D(3, activation="relu", depthwise_regularizer=r), L.GlobalAveragePooling2D()],
    ),
    "MobileNetV2": Case((32, 32, 3), application("MobileNetV2", alpha=0.35), heavy=True),
    "EfficientNetB0": Case((32, 32, 3), application("EfficientNetB0"), heavy=True),
}


def model_of(case: Case, strength: float, masked: bool = False) -> Any:
    """A built model with fixed initial weights, not compiled."""
    keras.utils.set_random_seed(0)
    regularizer = SensitivityRegularizer(strength)
    built = case.build(regularizer, [L.Masking()] if masked else [])
    if isinstance(built, keras.Model):
        return built
    inputs = keras.Input(case.shape, dtype="int32" if case.tokens else "float32")
    return keras.Sequential([inputs, *built, L.Dense(CLASSES, kernel_regularizer=regularizer)])


def examples(case: Case, model: Any, count: int) -> tuple[Any, Any]:
    """(x, y): the second half of some series is zero, which a mask takes as padding."""
    rng = np.random.default_rng(0)
    shape = (count, *case.shape)
    x = rng.integers(1, TOKENS, shape) if case.tokens else rng.normal(0.3, 1, shape).astype("float32")
    if case.masks:
        x[::2, 3:] = 0

    def targets(output: Any) -> Any:
        lead, size = (count, *output.shape[1:-1]), output.shape[-1]
        return rng.integers(0, CLASSES, lead) if size == CLASSES else rng.normal(size=(*lead, 1)).astype("float32")

    return x, keras.tree.map_structure(targets, model(x[:1]))


def loss_of(y: Any) -> Any:
    """The loss that goes with the targets."""
    if isinstance(y, dict):
        return {name: loss_of(part) for name, part in y.items()}
    return "mse" if y.dtype == "float32" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
