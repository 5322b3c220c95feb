"""Which layers Keras 3 and tf_keras have in common, and how each setting is called on the other side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from keras_sensprune.errors import ModelError

# Settings that change no output of a trained layer: weights are copied, penalties and constraints are for training.
_TRAINING_ONLY = ("_initializer", "_regularizer", "_constraint")
_HARMLESS = {"name", "trainable", "dtype", "seed", "batch_input_shape", "zero_output_for_mask", "implementation"}
# Settings that must be off, or that only one side has.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "groups": (1,),  # of the layers that do not copy it
    "quantization_config": (None,),
    "lora_rank": (None,),
    "lora_alpha": (None,),
    "renorm": (False,),
    "renorm_clipping": (None,),
    "synchronized": (False, None),
    "rms_scaling": (False,),
    "mask_zero": (False,),
    "stateful": (False,),
    "time_major": (False,),
    "input_length": (None,),
    "sparse": (False,),
    "ragged": (False,),
    "noise_shape": (None,),
    "virtual_batch_size": (None,),
    "adjustment": (None,),
}
_HALF = ("float16", "bfloat16")  # TF-MOT trains in float32 only, and rounding would hide what the comparison looks for
_IGNORED_IF_OFF = {"renorm_momentum"}  # says nothing while `renorm` is off
# The same formula under the same name on both sides (checked by the tests). hard_sigmoid is another function.
ACTIVATIONS = (
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "sigmoid", "tanh", "softmax",
    "softplus", "softsign", "exponential", "mish",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer that both sides have.

    Attributes:
        settings: names of the settings that are copied.
        renamed: Keras 3 name -> tf_keras name of a setting.
    """

    settings: tuple[str, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)


_CONV = ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups", "activation")
_TRANSPOSED = ("filters", "kernel_size", "strides", "padding", "output_padding", "data_format", "dilation_rate")
_DEPTHWISE = ("kernel_size", "strides", "padding", "depth_multiplier", "data_format", "dilation_rate", "activation")
_SEPARABLE = (*(name for name in _CONV if name != "groups"), "depth_multiplier", "use_bias")
_POOL = ("pool_size", "strides", "padding", "data_format")
_GLOBAL = ("data_format", "keepdims")
_RNN = (
    "units", "activation", "use_bias", "dropout", "recurrent_dropout", "return_sequences", "return_state",
    "go_backwards", "unroll",
)  # fmt: skip

TABLE: dict[str, Row] = {
    "Dense": Row(("units", "activation", "use_bias")),
    "Conv1D": Row((*_CONV, "use_bias")),
    "Conv2D": Row((*_CONV, "use_bias")),
    "Conv3D": Row((*_CONV, "use_bias")),
    "Conv1DTranspose": Row((*_TRANSPOSED, "activation", "use_bias")),
    "Conv2DTranspose": Row((*_TRANSPOSED, "activation", "use_bias")),
    "DepthwiseConv1D": Row((*_DEPTHWISE, "use_bias")),
    "DepthwiseConv2D": Row((*_DEPTHWISE, "use_bias")),
    "SeparableConv1D": Row(_SEPARABLE),
    "SeparableConv2D": Row(_SEPARABLE),
    "Embedding": Row(("input_dim", "output_dim")),
    "LSTM": Row((*_RNN, "recurrent_activation", "unit_forget_bias")),
    "GRU": Row((*_RNN, "recurrent_activation", "reset_after")),
    "SimpleRNN": Row(_RNN),
    "BatchNormalization": Row(("axis", "momentum", "epsilon", "center", "scale")),
    "LayerNormalization": Row(("axis", "epsilon", "center", "scale")),
    "UnitNormalization": Row(("axis",)),
    "Activation": Row(("activation",)),
    "ReLU": Row(("max_value", "negative_slope", "threshold")),
    "LeakyReLU": Row((), {"negative_slope": "alpha"}),
    "ELU": Row(("alpha",)),
    "PReLU": Row(("shared_axes",)),
    "Softmax": Row(("axis",)),
    **{f"{kind}Pooling{n}D": Row(_POOL) for kind in ("Max", "Average") for n in (1, 2, 3)},
    **{f"Global{kind}Pooling{n}D": Row(_GLOBAL) for kind in ("Max", "Average") for n in (1, 2, 3)},
    "Flatten": Row(("data_format",)),
    "Reshape": Row(("target_shape",)),
    "Permute": Row(("dims",)),
    "RepeatVector": Row(("n",)),
    "ZeroPadding1D": Row(("padding",)),
    "ZeroPadding2D": Row(("padding", "data_format")),
    "ZeroPadding3D": Row(("padding", "data_format")),
    "Cropping1D": Row(("cropping",)),
    "Cropping2D": Row(("cropping", "data_format")),
    "UpSampling1D": Row(("size",)),
    "UpSampling2D": Row(("size", "data_format", "interpolation")),
    "Rescaling": Row(("scale", "offset")),
    "Dropout": Row(("rate",)),
    "SpatialDropout1D": Row(("rate",)),
    "SpatialDropout2D": Row(("rate", "data_format")),
    "GaussianNoise": Row(("stddev",)),
    "GaussianDropout": Row(("rate",)),
    **{name: Row() for name in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")},
    "Concatenate": Row(("axis",)),
}


def settings_of(layer: Any, to_keras_3: bool) -> dict[str, Any]:
    """The arguments of the same layer on the other side, activations by name.

    Args:
        layer: a layer of tf_keras if `to_keras_3`, else of Keras 3.
        to_keras_3: the direction.

    Returns:
        Arguments for the class of the same name.

    Raises:
        ModelError: if the layer, a setting or an activation is unknown, or means something else on the other side.
    """
    kind = type(layer).__name__
    row = TABLE.get(kind)
    package = "tf_keras" if to_keras_3 else "keras"
    if row is None or type(layer).__module__.split(".")[0] != package:
        known = ", ".join(sorted(TABLE))
        raise ModelError(
            f"Layer {layer.name!r} ({kind}) cannot be moved between Keras 3 and tf_keras. Known are: {known}."
        )
    if getattr(layer, "compute_dtype", "") in _HALF:
        _refuse(layer, f"the half precision {layer.compute_dtype} (build the model in float32, with the same weights)")
    names = {v: k for k, v in row.renamed.items()} if to_keras_3 else dict(row.renamed)
    found: dict[str, Any] = {}
    for key, value in layer.get_config().items():
        if key in row.settings or key in names:
            found[names.get(key, key)] = _activation(layer, key) if key.endswith("activation") else value
        elif key in _MUST_BE:
            if value not in _MUST_BE[key]:
                _refuse(layer, f"{key}={value!r}")
        elif key == "data_format":
            if value not in (None, "channels_last"):
                _refuse(layer, f"{key}={value!r}")
        elif key not in _HARMLESS | _IGNORED_IF_OFF and not key.endswith(_TRAINING_ONLY):
            _refuse(layer, f"the unknown setting {key}={value!r}")
    if kind == "BatchNormalization" and isinstance(found["axis"], (list, tuple)):
        found["axis"] = found["axis"][0]
    return found


def _activation(layer: Any, key: str) -> str:
    function = getattr(layer.cell if hasattr(layer, "cell") else layer, key)
    name = getattr(function, "__name__", type(function).__name__)
    if name not in ACTIVATIONS:
        reason = ", which is another function in Keras 2 than in Keras 3" if name == "hard_sigmoid" else ""
        _refuse(layer, f"{key}={name!r}{reason}")
    return name


def _refuse(layer: Any, what: str) -> None:
    raise ModelError(
        f"Layer {layer.name!r} ({type(layer).__name__}) has {what}; it cannot be moved between Keras 3 and tf_keras."
    )


def inner_graph(layer: Any) -> Any:
    """The graph of a Keras 3 Sequential or functional model, None of a plain layer.

    Raises:
        ModelError: if it is a model without a graph.
    """
    if not isinstance(layer, keras.Model):
        return None
    graph = layer._functional if isinstance(layer, keras.Sequential) else layer
    if graph is None or not hasattr(graph, "_run_through_graph"):
        raise ModelError(f"Model {layer.name!r} is neither Sequential nor functional, so its graph cannot be followed.")
    return graph
