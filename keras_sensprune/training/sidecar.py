"""The side-car file: the last two snapshots of a pruning session, beside Keras's own checkpoints.

It is written before Keras writes its checkpoint of the same epoch. A process that dies between the two leaves a
checkpoint that is one epoch older than the newest snapshot. So the one before is kept too, and the number of updates
that the restored optimizer has made tells which of them belongs to the model.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from keras_sensprune.archive import open_sealed, reading, try_place, write_sealed
from keras_sensprune.errors import DataError, argument_error
from keras_sensprune.records import PruneRecord
from keras_sensprune.training.sidecar_format import arrays_of, checked_states, header_of, read_snapshot
from keras_sensprune.training.snapshot import Snapshot, restore_snapshot, take_snapshot, updates_made
from keras_sensprune.training.step import PruningSession

_KIND = "a pruning state"
_REMEDY = "Put back an intact file of this run; or delete it and the checkpoints, and train from the beginning."


def path_argument(name: str, path: Any) -> str:
    """`path` as a string, if it is the path of a file.

    Raises:
        ArgumentError: if it is no path, empty, or a folder.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        text = ""
    if not text or "\0" in text or text.endswith(os.sep) or os.path.isdir(text):
        raise argument_error(name, "the path of a file", path)
    return text


class SideCar:
    """One side-car file during one run.

    Args:
        path: where; the folder must exist and be writable, which is tried.
        threshold: of the run, to be compared with that in the file; None if there is none.
        name: of the argument that holds the path, for messages.

    Raises:
        ArgumentError: if `path` is no path, or no file can be made in its folder.
    """

    def __init__(self, path: Any, threshold: float | None = None, name: str = "state_path"):
        self.path = path_argument(name, path)
        self.threshold = threshold
        self._kept: list[Snapshot] | None = None  # what the file holds; None: it is not known to be this run's
        try:
            try_place(self.path)
        except OSError as error:
            remedy = f"No file can be made there ({type(error).__name__}: {error}). Make the folder, or choose another."
            raise argument_error(name, "the path of a file in an existing, writable folder", path, remedy) from None

    def exists(self) -> bool:
        """Whether there is something at the path."""
        return os.path.lexists(self.path)

    def save(self, session: PruningSession, epochs: int, records: Sequence[PruneRecord]) -> None:
        """Adds a snapshot to the file, and drops all but the one before it.

        Args:
            session: an attached session, between two steps.
            epochs: how many are done.
            records: one per epoch done.

        Raises:
            DataError: if there is a file that this run has neither read nor written, or the disk does not take it.
        """
        if self._kept is None and self.exists():
            raise DataError(
                f"{self.path}: the file exists and belongs to another run. Load it, delete it, or choose another path."
            )
        kept = [*(self._kept or [])[-1:], take_snapshot(session, epochs, records)]
        try:
            write_sealed(self.path, header_of(session, kept, self.threshold), arrays_of(kept))
        except OSError as error:
            raise DataError(
                f"{self.path}: the state could not be written ({type(error).__name__}: {error}); the file is as it was "
                "before. Make room, and start the same run again: it goes on from there."
            ) from None
        self._kept = kept

    def begin(self, session: PruningSession, epoch: int) -> tuple[PruneRecord, ...] | None:
        """What to do when `fit` begins: go on, begin anew, or refuse.

        Args:
            session: an attached session of a model that has been restored if it is to be.
            epoch: the first epoch that will be trained.

        Returns:
            The records of the epochs before, if the session goes on from the file, which has then been put back; None
            if training begins anew.

        Raises:
            DataError: if the file is missing though epochs were skipped, damaged, of another model or another time.
        """
        if self.exists():
            return self.restore(session, epoch)
        if epoch > 0:
            raise DataError(
                f"{self.path}: there is no such file, but training starts at epoch {epoch}, so it goes on from a run "
                "whose pruning state should be in this file. Put it back; or train from epoch 0 to begin pruning anew."
            )
        self._kept = []
        return None

    def restore(self, session: PruningSession, epoch: int | None = None) -> tuple[PruneRecord, ...] | None:
        """Puts back the snapshot that belongs to the model as it is now.

        Args:
            session: an attached session.
            epoch: how many epochs must have been done; None in custom loops.

        Returns:
            Its records; None if it is the one from the very beginning of `fit`, which then begins anew.

        Raises:
            DataError: if the file is missing, damaged, of another model or another time.
        """
        if not os.path.isfile(self.path):
            raise DataError(f"{self.path}: there is no such file. Save a state there before it is loaded.")
        iterations = updates_made(session.model)
        with reading(self.path, _KIND, _REMEDY), open_sealed(self.path) as (header, archive):
            states = checked_states(header, session)
            number = _chosen(states, iterations, epoch)
            snapshot = None if number is None else read_snapshot(archive, header, number, session)
        if snapshot is None:
            raise DataError(f"{self.path}: {_no_state(states, iterations, epoch)}")
        self._warn_of_another_threshold(header["threshold"])
        if epoch == 0:
            self._kept = []
            return None
        with reading(self.path, _KIND, _REMEDY):
            restore_snapshot(session, snapshot)
        self._kept = [snapshot]
        return snapshot.records

    def _warn_of_another_threshold(self, threshold: float | None) -> None:
        if None not in (threshold, self.threshold) and threshold != self.threshold:
            warnings.warn(
                f"{self.path} was written with threshold={threshold:g}; from here on it is {self.threshold:g}.",
                stacklevel=2,
            )


def _chosen(states: list[dict[str, Any]], iterations: int, epoch: int | None) -> int | None:
    """The number of the newest state with so many updates, at the beginning of that epoch."""
    fitting = [
        number
        for number, state in enumerate(states)
        if state["iterations"] == iterations and epoch in (None, state["epochs"])
    ]
    return fitting[-1] if fitting else None


def _no_state(states: list[dict[str, Any]], iterations: int, epoch: int | None) -> str:
    """Why none of the states belongs to the model, and what to do."""
    done = [state["epochs"] for state in states if state["iterations"] == iterations]
    if done:
        return (
            f"its state after {iterations:,} updates, as many as the model has made, belongs to the beginning of epoch "
            f"{done[-1]}, but training starts at epoch {epoch}. To go on, train with fit(..., "
            f"initial_epoch={done[-1]}); for another run, delete the file or choose another path. If "
            "BackupAndRestore chose the epoch, the process died between its two files: write "
            f'"epoch": {done[-1]} into its training_metadata.json.'
        )
    held = " and ".join(f"{state['iterations']:,} updates (epoch {state['epochs']})" for state in states)
    start = "" if epoch is None else f" and training starts at epoch {epoch}"
    return (
        f"it holds the state after {held}, but the model has made {iterations:,}{start}. To go on, restore the model "
        "as it was then: with BackupAndRestore, or load it and pass initial_epoch to fit. To begin anew, delete the "
        "file or choose another path."
    )
