"""Quantization-aware training that keeps zeros."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_sensprune.errors import ModelError, integer_argument
from keras_sensprune.records import KeptZerosRecord
from keras_sensprune.tfmot.backward import from_tf_keras
from keras_sensprune.tfmot.fitting import fit_keeping_zeros, fit_options, set_back, training_data
from keras_sensprune.tfmot.forward import plain_relu, to_tf_keras
from keras_sensprune.tfmot.importing import import_tf_keras, import_tfmot, quiet_warnings

# What TF-MOT can train for int8. Weights: Dense and Conv2D are kept sparse by its scheme, DepthwiseConv2D by our mask,
# and so is a layer before a Concatenate, which TF-MOT gives another quantizer.
WEIGHTED = {"Dense": "TF-MOT", "Conv2D": "TF-MOT", "DepthwiseConv2D": "mask"}
WEIGHTLESS = {
    "InputLayer", "ReLU", "LeakyReLU", "Softmax", "Activation", "Concatenate", "Add", "Flatten", "Reshape", "Permute",
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D",
    "AveragePooling1D", "AveragePooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "MaxPooling2D", "UpSampling2D",
}  # fmt: skip
ACTIVATIONS = {"linear", "relu", "swish", "silu", "gelu", "softmax", "sigmoid", "tanh"}


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A model after `quantize_aware`.

    Attributes:
        model: the tf_keras model with quantization in it; for `export_quantized`, or to be trained further.
        layers: what became of the zeros, per layer.
        kernels: per layer name the variable and the mask of what may be nonzero.
    """

    model: Any
    layers: tuple[KeptZerosRecord, ...]
    kernels: Mapping[str, tuple[Any, np.ndarray]] = dataclasses.field(repr=False)


def quantize_aware(
    model: Any,
    data: Any,
    *,
    loss: Any,
    optimizer: Any = "adam",
    epochs: int = 1,
    batch_size: int = 32,
    verbose: int = 0,
) -> QuantizedModel:
    """Train a pruned model further with int8 rounding in its graph (TF-MOT), so that no zero is lost.

    A Keras 3 model is copied to tf_keras first (`to_tf_keras`, which also fuses activations, so that TF-MOT leaves no
    layer out). Dense and Conv2D are trained in TF-MOT's scheme that preserves pruning; DepthwiseConv2D, which the
    scheme leaves out, and all others are masked after each step. In the end every entry that was zero is zero.

    Args:
        model: a pruned Keras 3 or tf_keras model, Sequential or functional, also with TF-MOT's pruning wrappers. It is
            not changed.
        data: training examples (x, y), or a `tf.data.Dataset` of batches.
        loss: name of a loss, a loss of tf_keras, or a function (y, y_pred).
        optimizer: name of an optimizer of tf_keras, or such an optimizer.
        epochs: passes over the data; at least 1, because the ranges of the activations are learnt in them.
        batch_size: examples per step, if `data` are arrays.
        verbose: what `fit` prints, as in Keras.

    Returns:
        A `QuantizedModel`, for `export_quantized`.

    Raises:
        ArgumentError: if an argument is not allowed.
        ModelError: if a layer cannot be trained for int8 (it is named), or a zero was lost.
        MissingPackageError: if TF-MOT is not installed.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import quantize_aware
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="fc")])
        >>> model.set_weights([np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]), np.zeros(2)])
        >>> x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
        >>> quantized = quantize_aware(model, (x, x[:, :2]), loss="mse")
        >>> quantized.layers[0].zeros_before, quantized.layers[0].zeros_after
        (4, 4)
    """
    options = fit_options(loss, optimizer, epochs, batch_size, verbose)
    integer_argument("epochs", epochs, 1)
    examples = training_data(data)
    tf_keras, tfmot = import_tf_keras(), import_tfmot()
    source = to_tf_keras(from_tf_keras(model) if isinstance(model, tf_keras.Model) else model)
    check_layers(source)
    masks = {layer.name: _kernel(layer).numpy() != 0 for layer in source.layers if type(layer).__name__ in WEIGHTED}
    kinds = {layer.name: WEIGHTED.get(type(layer).__name__, "") for layer in source.layers}
    trained = _quantized(tfmot, source)
    kinds |= {name: "mask" for name in masks if not _preserved(trained, name)}
    kept = {name: (_wrapped_kernel(trained, name, mask), mask) for name, mask in masks.items()}
    restored = fit_keeping_zeros(trained, examples, kept, options)
    return QuantizedModel(trained, _records(kept, restored, kinds), kept)


def _quantized(tfmot: Any, source: Any) -> Any:
    """The model with quantization in it.

    Raises:
        ModelError: if TF-MOT refuses it.
    """
    try:
        with quiet_warnings():
            scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
            quantize = tfmot.quantization.keras
            return quantize.quantize_apply(quantize.quantize_annotate_model(source), scheme)
    except Exception as error:  # TF-MOT raises many types; in each case the model cannot be trained for int8
        raise ModelError(
            f"TF-MOT cannot train the model {source.name!r} for int8: {error} Use export_tflite(model, ..., "
            "quantize='int8') instead."
        ) from error


def _records(
    kept: Mapping[str, tuple[Any, np.ndarray]], restored: Mapping[str, int], kinds: Mapping[str, str]
) -> tuple[KeptZerosRecord, ...]:
    """One record per layer.

    Raises:
        ModelError: if an entry that was zero is not.
    """
    set_back(kept)
    records = []
    for name, (variable, mask) in kept.items():
        value = variable.numpy()
        if np.any(value[~mask] != 0) or not np.all(np.isfinite(value)):
            raise ModelError(f"Layer {name!r} has lost zeros, or its weights are no longer finite, in the training.")
        before, after = int(mask.size - mask.sum()), int(np.count_nonzero(value == 0))
        drifted = restored.get(name, 0)
        kept_by = "mask" if drifted else kinds[name]  # whatever the scheme promises
        records.append(KeptZerosRecord(name, mask.size, before, after, drifted, kept_by))
    return tuple(records)


def check_layers(model: Any) -> None:
    """Names what TF-MOT cannot train for int8, before it fails in its own words.

    Raises:
        ModelError: if there is such a layer.
    """
    if not getattr(model, "_is_graph_network", False):
        raise ModelError(f"Model {model.name!r} is neither a built Sequential nor a functional model.")
    for layer in model.layers:
        kind = type(layer).__name__
        before = [node.layer for node in _producers(layer)]
        names = [type(x).__name__ for x in before]
        reason = ""
        if kind == "BatchNormalization":
            if names not in (["Dense"], ["Conv2D"], ["DepthwiseConv2D"]) or not _alone(model, before[0]):
                reason = (
                    "is only supported right after a Dense, Conv2D or DepthwiseConv2D layer without an activation, "
                    "whose output nothing else reads"
                )
        elif kind not in WEIGHTED and kind not in WEIGHTLESS:
            reason = "has no int8 training in TF-MOT; use export_tflite(model, ..., quantize='int8') instead"
        elif kind in WEIGHTED and len(layer.inbound_nodes) > 1:
            reason = "is used more than once, which TF-MOT cannot quantize"
        elif not _trainable_activation(layer):
            reason = f"has the activation {layer.activation.__name__!r}; TF-MOT takes {', '.join(sorted(ACTIVATIONS))}"
        elif (kind == "ReLU" or plain_relu(layer)) and any(name in WEIGHTED for name in names):
            reason = "comes right after a layer with weights, which TF-MOT then leaves out; use activation='relu' there"
        if reason:
            raise ModelError(f"Layer {layer.name!r} ({kind}) {reason}.")


def _producers(layer: Any) -> list[Any]:
    return [parent for node in layer.inbound_nodes for parent in node.parent_nodes]


def _alone(model: Any, layer: Any) -> bool:
    """Whether the layer is linear, called once, and read by one layer only: then TF-MOT folds the next one into it."""
    linear = getattr(layer.activation, "__name__", "") == "linear"
    outputs = {id(x) for x in model.outputs}
    return linear and len(layer.inbound_nodes) == len(layer.outbound_nodes) == 1 and id(layer.output) not in outputs


def _trainable_activation(layer: Any) -> bool:
    activation = getattr(layer, "activation", None)
    return activation is None or getattr(activation, "__name__", "") in ACTIVATIONS


def _kernel(layer: Any) -> Any:
    return layer.depthwise_kernel if type(layer).__name__ == "DepthwiseConv2D" else layer.kernel


def _preserved(model: Any, name: str) -> bool:
    """Whether TF-MOT's own quantizer of the weights of layer `name` keeps zeros."""
    wrappers = [w for w in model.layers if getattr(getattr(w, "layer", None), "name", None) == name]
    quantizers = [getattr(getattr(w, "quantize_config", None), "weight_quantizer", None) for w in wrappers]
    return any(type(quantizer).__name__.startswith("PrunePreserve") for quantizer in quantizers)


def _wrapped_kernel(model: Any, name: str, mask: np.ndarray) -> Any:
    """The variable of the kernel of layer `name` in the model that TF-MOT made."""
    for wrapper in model.layers:
        inner = getattr(wrapper, "layer", None)
        if inner is not None and inner.name == name:
            found = [v for v in wrapper.weights if "kernel" in v.name and tuple(v.shape) == mask.shape]
            if len(found) == 1:
                return found[0]
    raise ModelError(f"Layer {name!r} was not quantized by TF-MOT.")
