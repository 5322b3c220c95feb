"""The only file with a gradient tape: (model, batch) -> sensitivity of the outputs to each weight."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # private; `record.stop_recording` is named by a test

from keras_sensprune.formulas.penalty import SMOOTH, curvature_ratio
from keras_sensprune.formulas.sensitivity import output_direction
from keras_sensprune.training.calls import UNIT_LAYERS, LayerCalls, called_layer, check_repeatable
from keras_sensprune.training.outputs import Terms
from keras_sensprune.training.targets import Target

# Terms per turn of the loop over the terms: what can run side by side does, and memory stays bounded. Ten classes, the
# commonest number, need no loop.
_AT_ONCE = 10


def curved_activation(target: Target) -> str | None:
    """The smooth activation behind a weight with `order=2`, or None where the first-order value is used."""
    if target.regularizer.order == 1 or not isinstance(target.layer, UNIT_LAYERS):
        return None
    name = target.regularizer.activation
    if name is None:
        name = getattr(target.layer.activation, "__name__", "")
    return name if name in SMOOTH else None


class SensitivityTape:
    """Records a forward pass and gives the sensitivities of its outputs.

    Args:
        model: the model that holds the weights.
        targets: the weights.
        reduction: `"abs_of_mean"` or `"mean_of_abs"`.

    Use it as a context around the forward pass; `sensitivities` may be called inside of it.
    """

    def __init__(self, model: Any, targets: Sequence[Target], reduction: str):
        self.targets = targets
        self.per_example = reduction == "mean_of_abs"
        self._smooth = [curved_activation(t) for t in targets]  # read now: the layers' activations are replaced below
        self._tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        self._stack = contextlib.ExitStack()
        self._layers = [called_layer(model, t) if self.per_example else t.layer for t in targets]
        if self.per_example:
            for target, layer in zip(targets, self._layers, strict=True):
                check_repeatable(target, layer)
        needed = [self.per_example or smooth is not None for smooth in self._smooth]
        layers = {id(layer): layer for layer, recorded in zip(self._layers, needed, strict=True) if recorded}
        self._calls = {key: LayerCalls(layer) for key, layer in layers.items()}

    def __enter__(self) -> SensitivityTape:
        for calls in self._calls.values():
            self._stack.enter_context(calls.recording())
        self._stack.enter_context(self._tape)
        for target in self.targets:
            self._tape.watch(target.variable.value)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def sensitivities(self, outputs: Sequence[Terms], refresh: Any = 0) -> tuple[list[Any], list[Any]]:
        """Sensitivity of each weight, and its curvature where that is asked for (else None).

        Memory does not grow with the number of terms: they are taken a few at a time, in a loop of the graph.

        Args:
            outputs: the terms of each output; they must have been computed inside this context.
            refresh: how many refreshes there were before; it decides which outputs an estimator takes.

        Returns:
            Two lists of tensors of the weights' shapes: S = sum of |dt/dw|, and
            D = sum of sgn(dt/dw) d2t/dw2 of the unit itself, with everything behind the unit taken as linear.
        """
        totals: list[Any] = [tf.zeros(t.variable.shape, t.variable.dtype) for t in self.targets]
        curvatures: list[Any] = [None] * len(self.targets)
        with self._tape.stop_recording() if self._tape._recording else contextlib.nullcontext():
            for output in outputs:
                found, curved = self._of_output(output, refresh)
                for i in range(len(self.targets)):
                    totals[i] += output.weight * found[i]
                    if curved[i] is not None:
                        part = output.weight * curved[i]
                        curvatures[i] = part if curvatures[i] is None else curvatures[i] + part
        return totals, curvatures

    def _of_output(self, output: Terms, refresh: Any) -> tuple[list[Any], list[Any]]:
        """The same for one output: the sums over its terms."""
        signs, shares = None, output.shares()
        if output.estimator == "projected":
            shape = (output.passes, output.value.shape[-1])
            signs = tf.sign(tf.random.stateless_uniform(shape, [tf.cast(refresh, "int32"), 7]) - 0.5)

        def term(number: Any) -> list[Any]:
            if output.estimator is None:
                return self._of_term(output.value, shares)
            classes = output.value.shape[-1]
            direction = output_direction(output.estimator, number, output.passes, classes, refresh, signs)
            return self._of_term(output.value, shares * tf.cast(direction, shares.dtype))

        def several(first: Any, count: int) -> list[Any]:
            parts = term(first)
            for number in range(1, count):
                parts = [a + b for a, b in zip(parts, term(first + number), strict=True)]
            return parts

        if output.passes <= _AT_ONCE or _replicas() > 1:  # replicas cannot talk to each other inside a loop
            return self._finished(several(0, output.passes))
        rest = output.passes % _AT_ONCE
        _, parts = tf.while_loop(
            lambda number, _: number < output.passes,
            lambda number, sums: (
                number + _AT_ONCE,
                [a + b for a, b in zip(sums, several(number, _AT_ONCE), strict=True)],
            ),
            (rest, several(0, rest) if rest else self._zeros()),
            parallel_iterations=1,
        )
        return self._finished(parts)

    def _zeros(self) -> list[Any]:
        """Where the sums of `_of_term` begin."""
        zeros: list[Any] = []
        for target, calls, smooth in self._each():
            factored = self.per_example and calls.factored
            zeros.append(
                tf.zeros(tf.shape(calls.pre_activations[0]), target.variable.dtype)
                if factored
                else tf.zeros(target.variable.shape, target.variable.dtype)
            )
            if smooth is not None and calls.pre_activations:
                zeros.append(tf.zeros(target.variable.shape, target.variable.dtype))
        return zeros

    def _each(self) -> Any:
        """(target, calls of its layer or None, smooth activation or None) of each weight."""
        calls = [self._calls.get(id(layer)) for layer in self._layers]
        return zip(self.targets, calls, self._smooth, strict=True)

    def _of_term(self, value: Any, seed: Any) -> list[Any]:
        """What the term t = sum(seed * value) adds.

        Per weight |dt/dw| (|dt/dz| where that is enough), and the curvature where asked for.
        """
        sources = (
            [t.variable.value for t in self.targets],
            {key: calls.pre_activations for key, calls in self._calls.items()},
            {key: calls.results for key, calls in self._calls.items()} if self.per_example else {},
        )
        with record.stop_recording():
            gradients, at_units, at_results = self._tape.gradient(
                value, sources, output_gradients=seed, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        parts: list[Any] = []
        for (target, calls, smooth), layer, gradient in zip(self._each(), self._layers, gradients, strict=True):
            gradient = _all_replicas(tf.convert_to_tensor(gradient)) if not self.per_example else gradient
            deltas = at_units.get(id(layer))
            if self.per_example and calls.factored:
                parts.append(tf.abs(tf.cast(deltas[0], target.variable.dtype)))
            elif self.per_example:
                parts.append(_sum_of_abs(target, calls, at_results[id(layer)]))
            else:
                parts.append(tf.abs(gradient))
            if smooth is not None and calls.pre_activations:
                second = _all_replicas(_second_derivative(target, calls, deltas, smooth, self.per_example))
                parts.append(second if self.per_example else tf.sign(gradient) * second)
        return parts

    def _finished(self, parts: list[Any]) -> tuple[list[Any], list[Any]]:
        """From the sums over the terms to sensitivities and curvatures."""
        found: list[Any] = []
        curved: list[Any] = []
        rest = iter(parts)
        for target, calls, smooth in self._each():
            total = next(rest)
            if self.per_example:
                total = _all_replicas(_outer(target, calls, total) if calls.factored else total)
            found.append(total)
            curved.append(next(rest) if smooth is not None and calls.pre_activations else None)
        return found, curved


def _replicas() -> int:
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def _all_replicas(gradient: Any) -> Any:
    """The mean over replicas, taken before the absolute value; the gradient itself where there is one replica."""
    if _replicas() == 1:
        return gradient
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, gradient)


def _outer(target: Target, calls: LayerCalls, deltas: Any) -> Any:
    r"""sum_b |dt/dw_ij of example b| = sum_b |a_bi| |delta_bj|: one product of absolute matrices for all terms.

    `deltas` holds the sum of |dt/dz| over the terms, shape (batch, units); the position weights are in t. For a bias
    a_bi = 1.
    """
    if len(target.variable.shape) == 1:
        return tf.reduce_sum(deltas, axis=0)
    return tf.matmul(tf.abs(tf.cast(calls.inputs[0], deltas.dtype)), deltas, transpose_a=True)


def _sum_of_abs(target: Target, calls: LayerCalls, deltas: list[Any]) -> Any:
    """sum_b |dt/dw of example b| of any layer, one example after the other: one gradient more in memory, not B.

    `deltas` holds dt/d(result) per call; an example's part is the layer's own gradient for that example alone.
    """
    variable = target.variable.value

    def add(example: Any, total: Any) -> tuple[Any, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variable)
            results = [calls.of_example(number, example) for number in range(len(deltas))]
        seeds = tf.nest.map_structure(lambda d, r: tf.cast(d[example : example + 1], r.dtype), deltas, results)
        part = tape.gradient(results, variable, seeds, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return example + 1, total + tf.abs(tf.cast(tf.convert_to_tensor(part), total.dtype))

    if not calls.results:  # a layer that the model holds and does not call
        return tf.zeros(variable.shape, variable.dtype)
    count = tf.shape(tf.nest.flatten(calls.results)[0])[0]
    start = (tf.constant(0), tf.zeros(variable.shape, variable.dtype))
    return tf.while_loop(lambda example, _: example < count, add, start, parallel_iterations=1)[1]


def _second_derivative(target: Target, calls: LayerCalls, deltas: list[Any], activation: str, per_example: bool) -> Any:
    r"""d2t/dw2 of the unit itself: sum over positions of a^2 delta f''(z)/f'(z), with delta = dt/dz.

    This is the kernel gradient of the same linear map at squared inputs. If `per_example`, each example's part has
    the sign of its own dt/dw = a delta: the sum is over a |a| |delta| f''(z)/f'(z).
    """
    kernel = tf.convert_to_tensor(target.variable)
    total = tf.zeros_like(kernel)
    for inputs, z, delta in zip(calls.inputs, calls.pre_activations, deltas, strict=True):
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
