"""Model -> records: what each layer holds, how much of it is zero, and which units are dead."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_sensprune.formulas.counting import dead_recurrent_units, dead_units, magnitude_histogram
from keras_sensprune.records import HISTOGRAM_EDGES, LayerRecord, SparsityReport
from keras_sensprune.training.regularizer import SensitivityRegularizer
from keras_sensprune.training.targets import check_model

_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)


def sparsity_report(model: Any) -> SparsityReport:
    """Counts zeros, layer by layer. The model is not changed.

    One row per layer that itself owns variables which training changes, frozen ones included; never moving
    statistics, seeds or metrics. A layer or variable used twice counts once; of nested layers the innermost owner
    has the row, and a model that owns weights itself comes after its layers. Weights are the variables of rank 2
    and more; those of rank 0 and 1, and whatever the layer calls its `bias` (GRU and EinsumDense have biases of
    rank 2), are biases. -0.0 is zero, NaN is not.

    A unit is dead if all its incoming weights are zero. The units are
    - Dense, convolutions: the output channels (for transposed ones the axis before the last)
    - depthwise convolutions: the pairs of input channel and multiplier; separable ones: the pointwise channels
    - EinsumDense: one per combination of the kernel's axes that appear in the output, so heads times key size
    - LSTM, GRU, SimpleRNN, ConvLSTM: the recurrent units, dead if both kernels are zero in all gates; the row
      has path and kind of the layer around the cell
    - Embedding: the columns; other layers: the last axis of their first weight

    Args:
        model: a built Keras model of any kind: Sequential, functional, subclassed, nested.

    Returns:
        A `SparsityReport` with one `LayerRecord` per such layer, in the order of the model.

    Raises:
        ArgumentError: if `model` is no Keras model.
        ModelError: if the model is not built.
        BackendError: if Keras does not run on TensorFlow.

    Example:
        >>> import keras, numpy
        >>> from keras_sensprune import sparsity_report
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="fc")])
        >>> kernel = numpy.array([[0.5, 0.0, 0.0], [0.0, 0.0, -2.0]])
        >>> model.set_weights([kernel, numpy.array([0.0, 0.0, 1.0])])
        >>> report = sparsity_report(model)
        >>> report.weights, report.nonzero_weights, report.layers[0].dead_units
        (6, 2, 1)
        >>> report.compression, report.compression_with_biases
        (3.0, 3.0)
    """
    check_model(model)
    rows = tuple(_record(shown, owner, own) for shown, owner, own in _owned(model, model, set()))
    return SparsityReport(model=model.name, layers=rows)


def _owned(layer: Any, shown: Any, seen: set[int]) -> Iterator[tuple[Any, Any, list[Any]]]:
    """(layer that names the row, owner, its variables), inner layers first, each layer and variable once.

    `_trainable_variables` is the only list that keeps frozen weights and moving statistics apart.
    """
    if id(layer) in seen:
        return
    seen.add(id(layer))
    for child in layer._layers:
        is_cell = isinstance(layer, keras.layers.RNN) and not isinstance(child, keras.layers.StackedRNNCells)
        yield from _owned(child, layer if is_cell else child, seen)
    own = [v for v in layer._trainable_variables if id(v) not in seen]
    seen.update(id(v) for v in own)
    if own:
        yield shown, layer, own


def _record(shown: Any, owner: Any, variables: list[Any]) -> LayerRecord:
    values = {id(v): np.asarray(v) for v in variables}
    bias = getattr(owner, "bias", None)
    weights = [values[id(v)] for v in variables if len(v.shape) >= 2 and v is not bias]
    biases = [values[id(v)] for v in variables if len(v.shape) < 2 or v is bias]
    units, dead = _units(owner, values, weights[0]) if weights else (0, 0)
    bins = [magnitude_histogram(w, HISTOGRAM_EDGES) for w in weights]
    return LayerRecord(
        path=shown.path or shown.name,
        kind=type(shown).__name__,
        shape=tuple((weights or biases)[0].shape),
        weights=sum(w.size for w in weights),
        nonzero_weights=sum(int(np.count_nonzero(w)) for w in weights),
        biases=sum(b.size for b in biases),
        nonzero_biases=sum(int(np.count_nonzero(b)) for b in biases),
        units=units,
        dead_units=dead,
        regularized=any(isinstance(v.regularizer, SensitivityRegularizer) for v in variables),
        histogram=tuple(sum(counts) for counts in zip(*bins, strict=True)),
    )


def _units(owner: Any, values: dict[int, np.ndarray], first: np.ndarray) -> tuple[int, int]:
    """(units, dead units) of a layer whose first weight is `first`."""
    kernel = values.get(id(getattr(owner, "kernel", None)))
    recurrent = values.get(id(getattr(owner, "recurrent_kernel", None)))
    if kernel is not None and recurrent is not None:
        units, columns = recurrent.shape[-2:]  # (..., units, gates * units)
        if columns % units == 0 and kernel.shape[-1] == columns:
            return units, dead_recurrent_units(kernel, recurrent, units, columns // units)
    by_unit = _units_last(owner, values, first)
    return by_unit.shape[-1], dead_units(by_unit)


def _units_last(owner: Any, values: dict[int, np.ndarray], first: np.ndarray) -> np.ndarray:
    """The weight that feeds the units, with one last axis that counts them."""
    if isinstance(owner, _DEPTHWISE):
        return first.reshape(*first.shape[:-2], -1)  # (..., channels, multiplier)
    if isinstance(owner, _TRANSPOSED):
        return np.moveaxis(first, -2, -1)  # (..., out, in)
    if isinstance(owner, keras.layers.EinsumDense):
        letters, output = owner.equation.replace(" ", "").split(",")[1].split("->")
        axes = [axis for axis, letter in enumerate(letters) if letter in output]
        last = range(first.ndim - len(axes), first.ndim)
        return np.moveaxis(first, axes, last).reshape(-1, math.prod(first.shape[axis] for axis in axes))
    return values.get(id(getattr(owner, "pointwise_kernel", None)), first)  # of separable convolutions
