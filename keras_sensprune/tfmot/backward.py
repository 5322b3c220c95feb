"""tf_keras -> Keras 3: for models that were pruned by TF-MOT."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_sensprune.errors import ModelError, argument_error
from keras_sensprune.export import convert
from keras_sensprune.tfmot.forward import check_agreement, set_weights, tf_keras_outputs, weights_of
from keras_sensprune.tfmot.importing import import_tf_keras, quiet_warnings
from keras_sensprune.tfmot.layers import settings_of

_STRIP = {
    "ClusterWeights": "Strip it first, with `tfmot.clustering.keras.strip_clustering`.",
    "QuantizeWrapper": "A quantization-aware model goes to a file with `export_quantized`.",
    "QuantizeWrapperV2": "A quantization-aware model goes to a file with `export_quantized`.",
}


def from_tf_keras(model: Any, *, data: Any = None) -> keras.Model:
    """A copy of a tf_keras model in Keras 3, for instance of one that TF-MOT has pruned.

    Pruning wrappers are stripped (as `tfmot.sparsity.keras.strip_pruning` does); the copy then can be reported,
    compacted and exported like any other model. Both models answer the same inputs at the end.

    Args:
        model: a built Sequential or functional tf_keras model. It is not changed.
        data: example inputs to compare on, as for `model.predict`; by default 16 seeded random ones.

    Returns:
        A functional Keras 3 model, not compiled.

    Raises:
        ArgumentError: if `model` is no tf_keras model, or `data` does not fit it.
        ModelError: if a layer or setting is unknown to Keras 3 or defined differently there, or the outputs differ.
        MissingPackageError: if tf_keras is not installed.

    Example:
        >>> import keras
        >>> from keras_sensprune import from_tf_keras, sparsity_report, to_tf_keras
        >>> model = to_tf_keras(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="fc")]))
        >>> sparsity_report(from_tf_keras(model)).weights
        8
    """
    tf_keras = import_tf_keras()
    if not isinstance(model, tf_keras.Model):
        raise argument_error("model", "a tf_keras model", model)
    if not getattr(model, "_is_graph_network", False):
        raise ModelError(f"Model {model.name!r} is neither a built Sequential nor a functional model.")
    with quiet_warnings():
        builder = _Builder(tf_keras)
        tensors = [keras.Input(batch_shape=tuple(t.shape), dtype=t.dtype.name, name=t.name) for t in model.inputs]
        outputs = builder.run(model, tensors)
        copy = keras.Model(tensors[0] if len(tensors) == 1 else tensors, _packed(model, outputs), name=model.name)
        for layer, made in builder.pairs.values():
            set_weights(made, [np.asarray(v.numpy()) for v in weights_of(layer)], layer.name)
        inputs = convert.model_inputs(copy, data)
        arrays = convert.example_arrays(inputs, data)
        expected = tf_keras_outputs(model, [arrays[name] for name in inputs.names])
        received = list(convert.keras_outputs(copy, inputs, arrays).values())
    check_agreement(model.name, expected, received)
    return copy


def _packed(model: Any, outputs: list[Any]) -> Any:
    import tensorflow as tf

    return tf.nest.pack_sequence_as(model.output, outputs) if tf.nest.is_nested(model.output) else outputs[0]


def stripped(layer: Any) -> Any:
    """The layer inside a pruning wrapper, or the layer itself."""
    ours = type(layer).__module__.startswith("tensorflow_model_optimization")
    return layer.layer if ours and type(layer).__name__ == "PruneLowMagnitude" else layer


class _Builder:
    def __init__(self, tf_keras: Any) -> None:
        self.tf_keras = tf_keras
        self.pairs: dict[int, tuple[Any, Any]] = {}
        self.names: set[str] = set()

    def run(self, model: Any, tensors: list[Any]) -> list[Any]:
        """The outputs of the tf_keras graph, computed by Keras 3 layers."""
        values = {str(id(t)): x for t, x in zip(model.inputs, tensors, strict=True)}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input or any(str(id(t)) not in values for t in node.keras_inputs):
                    continue
                results = self.call(node, [values[str(id(t))] for t in node.keras_inputs])
                for key, y in zip(node.flat_output_ids, keras.tree.flatten(results), strict=True):
                    values[str(key)] = y
        return [values[str(id(t))] for t in model.outputs]

    def call(self, node: Any, inputs: list[Any]) -> Any:
        layer = stripped(node.layer)
        given = {k: v for k, v in node.call_kwargs.items() if k != "training" and v is not None}
        if given or len(node.call_args) > 1:
            raise ModelError(f"Layer {layer.name!r} is called with more than its input; that cannot be moved.")
        if isinstance(layer, self.tf_keras.Model):
            if not getattr(layer, "_is_graph_network", False):
                raise ModelError(f"Model {layer.name!r} inside the model has no graph that can be followed.")
            return self.run(layer, inputs)
        if type(layer).__name__ in _STRIP:
            raise ModelError(f"Layer {layer.name!r} is a {type(layer).__name__}. {_STRIP[type(layer).__name__]}")
        if id(layer) not in self.pairs:
            settings = settings_of(layer, to_keras_3=True)
            name = layer.name if layer.name not in self.names else f"{layer.name}_{len(self.names)}"
            self.names.add(name)
            made = getattr(keras.layers, type(layer).__name__)(name=name, **settings)
            made.trainable = layer.trainable
            self.pairs[id(layer)] = (layer, made)
        nested = isinstance(node.call_args[0], (list, tuple))
        return self.pairs[id(layer)][1](inputs if nested else inputs[0])
