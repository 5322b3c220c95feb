"""From a batch to terms and sensitivities, outside of a training step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.training.gradients import SensitivityTape
from keras_sensprune.training.outputs import Terms, model_terms
from keras_sensprune.training.targets import check_model, prunable_weights


def weight_sensitivities(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    sensitivity: Sensitivity | None = None,
) -> list[Any]:
    r"""Sensitivity of the model's logits to each regularized weight, on one batch, in inference mode.

    $$S(w) = \sum_k \alpha_k \left|\frac{\partial y_k}{\partial w}\right|$$ (Tartaglione et al., NeurIPS 2018), with
    alpha and the reduction over the batch as `sensitivity` says.

    Args:
        model: a built Keras model with a `SensitivityRegularizer` on at least one weight.
        x: one batch of inputs, as `model(x)` takes it.
        y: targets, in the shape that the compiled loss takes. Needed by the specific form.
        sample_weight: shape (batch,) or that of the positions; 0 excludes a position.
        sensitivity: the configuration; None means `Sensitivity()`. `kind`, `reduction` and `output_fn` count; all
            outputs are taken, whatever the estimator.

    Returns:
        A list of NumPy arrays, one per regularized weight, in the order of `model.trainable_variables`.

    Raises:
        ArgumentError, ModelError: if the model has no such weight, is not built, or lacks targets.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import Sensitivity, SensitivityRegularizer, weight_sensitivities
        >>> layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=SensitivityRegularizer(1e-4))
        >>> model = keras.Sequential([keras.Input((2,)), layer])
        >>> weight_sensitivities(model, np.array([[1.0, -3.0]]), sensitivity=Sensitivity("unspecific"))[0].ravel()
        array([1., 3.], dtype=float32)
    """
    check_model(model)
    config = sensitivity or Sensitivity()
    targets = prunable_weights(model)
    x, y, sample_weight = (
        keras.tree.map_structure(lambda v: None if v is None else ops.convert_to_tensor(v), data)
        for data in (x, y, sample_weight)
    )
    config = dataclasses.replace(config, estimator="exact")
    with SensitivityTape(model, targets, config.reduction) as tape:
        outputs = forward_terms(model, x, y, sample_weight, config)
    return [ops.convert_to_numpy(s) for s in tape.sensitivities(outputs)[0]]


def forward_terms(model: Any, x: Any, y: Any, sample_weight: Any, config: Sensitivity) -> list[Terms]:
    """Terms from a forward pass of our own in inference mode, or from the user's `output_fn`."""
    if config.kind == "none":
        return []
    outputs = model(x, training=False) if config.output_fn is None else config.output_fn(model, x)
    if config.kind == "loss":
        with _without_penalty(model), _metrics_kept(model):
            return [loss_terms(model.compute_loss(x, y, outputs, sample_weight))]
    return model_terms(model, y, outputs, sample_weight, config, replaced=config.output_fn is not None)


def own_forward_is_cheaper(model: Any, config: Sensitivity) -> bool:
    """Whether a forward pass of our own in the steps that refresh costs less than to share that of every step.

    A second gradient through a loop, as in recurrent layers, makes TensorFlow keep all that the loop computes a
    second time, also in the steps that do not refresh; under XLA on a CPU it takes many times the step.
    """
    recurrent = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN)]
    stateful = any(layer.stateful for layer in recurrent)
    return bool(recurrent) and not stateful and config.kind != "none"


@contextlib.contextmanager
def _without_penalty(model: Any) -> Iterator[None]:
    """Until the block ends, the loss does not contain this package's penalty."""
    targets = prunable_weights(model)
    for target in targets:
        target.variable.regularizer = None
    try:
        yield
    finally:
        for target in targets:
            target.variable.regularizer = target.regularizer


@contextlib.contextmanager
def _metrics_kept(model: Any) -> Iterator[None]:
    """The metrics (also the parts of the loss of several outputs) are after the block what they were before."""
    variables = [variable for metric in model.metrics for variable in metric.variables]
    values = [tf.identity(ops.convert_to_tensor(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def loss_terms(loss: Any) -> Terms:
    """The loss as the only term: S = |dL/dw|."""
    return Terms(loss, lambda: ops.ones_like(loss), None, 1)
