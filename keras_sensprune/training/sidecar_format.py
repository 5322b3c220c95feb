"""What is in a side-car file, and whether it is well formed and of this model.

An .npz file, sealed (see `keras_sensprune.archive`). Its header holds what numbers and strings can say. For state 0
(and 1, the newer one) there are the arrays `0/mask/3` (one bit per entry of the pruned weight at position 3, row-major,
first bit highest), `0/sensitivity/3` and, for smooth layers of order 2, `0/curvature/3` (float32, of its shape).
"""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np

from keras_sensprune.archive import array_of
from keras_sensprune.errors import DataError
from keras_sensprune.records import PruneRecord, from_dict, to_dict
from keras_sensprune.training.snapshot import Snapshot, counters, description, expected_arrays
from keras_sensprune.training.step import PruningSession

FORMAT = 1
_LARGEST = 2**63 - 1


def header_of(session: PruningSession, kept: list[Snapshot], threshold: float | None) -> dict[str, Any]:
    """All but the arrays; the records of an older snapshot are the first ones of the newer."""
    states = [
        {
            "epochs": snapshot.epochs,
            "iterations": snapshot.iterations,
            "records": len(snapshot.records),
            "counters": snapshot.counters,
            "memory": snapshot.memory,
            "seeds": snapshot.seeds,
            "global_seed": snapshot.global_seed,
        }
        for snapshot in kept
    ]
    return {
        "format": FORMAT,
        "description": description(session),
        "labels": [weight.label for weight in session.weights],
        "threshold": threshold,
        "records": to_dict(kept[-1].records),
        "states": states,
    }


def arrays_of(kept: list[Snapshot]) -> dict[str, np.ndarray]:
    """The arrays of all snapshots by their names in the file."""
    return {f"{number}/{name}": array for number, s in enumerate(kept) for name, array in s.arrays.items()}


def checked_states(header: Any, session: PruningSession) -> list[dict[str, Any]]:
    """The states in a header, after every field of it has been looked at.

    Raises:
        DataError: if the header is malformed or describes another model or configuration.
    """
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"its header is not one of format {FORMAT}, which this version of keras_sensprune writes.")
    _compare(header.get("description"), description(session), header.get("labels"), session)
    threshold, states, records = (header.get(name) for name in ("threshold", "states", "records"))
    if "threshold" not in header or not (threshold is None or _is_number(threshold)):
        raise DataError("`threshold` in its header is no number.")
    if not isinstance(records, list):
        raise DataError("`records` in its header is no list.")
    if not isinstance(states, list) or not 1 <= len(states) <= 2:
        raise DataError("`states` in its header is no list of one or two.")
    for state in states:
        _check_state(state, len(records), set(counters(session)))
    return states


def read_snapshot(archive: zipfile.ZipFile, header: dict[str, Any], number: int, session: PruningSession) -> Snapshot:
    """The snapshot of one of the checked states; its arrays must have the sizes that the session expects.

    Raises:
        DataError: if an array or a record is not what it should be.
    """
    arrays = {}
    for name, expected in expected_arrays(session).items():

        def unexpected(*found: Any, expected: Any = expected) -> str | None:
            return None if found == expected else f"is {found[1]} of shape {found[0]}, not {expected[1]} {expected[0]}"

        arrays[name] = array_of(archive, f"{number}/{name}", unexpected)
    state = header["states"][number]
    return Snapshot(
        state["epochs"],
        state["iterations"],
        state["counters"],
        state["memory"],
        tuple(map(tuple, state["seeds"])),
        None if state["global_seed"] is None else tuple(state["global_seed"]),
        _records(header["records"][: state["records"]]),
        arrays,
    )


def _check_state(state: Any, records: int, names: set[str]) -> None:
    if not isinstance(state, dict) or not all(
        _is_count(state.get(name)) for name in ("epochs", "iterations", "records")
    ):
        raise DataError("a state in its header lacks a count.")
    if state["records"] > records:
        raise DataError(f"a state in its header has {state['records']} records, but there are {records}.")
    counted = state.get("counters")
    if not isinstance(counted, dict) or set(counted) != names or not all(map(_is_count, counted.values())):
        raise DataError(f"a state in its header has other counters than {', '.join(sorted(names))}.")
    memory = state.get("memory")
    if not isinstance(memory, dict) or not all(map(_is_number, memory.values())):
        raise DataError("a state in its header has a memory that is no table of numbers.")
    seeds, general = state.get("seeds"), state.get("global_seed", "missing")
    if not isinstance(seeds, list) or not all(map(_is_seed, seeds)) or not (general is None or _is_seed(general)):
        raise DataError("a state in its header has a seed that is no list of integers.")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _is_seed(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_integer, value))


def _compare(found: Any, expected: dict[str, Any], labels: Any, session: PruningSession) -> None:
    """Raises a DataError that names the first thing in which a file and a session differ."""
    if found == expected:
        return
    if not isinstance(found, dict) or not all(isinstance(found.get(k), type(v)) for k, v in expected.items()):
        raise DataError("`description` in its header is malformed.")
    for name in ("structure", "sensitivity"):
        if found[name] != expected[name]:
            raise DataError(f"it was made with {name} {found[name]}, but this run has {expected[name]}.")
    theirs, ours = found["weights"], expected["weights"]
    if len(theirs) != len(ours):
        raise DataError(f"it describes {len(theirs)} pruned weights, but the model has {len(ours)}.")
    known = labels if isinstance(labels, list) and len(labels) == len(ours) else ["?"] * len(ours)
    for number, weight in enumerate(session.weights):
        if theirs[number] != ours[number]:
            raise DataError(
                f"its pruned weight {number} ({known[number]}) is {theirs[number]}, but that of the model "
                f"({weight.label}) is {ours[number]}."
            )
    raise DataError("`description` in its header has fields that this version does not know.")


def _records(values: list[Any]) -> tuple[PruneRecord, ...]:
    """Records from JSON, with the types that `PruneRecord` promises."""
    try:
        records = from_dict(values)
    except Exception as error:
        raise DataError(f"its records are malformed: {error}") from None
    sample = PruneRecord(epoch=0, threshold=0.0, total=1, nonzero_before=1, nonzero=1, penalty=0.0)
    for record in records:
        if not isinstance(record, PruneRecord) or not all(_alike(vars(record)[k], v) for k, v in vars(sample).items()):
            raise DataError("its records are malformed: one is no PruneRecord, or has a field of another type.")
    return records


def _alike(value: Any, sample: Any) -> bool:
    if isinstance(sample, float):
        return _is_number(value)
    if isinstance(sample, tuple):
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return type(value) is type(sample)
