"""The table: what compaction does with each type of layer. docs/compaction.md shows it; a test compares them."""

from __future__ import annotations

from typing import Any

import keras

from keras_sensprune.compaction import merging, producers, rules
from keras_sensprune.compaction.rules import Rule, Stop, stop

_MIXES = stop("it mixes channels")
TABLE: dict[str, type[Rule]] = {
    **dict.fromkeys(("Dense",), producers.Dense),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), producers.Conv),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), producers.TransposedConv),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), producers.Depthwise),
    "Embedding": producers.Embedding,
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), producers.Recurrent),
    "BatchNormalization": rules.Normalization,
    **dict.fromkeys(("Activation", "ReLU", "LeakyReLU", "ELU"), rules.Elementwise),
    "PReLU": rules.PReLU,
    **dict.fromkeys(("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout"), Rule),
    **dict.fromkeys(("GaussianNoise", "GaussianDropout", "ActivityRegularization", "Identity"), Rule),
    **{
        f"{k}Pooling{d}D": rules.ChannelsLast
        for k in ("Max", "Average", "GlobalMax", "GlobalAverage")
        for d in (1, 2, 3)
    },
    **{f"Cropping{d}D": rules.ChannelsLast for d in (1, 2, 3)},
    **{f"UpSampling{d}D": rules.ChannelsLast for d in (1, 2, 3)},
    **{f"ZeroPadding{d}D": rules.ZeroPadding for d in (1, 2, 3)},
    "RepeatVector": Rule,
    "Flatten": rules.Flatten,
    "Reshape": rules.Reshape,
    **dict.fromkeys(("Add", "Subtract", "Average", "Maximum", "Minimum"), merging.Merge),
    "Multiply": merging.Multiply,
    "Concatenate": merging.Concatenate,
    **dict.fromkeys(("Softmax", "LayerNormalization", "GroupNormalization", "UnitNormalization"), _MIXES),
    **dict.fromkeys(("RMSNormalization", "MultiHeadAttention", "GroupQueryAttention", "Attention"), _MIXES),
    **dict.fromkeys(("AdditiveAttention", "EinsumDense", "Dot"), _MIXES),
    "Permute": stop("it moves channels into other axes"),
    **{f"SeparableConv{d}D": stop("use a depthwise and a 1x1 convolution instead") for d in (1, 2)},
    **{name: stop("wrappers are not looked into") for name in ("Bidirectional", "TimeDistributed", "RNN")},
    **{f"ConvLSTM{d}D": stop("recurrent convolutions are not looked into") for d in (1, 2, 3)},
    "Lambda": stop("it may compute anything"),
}
# Operations on tensors (`a + b`, `keras.ops.relu(x)`): no layers, without weights.
OPERATIONS: dict[str, type[Rule]] = {
    **dict.fromkeys(("Add", "Subtract", "Maximum", "Minimum"), merging.Merge),
    "Multiply": merging.Multiply,
    **dict.fromkeys(("Relu", "Relu6", "Sigmoid", "Silu", "Tanh", "Gelu", "Elu", "LeakyRelu"), rules.Elementwise),
    **dict.fromkeys(("HardSigmoid", "HardSilu", "Softplus", "Softsign", "Selu", "Exp", "Absolute"), rules.Elementwise),
}


def rule_for(operation: Any) -> Rule:
    """The rule of a layer or operation; a subclass of a known layer is not trusted to do what its parent does."""
    kind = type(operation)
    if isinstance(operation, keras.Model):
        return stop("it is a model: what is inside is compacted, its inputs and outputs stay")(operation)
    if isinstance(operation, keras.layers.Layer):
        known = {getattr(keras.layers, name): rule for name, rule in TABLE.items()}  # some have another __name__
        return known.get(kind, Stop)(operation)
    keras_own = kind.__module__.startswith("keras.src.ops.")
    return (OPERATIONS.get(kind.__name__, Stop) if keras_own else Stop)(operation)
