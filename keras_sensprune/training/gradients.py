"""The only file with a gradient tape: (model, batch) -> sensitivity of the outputs to each weight."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from tensorflow.python.eager import record  # private; `record.stop_recording` is named by a test

from keras_sensprune.errors import ModelError
from keras_sensprune.formulas.penalty import SMOOTH, curvature_ratio
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.training.outputs import Terms, model_terms
from keras_sensprune.training.targets import Target, check_model, prunable_weights

_Conv = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_CURVED_LAYERS = (keras.layers.Dense, *_Conv, keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def curved_activation(target: Target) -> str | None:
    """The smooth activation behind a weight with `order=2`, or None where the first-order value is used."""
    if target.regularizer.order == 1 or not isinstance(target.layer, _CURVED_LAYERS):
        return None
    name = target.regularizer.activation
    if name is None:
        name = getattr(target.layer.activation, "__name__", "")
    return name if name in SMOOTH else None


class _Calls:
    """Inputs and pre-activations of one layer during one forward pass."""

    def __init__(self, layer: Any):
        self.layer = layer
        self.call = layer.call
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Replaces the layer's `call` and `activation` until the block ends, also by an exception."""
        self.call = call = self.layer.call
        activation, own_call = self.layer.activation, vars(self.layer).get("call")

        def recorded_activation(z: Any) -> Any:
            self.outputs.append(z)
            return z if activation is None else activation(z)

        def recorded_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.inputs.append(inputs)
            return call(inputs, *args, **kwargs)

        object.__setattr__(self.layer, "activation", recorded_activation)
        object.__setattr__(self.layer, "call", recorded_call)
        try:
            yield
        finally:
            object.__setattr__(self.layer, "activation", activation)
            if own_call is None:
                object.__delattr__(self.layer, "call")
            else:  # recorded by another tape around this one
                object.__setattr__(self.layer, "call", own_call)

    def linear(self, inputs: Any) -> Any:
        """The layer without its activation."""
        activation = self.layer.activation
        object.__setattr__(self.layer, "activation", None)
        try:
            return self.call(inputs)
        finally:
            object.__setattr__(self.layer, "activation", activation)


class SensitivityTape:
    """Records a forward pass and gives the sensitivities of its outputs.

    Args:
        targets: the weights.
        reduction: `"abs_of_mean"` or `"mean_of_abs"`.

    Use it as a context around the forward pass; `sensitivities` may be called inside of it.
    """

    def __init__(self, targets: Sequence[Target], reduction: str):
        self.targets = targets
        self.reduction = reduction
        self._smooth = [curved_activation(t) for t in targets]  # read now: the layers' activations are replaced below
        self._tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        self._stack = contextlib.ExitStack()
        layers = {
            id(t.layer): t.layer
            for t, smooth in zip(targets, self._smooth, strict=True)
            if reduction == "mean_of_abs" or smooth is not None
        }
        if reduction == "mean_of_abs":
            for target in targets:
                _check_dense(target)
        self._calls = {key: _Calls(layer) for key, layer in layers.items()}

    def __enter__(self) -> SensitivityTape:
        for calls in self._calls.values():
            self._stack.enter_context(calls.recording())
        self._stack.enter_context(self._tape)
        for target in self.targets:
            self._tape.watch(target.variable.value)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def sensitivities(self, outputs: Sequence[Terms]) -> tuple[list[Any], list[Any]]:
        """Sensitivity of each weight, and its curvature where that is asked for (else None).

        Args:
            outputs: the terms of each output; they must have been computed inside this context.

        Returns:
            Two lists of tensors of the weights' shapes: S = sum of |dt/dw|, and
            D = sum of sgn(dt/dw) d2t/dw2 of the unit itself, with everything behind the unit taken as linear.
        """
        totals: list[Any] = [tf.zeros(t.variable.shape, t.variable.dtype) for t in self.targets]
        curvatures: list[Any] = [None] * len(self.targets)
        with self._tape.stop_recording() if self._tape._recording else contextlib.nullcontext():
            for output in outputs:
                for term in output.terms:
                    self._add(term, output.weight, totals, curvatures)
        return totals, curvatures

    def _add(self, term: Any, weight: float, totals: list[Any], curvatures: list[Any]) -> None:
        variables = [t.variable.value for t in self.targets]
        before = {key: calls.outputs for key, calls in self._calls.items()}
        with record.stop_recording():
            gradients, at_outputs = self._tape.gradient(
                term, (variables, before), unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        per_example = self.reduction == "mean_of_abs"
        for i, (target, smooth) in enumerate(zip(self.targets, self._smooth, strict=True)):
            gradient = _all_replicas(tf.convert_to_tensor(gradients[i]))
            calls, deltas = self._calls.get(id(target.layer)), at_outputs.get(id(target.layer))
            if per_example and calls is not None:
                totals[i] += weight * _mean_of_abs(target, calls, deltas)
            else:
                totals[i] += weight * tf.abs(gradient)
            if smooth is not None and calls is not None:
                second = _all_replicas(_second_derivative(target, calls, deltas, smooth, per_example))
                part = weight * (second if per_example else tf.sign(gradient) * second)
                curvatures[i] = part if curvatures[i] is None else curvatures[i] + part


def _all_replicas(gradient: Any) -> Any:
    """The mean over replicas, taken before the absolute value; the gradient itself where there is one replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradient
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, gradient)


def _check_dense(target: Target) -> None:
    if not isinstance(target.layer, keras.layers.Dense):
        raise ModelError(
            f"Sensitivity(reduction='mean_of_abs') is available for Dense layers only; {target.label!r} belongs to a "
            f"{type(target.layer).__name__}. Use reduction='abs_of_mean'."
        )


def _mean_of_abs(target: Target, calls: _Calls, deltas: list[Any]) -> Any:
    r"""sum_b |dt/dw_ij of example b| = sum_b |a_bi| |delta_bj|: one product of absolute matrices.

    `deltas` holds dt/dz, shape (batch, units); the position weights are already in t. For a bias a_bi = 1.
    """
    if len(calls.inputs) != 1 or len(calls.inputs[0].shape) != 2:
        raise ModelError(
            f"Sensitivity(reduction='mean_of_abs') needs Dense layers that are called once per step on inputs of shape "
            f"(batch, features); {target.label!r} is called {len(calls.inputs)} time(s) on shape "
            f"{tuple(calls.inputs[0].shape) if calls.inputs else None}. Use reduction='abs_of_mean'."
        )
    delta = tf.abs(tf.cast(deltas[0], target.variable.dtype))
    if len(target.variable.shape) == 1:
        return _all_replicas(tf.reduce_sum(delta, axis=0))
    return _all_replicas(tf.matmul(tf.abs(tf.cast(calls.inputs[0], delta.dtype)), delta, transpose_a=True))


def _second_derivative(target: Target, calls: _Calls, deltas: list[Any], activation: str, per_example: bool) -> Any:
    r"""d2t/dw2 of the unit itself: sum over positions of a^2 delta f''(z)/f'(z), with delta = dt/dz.

    This is the kernel gradient of the same linear map at squared inputs. If `per_example`, each example's part has
    the sign of its own dt/dw = a delta: the sum is over a |a| |delta| f''(z)/f'(z).
    """
    kernel = tf.convert_to_tensor(target.variable)
    total = tf.zeros_like(kernel)
    for inputs, z, delta in zip(calls.inputs, calls.outputs, deltas, strict=True):
        with record.stop_recording():
            inputs, z, delta = (tf.cast(value, kernel.dtype) for value in (inputs, z, delta))
            squares = inputs * (tf.abs(inputs) if per_example else inputs)
            factor = (tf.abs(delta) if per_example else delta) * curvature_ratio(activation, z)
        # Here `stop_recording` would stop this tape too. A tape of the user's records these few operations in vain.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(target.variable.value)
            value = tf.reduce_sum(calls.linear(squares) * factor)
        part = tape.gradient(value, target.variable.value, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        total += tf.cast(part, total.dtype)
    return total


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
        sensitivity: the configuration; None means `Sensitivity()`.

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
    with SensitivityTape(targets, config.reduction) as tape:
        outputs = forward_terms(model, x, y, sample_weight, config)
    return [ops.convert_to_numpy(s) for s in tape.sensitivities(outputs)[0]]


def forward_terms(model: Any, x: Any, y: Any, sample_weight: Any, config: Sensitivity) -> list[Terms]:
    """Terms from a forward pass of our own in inference mode, or from the user's `output_fn`."""
    if config.kind == "none":
        return []
    outputs = model(x, training=False) if config.output_fn is None else config.output_fn(model, x)
    if config.kind == "loss":
        with _without_penalty(model):
            return [loss_terms(model.compute_loss(x, y, outputs, sample_weight))]
    return model_terms(model, y, outputs, sample_weight, config, replaced=config.output_fn is not None)


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


def loss_terms(loss: Any) -> Terms:
    """The loss as the only term: S = |dL/dw|."""
    return Terms([loss], 1.0, None)
