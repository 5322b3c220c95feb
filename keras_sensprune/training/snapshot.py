"""The state of a pruning session as numbers and arrays, and back: what a resumed run cannot find in a checkpoint.

Keras's own checkpoints hold weights, optimizer slots, learning rate and step count. They do not hold the states of seed
generators (dropout and the like), which are therefore part of a snapshot. Masks of biases follow from those of kernels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sensprune.errors import DataError, ModelError
from keras_sensprune.records import PruneRecord
from keras_sensprune.training.step import PruningSession

_MASK = "mask/"


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """A session between two epochs.

    Attributes:
        epochs: epochs (in custom loops: prunings) done.
        iterations: updates that the optimizer had made by then.
        counters: those of the rule, by name.
        memory: what the rule that chooses what goes remembers, by name.
        seeds: states of the model's seed generators, in the order of its layers.
        global_seed: that of Keras's own generator; None if nothing had used it.
        records: one per epoch done.
        arrays: masks, one bit per weight, and float32 sensitivities and curvatures, by name.
    """

    epochs: int
    iterations: int
    counters: dict[str, int]
    memory: dict[str, float]
    seeds: tuple[tuple[int, ...], ...]
    global_seed: tuple[int, ...] | None
    records: tuple[PruneRecord, ...]
    arrays: dict[str, np.ndarray]


def updates_made(model: Any) -> int:
    """How many updates the optimizer of a compiled model has made.

    Raises:
        ModelError: if the model has no optimizer that counts them.
    """
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    if iterations is None:
        raise ModelError(
            f"Model {getattr(model, 'name', model)!r} has no optimizer that counts its updates. Compile it first."
        )
    return int(iterations.numpy())


def take_snapshot(session: PruningSession, epochs: int, records: Sequence[PruneRecord]) -> Snapshot:
    """Copies the state of a session.

    Args:
        session: an attached session, between two steps.
        epochs: how many are done.
        records: one per epoch done.
    """
    general = _global_generator()
    return Snapshot(
        epochs,
        updates_made(session.model),
        {name: int(variable.numpy()) for name, variable in counters(session).items()},
        dict(session.memory),
        tuple(_state(generator) for generator in seed_generators(session.model)),
        None if general is None else _state(general),
        tuple(records),
        {
            name: np.packbits(variable.numpy() != 0) if name.startswith(_MASK) else variable.numpy().copy()
            for name, variable in _variables(session).items()
        },
    )


def restore_snapshot(session: PruningSession, snapshot: Snapshot) -> None:
    """Puts a snapshot back; weights that its masks do not allow are set to zero (there are none in an exact restart).

    Args:
        session: an attached session whose `expected_arrays` are those of the snapshot.
        snapshot: what to put back.

    Raises:
        DataError: if the model has another number of seed generators, or a number is too large.
    """
    generators = seed_generators(session.model)
    if len(generators) != len(snapshot.seeds):
        raise DataError(f"it has {len(snapshot.seeds)} states of seed generators, the model {len(generators)}.")
    pairs = list(zip(generators, snapshot.seeds, strict=True))
    if snapshot.global_seed is not None:
        pairs.append((keras.src.random.seed_generator.global_seed_generator(), snapshot.global_seed))
    if any(len(seed) != len(_state(generator)) for generator, seed in pairs):
        raise DataError("its states of seed generators have another length than those of this version of Keras.")
    for generator, seed in pairs:
        generator.state.assign(np.array(seed, generator.state.dtype))
    session.memory = dict(snapshot.memory)
    for name, variable in counters(session).items():
        variable.assign(snapshot.counters[name])
    for name, variable in _variables(session).items():
        value = snapshot.arrays[name]
        if name.startswith(_MASK):
            value = np.unpackbits(value, count=math.prod(variable.shape)).reshape(variable.shape).astype("float32")
        variable.assign(value)
    for weight in session.weights:
        weight.remask()


def expected_arrays(session: PruningSession) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> (shape, dtype) of the arrays in a snapshot of this session."""
    return {
        name: ((-(-math.prod(variable.shape) // 8),), np.dtype("uint8"))
        if name.startswith(_MASK)
        else (tuple(variable.shape), np.dtype("float32"))
        for name, variable in _variables(session).items()
    }


def description(session: PruningSession) -> dict[str, Any]:
    """What two sessions must share for the snapshot of one to fit the other, as plain JSON values."""
    sensitivity = {**vars(session.sensitivity), "output_fn": session.sensitivity.output_fn is not None}
    weights = [
        {"shape": list(w.variable.shape), "dtype": str(w.variable.dtype), "curved": w.curvature is not None}
        for w in session.weights
    ]
    return {"structure": session.grouping.structure, "sensitivity": sensitivity, "weights": weights}


def seed_generators(model: Any) -> list[Any]:
    """The seed generators of a model and its layers, each once."""
    found = [generator for layer in model._flatten_layers() for generator in layer._seed_generators]
    return list({id(generator): generator for generator in found}.values())


def _global_generator() -> Any | None:
    """Keras's generator for random operations without a seed, if there is one yet."""
    seeds = keras.src.random.seed_generator
    return keras.src.backend.common.global_state.get_global_attribute(seeds.GLOBAL_SEED_GENERATOR)


def _state(generator: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in generator.state.numpy())


def counters(session: PruningSession) -> dict[str, Any]:
    """The counting variables of a session, by name."""
    return {**session.rule.pace.counters, "step": session.rule.health.step}


def _variables(session: PruningSession) -> dict[str, Any]:
    """Name in the file -> what is held beside a weight; weights by their position."""
    found = {}
    for number, weight in enumerate(session.weights):
        found[f"{_MASK}{number}"] = weight.mask
        found[f"sensitivity/{number}"] = weight.sensitivity
        if weight.curvature is not None:
            found[f"curvature/{number}"] = weight.curvature
    return found
