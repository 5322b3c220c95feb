"""The ways of training of the contract table: a line each. One line more in ROUTES, and all models are trained so."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.contracts.models import CLASSES, MODELS, Case
from tests.steps import ForeignStep, OwnStep

Data = dict[str, Any]  # the arguments of `fit` that say what it is trained on


@dataclass(frozen=True)
class Route:
    """A way of training.

    Attributes:
        fast: the model with which the fast tests take it (the slow ones with 2 replicas, which need a process).
        compile: arguments of `compile`.
        optimizer: arguments of the optimizer.
        data: what it makes of the arguments of `fit` x, y, batch_size and epochs.
        policy: the dtype policy under which the model is built.
        own: a class whose `train_step` takes the place of the model's.
        loop: whether a loop with `make_pruning_step` takes the place of `fit`.
        masked: whether the models get a mask.
        replicas: 2 for two logical CPUs, which a process must have from its beginning.
        takes: which models it can train; the other cells do not exist.
    """

    fast: str
    compile: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    data: Callable[[Data], Data] = lambda data: data
    policy: str = "float32"
    own: type | None = None
    loop: bool = False
    masked: bool = False
    replicas: int = 1
    takes: Callable[[Case], bool] = lambda case: True


def batches(data: Data) -> Iterator[tuple[Any, Any]]:
    """Pairs (x, y) of one epoch, in order."""
    size = data["batch_size"]
    for start in range(0, len(data["x"]), size):
        part = slice(start, start + size)
        yield keras.tree.map_structure(lambda a, part=part: a[part], (data["x"], data["y"]))


def of_unknown_length(data: Data) -> Data:
    signature = keras.tree.map_structure(lambda a: tf.TensorSpec((None, *a.shape[1:]), a.dtype), (data["x"], data["y"]))
    dataset = tf.data.Dataset.from_generator(lambda: batches(data), output_signature=signature)
    return {"x": dataset, "epochs": data["epochs"]}


def endless(data: Data) -> Data:
    """A Python generator, which `fit` must be told where to stop."""
    steps = sum(1 for _ in batches(data))
    generator = (batch for _ in range(data["epochs"] + 1) for batch in batches(data))
    return {"x": generator, "epochs": data["epochs"], "steps_per_epoch": steps}


def weighted(data: Data) -> Data:
    weights, labels = np.linspace(0, 2, len(data["x"]), dtype="float32"), data["y"]
    if isinstance(labels, np.ndarray) and labels.ndim > 1:  # a label per time step: Keras wants a weight for each
        weights = np.broadcast_to(weights[:, None], labels.shape)
    return data | {"sample_weight": weights}


def one_label(case: Case) -> bool:
    """Keras takes class weights for a single output with one label per example."""
    return case not in (MODELS["several outputs"], MODELS["Bidirectional"])


ROUTES = {
    "graph": Route("Conv2D", {"jit_compile": False, "steps_per_execution": 1}),
    "jit": Route("Dense", {"jit_compile": True}),
    "eager": Route("LSTM", {"run_eagerly": True}),
    "four steps per execution": Route("DepthwiseConv2D", {"steps_per_execution": 4}),  # of five
    "an epoch per execution": Route("BatchNormalization", {"steps_per_execution": 5}),
    "gradient accumulation": Route("Dense", optimizer={"gradient_accumulation_steps": 2}),
    "mixed_float16": Route("SeparableConv2D", policy="mixed_float16"),
    "mixed_bfloat16": Route("MultiHeadAttention", policy="mixed_bfloat16"),
    "class_weight": Route("Dropout", data=lambda d: d | {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}, takes=one_label),
    "sample_weight": Route("subclassed", data=weighted),
    "masks": Route("Embedding", masked=True, takes=lambda case: case.masks),
    "validation_split": Route("nested", data=lambda d: d | {"validation_split": 0.25}),
    "unknown length": Route("tied weights", data=of_unknown_length),
    "endless generator": Route("shared layer", data=endless),
    "own train_step": Route("several outputs", own=OwnStep),
    "foreign train_step": Route("nested", own=ForeignStep),
    "custom loop": Route("Dense", loop=True),
    "two replicas": Route("Dense", replicas=2),
}
assert CLASSES == 3  # the class weights
