"""The file with which `sparsify` goes on after it was killed: the phases that are done, and the last good weights.

One sealed file (see `keras_sensprune.archive`), so that weights and record always belong together: a header with the
settings of the run and its phases, and the arrays `0`, `1`, ... of `model.weights`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_sensprune.archive import array_of, open_sealed, reading, try_place, write_sealed
from keras_sensprune.errors import DataError, argument_error
from keras_sensprune.planning.feed import digest
from keras_sensprune.records import from_dict, to_dict
from keras_sensprune.records.planning import PhaseRecord

DENSE = "dense"  # name of the first phase
FILE = "sparsify.state"
FORMAT = 3
_KIND = "the state of a sparsify run"
_REMEDY = "Put back an intact file of this run; or delete it to begin anew, or choose another folder."


@dataclasses.dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes:
        why: there was no further round.
        unmet: names of the budgets that were not met.
    """

    why: str
    unmet: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """A run between two phases, or at its end.

    Attributes:
        phases: those that are done.
        weights: the last good ones, in the order of `model.weights`.
        target: the number of prunable weights that is small enough; None where the budget has no size, or no
            round was made yet.
        end: how it ended; None before.
    """

    phases: tuple[PhaseRecord, ...]
    weights: list[np.ndarray]
    target: int | None
    end: End | None = None


class ProgressFile:
    """The file of one run.

    Args:
        folder: it is made if it does not exist.
        settings: everything that a run which goes on must have in common with the one that was killed; plain JSON.
        begun_with: digest of the weights with which it begins, where they are trained already; None where not.

    Raises:
        ArgumentError: if no file can be made in the folder.
    """

    def __init__(self, folder: Any, settings: Mapping[str, Any], begun_with: str | None = None):
        allowed = "the path of a folder that can be written to"
        try:
            self.path = os.path.join(os.fsdecode(folder), FILE)
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            try_place(self.path)
        except (OSError, TypeError, ValueError) as error:
            raise argument_error("folder", allowed, folder, f"The system says: {error}.") from None
        self.settings, self.begun_with = settings, begun_with

    def load(self, model: Any) -> Progress | None:
        """What an earlier call with the same settings has left; None if there is nothing.

        Args:
            model: the model, which is not changed.

        Raises:
            DataError: if the file is damaged, of another model or of a run with other settings.
        """
        if not os.path.lexists(self.path):
            return None
        with reading(self.path, _KIND, _REMEDY), open_sealed(self.path) as (header, archive):
            phases, target, end = self._checked(header)
            weights = []
            for number, variable in enumerate(model.weights):
                expected = (tuple(variable.shape), np.dtype(variable.dtype))

                def unexpected(*found: Any, expected: Any = expected) -> str | None:
                    return None if found == expected else f"is {found[1]} {found[0]}, not {expected[1]} {expected[0]}"

                weights.append(array_of(archive, str(number), unexpected))
            if self.begun_with not in (begun := header.get("begun with"), digest(weights)):
                raise DataError("it was made from other weights than those that the model has.")
            self.begun_with = begun
        return Progress(phases, weights, target, end)

    def save(self, progress: Progress) -> None:
        """Replaces the file as a whole.

        Raises:
            DataError: if the disk does not take it; the file is as it was.
        """
        header = {"format": FORMAT, "settings": self.settings, "target": progress.target}
        header["phases"], header["begun with"] = to_dict(progress.phases), self.begun_with
        header["end"] = None if progress.end is None else [progress.end.why, *progress.end.unmet]
        try:
            write_sealed(self.path, header, {str(n): array for n, array in enumerate(progress.weights)})
        except OSError as error:
            raise DataError(
                f"{self.path}: the state could not be written ({type(error).__name__}: {error}); the file is as it was "
                "before. Make room, and start the same run again: it goes on from there."
            ) from None

    def _checked(self, header: Any) -> tuple[tuple[PhaseRecord, ...], int | None, End | None]:
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise DataError(f"its header is not one of format {FORMAT}, which this version of keras_sensprune writes.")
        found = header.get("settings")
        if not isinstance(found, dict):
            raise DataError("`settings` in its header is malformed.")
        for name, ours in self.settings.items():
            if found.get(name) != ours:
                what, theirs, ours = _difference(name, found.get(name), ours)
                raise DataError(f"it was made with {what} {_cut(theirs)}, but this run has {_cut(ours)}.")
        phases = from_dict(header.get("phases"))
        if not isinstance(phases, tuple) or not phases or not all(map(_well_formed, phases)):
            raise DataError("`phases` in its header is malformed.")
        if phases[0].name != DENSE or not phases[0].accepted:
            raise DataError("`phases` in its header does not begin with a dense one.")
        target = header.get("target")
        if target is not None and (type(target) is not int or not 0 < target <= phases[0].total):
            raise DataError("`target` in its header is no number of weights.")
        end = header.get("end")
        if end is not None and not (isinstance(end, list) and end and all(isinstance(text, str) for text in end)):
            raise DataError("`end` in its header is malformed.")
        return phases, target, None if end is None else End(end[0], tuple(end[1:]))


def described_layers(model: Any) -> str:
    """A digest of the kinds and settings of all layers, in their order; their names do not count."""
    layers = []
    for layer in model._flatten_layers(include_self=False):
        try:
            config = {} if isinstance(layer, keras.Model) else layer.get_config()
        except NotImplementedError:  # a layer of the user's own
            config = {}
        layers.append([type(layer).__name__, _nameless(described(config))])
    return digest([np.array(json.dumps(layers, sort_keys=True))])


def _nameless(part: Any) -> Any:
    if isinstance(part, list):
        return [_nameless(item) for item in part]
    if isinstance(part, dict):
        return {key: _nameless(item) for key, item in part.items() if key != "name"}
    return part


def described(part: Any) -> Any:
    """What a model was compiled with, an optimizer or a loss, as plain JSON that is the same in every process."""
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, (list, tuple)):
        return [described(item) for item in part]
    if isinstance(part, dict):
        return {str(key): described(item) for key, item in part.items()}
    if hasattr(part, "get_config") and not isinstance(part, type):
        config = {key: value for key, value in part.get_config().items() if key != "name"}  # which Keras counts up
        return {"class": type(part).__name__, "config": described(config)}
    return getattr(part, "__name__", type(part).__name__)


def _difference(name: str, theirs: Any, ours: Any) -> tuple[str, Any, Any]:
    """The first entry that differs: its name in all dictionaries around it, and both values."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in ours:
            if theirs.get(key) != ours[key]:
                return _difference(f"{name} {key}", theirs.get(key), ours[key])
    return name, theirs, ours


def _well_formed(phase: Any) -> bool:
    return (
        isinstance(phase, PhaseRecord)
        and 0 < phase.nonzero <= phase.total
        and phase.epochs >= (0 if phase.name == DENSE else 1)
        and 0 <= phase.seconds < math.inf
    )


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
