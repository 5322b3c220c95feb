"""Keras 3 -> tf_keras: run the functional graph of the model on tf_keras layers."""

from __future__ import annotations

import collections
from typing import Any

import keras
import numpy as np

from keras_sensprune.errors import ModelError
from keras_sensprune.export import convert, verify
from keras_sensprune.tfmot.importing import import_tf_keras, quiet_warnings
from keras_sensprune.tfmot.layers import inner_graph, settings_of
from keras_sensprune.training.targets import check_model
from keras_sensprune.untouched import model_untouched

_FUSING = ("Dense", "Conv2D", "DepthwiseConv2D")


def to_tf_keras(model: Any, *, data: Any = None) -> Any:
    """A copy of a Keras 3 model in tf_keras (Keras 2), the only Keras that TF-MOT takes.

    The graph of the model is run on tf_keras layers of the same settings and weights, each made once, so that sharing
    is kept; models inside the model are opened up. A ReLU right after a linear Dense, Conv2D or DepthwiseConv2D
    becomes that layer's activation: TF-MOT leaves the weights before a separate ReLU out of quantization. A layer
    Activation("relu6") becomes ReLU(6), which TF-MOT knows. At the end
    both models answer the same inputs. Regularizers, constraints and initializers are not taken along.

    Args:
        model: a built Sequential or functional Keras 3 model. It is not changed.
        data: example inputs to compare on, as for `model.predict`; by default 16 seeded random ones. Needed for
            inputs with a free size beside the batch.

    Returns:
        A functional tf_keras model, not compiled.

    Raises:
        ArgumentError: if `model` is no Keras 3 model, or `data` does not fit it.
        ModelError: if a layer or setting is unknown to tf_keras or defined differently there (it is named), or the
            outputs differ by more than rounding.
        MissingPackageError: if tf_keras is not installed.

    Example:
        >>> import keras
        >>> from keras_sensprune import to_tf_keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.ReLU()])
        >>> copy = to_tf_keras(model)
        >>> [type(layer).__name__ for layer in copy.layers], copy.layers[1].activation.__name__
        (['InputLayer', 'Dense'], 'relu')
    """
    check_model(model)
    graph = inner_graph(model)
    inputs = convert.model_inputs(model, data)
    arrays = convert.example_arrays(inputs, data)
    tf_keras = import_tf_keras()
    with quiet_warnings(), model_untouched(model):
        builder = _Builder(tf_keras, _fusions(graph))
        tensors = [
            tf_keras.Input(batch_shape=shape, dtype=dtype, name=name)
            for name, shape, dtype in zip(inputs.names, inputs.shapes, inputs.dtypes, strict=True)
        ]
        outputs = builder.run(graph, tensors)
        copy = tf_keras.Model(_single(tensors), outputs, name=model.name)
        builder.copy_weights()
        expected = list(convert.keras_outputs(model, inputs, arrays).values())
        received = tf_keras_outputs(copy, [arrays[name] for name in inputs.names])
    check_agreement(model.name, expected, received)
    return copy


class _Builder:
    """Makes each layer once, and remembers whose weights it gets."""

    def __init__(self, tf_keras: Any, fusions: dict[int, tuple[int, str]]) -> None:
        self.tf_keras = tf_keras
        self.fused = dict(fusions.values())
        self.gone = set(fusions)
        self.pairs: dict[int, tuple[Any, Any]] = {}
        self.names: collections.Counter[str] = collections.Counter()

    def run(self, graph: Any, tensors: Any) -> Any:
        return graph._run_through_graph(tensors, operation_fn=self.twin)

    def twin(self, operation: Any) -> Any:
        """What is called in the place of `operation`."""
        if id(operation) in self.gone:
            return lambda x, **_: x
        if isinstance(operation, keras.Model):
            graph = inner_graph(operation)
            return lambda *args, **_: self.run(graph, keras.tree.flatten(args))
        if not isinstance(operation, keras.layers.Layer):
            kind = type(operation).__name__
            raise ModelError(
                f"The model has the operation {kind} outside of a layer; use a layer (such as Add) instead."
            )
        if id(operation) not in self.pairs:
            settings = settings_of(operation, to_keras_3=False)
            if id(operation) in self.fused:
                settings["activation"] = self.fused[id(operation)]
            kind = type(operation).__name__
            if kind == "Activation" and settings["activation"] == "relu6":
                kind, settings = "ReLU", {"max_value": 6.0}  # the same function; TF-MOT takes it in this form only
            made = getattr(self.tf_keras.layers, kind)(name=self.name(operation), **settings)
            made.trainable = operation.trainable
            self.pairs[id(operation)] = (operation, made)
        made = self.pairs[id(operation)][1]
        return lambda *args, **kwargs: _call(operation, made, args, kwargs)

    def name(self, layer: Any) -> str:
        self.names[layer.name] += 1
        count = self.names[layer.name]
        return layer.name if count == 1 else f"{layer.name}_{count}"

    def copy_weights(self) -> None:
        for layer, made in self.pairs.values():
            set_weights(made, [v.numpy() for v in weights_of(layer)], layer.name)


def _call(operation: Any, made: Any, args: Any, kwargs: Any) -> Any:
    if any(value is not None and key != "training" for key, value in kwargs.items()):
        names = ", ".join(sorted(kwargs))
        raise ModelError(f"Layer {operation.name!r} is called with {names}; only its input can be moved to tf_keras.")
    return made(*args)


def weights_of(layer: Any) -> list[Any]:
    """The weights of a layer without its random state, trainable ones first."""
    seeds = ("seed_generator_state", "seed_generator")
    return [v for v in layer.weights if v.name.split("/")[-1].split(":")[0] not in seeds]


def set_weights(made: Any, values: list[np.ndarray], name: str) -> None:
    """Copies weights in order.

    Raises:
        ModelError: if number or shapes differ.
    """
    shapes, wanted = [v.shape for v in values], [tuple(v.shape) for v in weights_of(made)]
    if shapes != wanted:
        raise ModelError(f"The weights of layer {name!r} have the shapes {shapes}; the copy wants {wanted}.")
    for variable, value in zip(weights_of(made), values, strict=True):
        variable.assign(value)


def _fusions(graph: Any) -> dict[int, tuple[int, str]]:
    """id(activation layer) -> (id(layer before it), activation), where both are used once and nobody else looks.

    Models inside the model are looked into as well; a layer counts as used wherever a call of its model leads to it.
    """
    graphs = _graphs(graph)
    calls = collections.Counter(id(node.operation) for inner in graphs for node in _nodes(inner))
    found: dict[int, tuple[int, str]] = {}
    for inner in graphs:
        nodes = _nodes(inner)
        readers = collections.Counter(id(x) for node in nodes for x in node.input_tensors)
        readers.update(id(x) for x in inner.outputs)
        producer = {id(x): node.operation for node in nodes for x in node.outputs}
        for node in nodes:
            name = plain_relu(node.operation)
            source = node.input_tensors[0] if node.input_tensors else None
            before = producer.get(id(source))
            if name is None or before is None or type(before).__name__ not in _FUSING or readers[id(source)] != 1:
                continue
            once = calls[id(before)] == 1 and calls[id(node.operation)] == 1
            if once and getattr(before.activation, "__name__", "") == "linear":
                found[id(node.operation)] = (id(before), name)
    return found


def _nodes(graph: Any) -> list[Any]:
    return [node for found in graph._nodes_by_depth.values() for node in found if not node.is_input]


def _graphs(graph: Any) -> list[Any]:
    """The graph, and those of the models inside it, each as often as it is called."""
    found = [graph]
    for outer in found:  # grows while it is read
        found += [inner_graph(n.operation) for n in _nodes(outer) if isinstance(n.operation, keras.Model)]
    return found


def plain_relu(layer: Any) -> str | None:
    """Name of the activation if the layer computes relu and nothing else."""
    kind = type(layer).__name__
    if kind == "ReLU":
        return None if layer.negative_slope or layer.threshold or layer.max_value is not None else "relu"
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    return "relu" if kind == "Activation" and name == "relu" else None


def tf_keras_outputs(model: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What a tf_keras model answers in inference, (examples, ...) per output."""
    import tensorflow as tf

    size = next((t.shape[0] for t in model.inputs if t.shape[0]), 64)
    parts = []
    for start in range(0, len(arrays[0]), size):
        chunk = _single([tf.constant(a[start : start + size]) for a in arrays])
        parts.append([y.numpy() for y in tf.nest.flatten(model(chunk, training=False))])
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def check_agreement(name: str, expected: list[np.ndarray], received: list[np.ndarray]) -> None:
    """Both models must agree but for rounding in float32: the tolerance is derived in `export.verify`.

    Raises:
        ModelError: if not.
    """
    for number, (a, b) in enumerate(zip(expected, received, strict=True)):
        worst = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0))
        allowed = verify.ABSOLUTE + verify.RELATIVE * float(np.max(np.abs(a), initial=0.0))
        if not worst <= allowed:
            raise ModelError(
                f"The copy of model {name!r} differs by {worst:.3g} in output {number}, more than {allowed:.3g}."
            )


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
