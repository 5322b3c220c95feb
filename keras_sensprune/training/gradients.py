"""The only file with a gradient tape: (model, batch) -> sensitivity of the outputs to each weight."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # private; `record.stop_recording` is named by a test

from keras_sensprune.formulas.penalty import SMOOTH, curvature_ratio
from keras_sensprune.formulas.sensitivity import output_direction
from keras_sensprune.training.calls import UNIT_LAYERS, LayerCalls, activation_of, called_layer, check_repeatable
from keras_sensprune.training.outputs import Terms
from keras_sensprune.training.targets import Target

# Terms per turn of the loop over the terms: what can run side by side does, and memory stays bounded. Ten classes, the
# commonest number, need no loop.
_AT_ONCE = 10

# Per weight (dt/dw,), or (dt/dw, d2t/dw2) where a curvature is asked for; or what these have been made into.
Parts = list[tuple[Any, ...]]


def curved_activation(target: Target) -> str | None:
    """The smooth activation behind a weight with `order=2`, or None where the first-order value is used."""
    if target.regularizer.order == 1 or not isinstance(target.layer, UNIT_LAYERS):
        return None
    name = target.regularizer.activation
    if name is None:
        name = getattr(activation_of(target.layer), "__name__", "")
    return name if name in SMOOTH else None


class SensitivityTape:
    """Records a forward pass and gives the sensitivities of its outputs.

    Args:
        model: the model that holds the weights.
        targets: the weights.
        reduction: `"abs_of_mean"` or `"mean_of_abs"`.

    Use it as a context around the forward pass; `sensitivities` and `signed_terms` may be called inside of it.
    """

    def __init__(self, model: Any, targets: Sequence[Target], reduction: str):
        self.targets = targets
        self.per_example = reduction == "mean_of_abs"
        self._smooth = [curved_activation(t) for t in targets]
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
        total = [_zeros(t.variable, curved) for t, _, curved in self._each()]
        with self._paused():
            for output in outputs:
                total = _sum([total, _times(output.weight, self._of_output(output, refresh))])
        return [part[0] for part in total], [part[1] if len(part) > 1 else None for part in total]

    def signed_terms(self, outputs: Sequence[Terms], refresh: Any = 0) -> list[Parts]:
        """What is linear in the batch, so that its mean over several replicas can be taken before the absolute value.

        Args:
            outputs: as for `sensitivities`.
            refresh: the same.

        Returns:
            Per term (per output for `mean_of_abs`, where the absolute value comes first) the signed dt/dw and d2t/dw2
            of each weight. `absolute_sum` of the terms' means gives S and D. All terms are in memory at once.
        """
        found: list[Parts] = []
        with self._paused():
            for output in outputs:
                if self.per_example:
                    terms = [self._of_output(output, refresh)]
                else:
                    terms = list(map(self._term_of(output, refresh), range(output.passes)))
                found.extend(_times(output.weight, parts) for parts in terms)
        return found

    def _paused(self) -> Any:
        return self._tape.stop_recording() if self._tape._recording else contextlib.nullcontext()

    def _term_of(self, output: Terms, refresh: Any) -> Callable[[Any], Parts]:
        """A function that gives the signed derivatives of term number j of an output."""
        signs, shares = None, output.shares()
        if output.estimator == "projected":
            shape = (output.passes, output.value.shape[-1])
            signs = tf.sign(tf.random.stateless_uniform(shape, [tf.cast(refresh, "int32"), 7]) - 0.5)

        def term(number: Any) -> Parts:
            if output.estimator is None:
                return self._of_term(output.value, shares)
            classes = output.value.shape[-1]
            direction = output_direction(output.estimator, number, output.passes, classes, refresh, signs)
            return self._of_term(output.value, shares * tf.cast(direction, shares.dtype))

        return term

    def _of_output(self, output: Terms, refresh: Any) -> Parts:
        """The sums over the terms of one output, a few terms at a time."""
        term = self._term_of(output, refresh)

        def several(first: Any, count: int) -> Parts:
            parts = (term(first + number) for number in range(count))
            return _sum(parts if self.per_example else map(_absolute, parts))

        if output.passes <= _AT_ONCE:
            return self._finished(several(0, output.passes))
        rest = output.passes % _AT_ONCE
        _, parts = tf.while_loop(
            lambda number, _: number < output.passes,
            lambda number, sums: (number + _AT_ONCE, _sum([sums, several(number, _AT_ONCE)])),
            (rest, several(0, rest) if rest else self._start()),
            parallel_iterations=1,
        )
        return self._finished(parts)

    def _start(self) -> Parts:
        """Where the sums of `_of_output` begin."""
        zeros = []
        for target, calls, curved in self._each():
            shape = tf.shape(calls.pre_activations[0]) if self.per_example and calls.factored else None
            zeros.append(_zeros(target.variable, curved, shape))
        return zeros

    def _each(self) -> Any:
        """(target, calls of its layer or None, smooth activation behind it or None) of each weight."""
        for target, layer, smooth in zip(self.targets, self._layers, self._smooth, strict=True):
            calls = self._calls.get(id(layer))
            yield target, calls, smooth if calls is not None and calls.pre_activations else None

    def _of_term(self, value: Any, seed: Any) -> Parts:
        """Derivatives of the term t = sum(seed * value), and curvatures where asked for.

        Per weight dt/dw and d2t/dw2; per example their absolute values, |dt/dz| where that is enough.
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
        parts: Parts = []
        for (target, calls, smooth), layer, gradient in zip(self._each(), self._layers, gradients, strict=True):
            deltas = at_units.get(id(layer))
            if self.per_example and calls.factored:
                part = tf.abs(tf.cast(deltas[0], target.variable.dtype))
            elif self.per_example:
                part = _sum_of_abs(target, calls, at_results[id(layer)])
            else:
                part = tf.convert_to_tensor(gradient)
            second = smooth and (_second_derivative(target, calls, deltas, smooth, self.per_example),)
            parts.append((part, *(second or ())))
        return parts

    def _finished(self, sums: Parts) -> Parts:
        """From the sums over the terms to tensors of the weights' shapes."""
        if not self.per_example:
            return sums
        return [
            (_outer(target, calls, total) if calls.factored else total, *second)
            for (target, calls, _), (total, *second) in zip(self._each(), sums, strict=True)
        ]


def absolute_sum(terms: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    """S = sum of |dt/dw| and, where asked for, D = sum of sgn(dt/dw) d2t/dw2 of one weight, from its terms."""
    return _sum(_absolute([term]) for term in terms)[0]


def _absolute(parts: Parts) -> Parts:
    """|dt/dw| and sgn(dt/dw) d2t/dw2 from dt/dw and d2t/dw2."""
    return [(tf.abs(gradient), *(tf.sign(gradient) * value for value in second)) for gradient, *second in parts]


def _sum(terms: Iterable[Parts]) -> Parts:
    return functools.reduce(lambda total, parts: tf.nest.map_structure(tf.add, total, parts), terms)


def _times(factor: float, parts: Parts) -> Parts:
    return tf.nest.map_structure(lambda value: factor * value, parts)


def _zeros(variable: Any, curved: Any, shape: Any = None) -> tuple[Any, ...]:
    zeros = tf.zeros(variable.shape, variable.dtype)
    first = zeros if shape is None else tf.zeros(shape, variable.dtype)
    return (first, zeros) if curved else (first,)


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
