"""The refresh under several replicas: what they exchange, in the steps that refresh and in no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_sensprune.training.gradients import Parts, absolute_sum
from keras_sensprune.training.state import PrunedWeight


def refresh_together(
    strategy: Any,
    due: Any,
    derivatives: Callable[[], tuple[list[Parts], Any]],
    weights: Sequence[PrunedWeight],
    store: Callable[..., None],
    *,
    in_every_step: bool = False,
) -> Any:
    """Stores the sensitivities of a batch of which every replica has seen its part; each of them calls this.

    Terms are averaged over the replicas with their sign, before the absolute value. Replicas cannot talk to each other
    inside a condition of their own, but what they do together may contain one. So there are two: in the first each
    replica takes its derivatives; in the second, in one place for all of them, means are taken and stored.

    Args:
        strategy: of the model, with more than one replica.
        due: whether this step refreshes: a boolean tensor, equal on all replicas, or True.
        derivatives: gives the terms of this replica, of static shapes, and a boolean scalar, the flag of bad labels.
        weights: in the order of the parts of a term.
        store: `store(weight, S)` or `store(weight, S, D)`; called once per device of the weight.
        in_every_step: whether derivatives are taken in every step, without a condition, and only their means when due:
            for layers whose own gradient exchanges something, as synchronized batch normalization does.

    Returns:
        The flag of this replica; False in a step that does not refresh.
    """
    terms: list[Parts] = []

    def taken() -> list[Any]:
        terms[:], flag = derivatives()
        return [*tf.nest.flatten(terms), flag]

    def nothing() -> list[Any]:  # traced after `taken`; run eagerly, it finds no terms, and there is nothing to do
        return [*(tf.zeros(v.shape, v.dtype) for v in tf.nest.flatten(terms)), tf.constant(False)]

    *values, flag = taken() if due is True or in_every_step else tf.cond(due, taken, nothing)
    homes = [weight.sensitivity.value for weight in weights]
    where = [home for term in terms for home, part in zip(homes, term, strict=True) for _ in part]

    def exchange(strategy: Any, due: Any, *values: Any) -> None:
        def work() -> Any:
            means = tf.nest.pack_sequence_as(terms, _means(strategy, values, where))
            for weight, home, parts in zip(weights, homes, zip(*means, strict=True), strict=True):
                update = lambda _, *parts, weight=weight: store(weight, *absolute_sum(parts))  # noqa: E731
                strategy.extended.update(home, update, args=parts, group=False)
            return tf.constant(False)

        if due is True:
            work()
        else:  # it is the same on all replicas
            tf.cond(strategy.experimental_local_results(due)[0], work, lambda: tf.constant(False))

    if values:
        tf.__internal__.distribute.interim.maybe_merge_call(exchange, strategy, due, *values)
    return flag


def _means(strategy: Any, values: Sequence[Any], where: Sequence[Any]) -> Sequence[Any]:
    """The means over all replicas, on the devices of the variables `where`."""
    mean, replica = tf.distribute.ReduceOp.MEAN, tf.distribute.get_replica_context()
    if replica is not None:  # XLA on GPUs: each replica does this by itself
        return replica.all_reduce(mean, list(values))
    return strategy.extended.batch_reduce_to(mean, list(zip(values, where, strict=True)))
