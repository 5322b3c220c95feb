"""The file of a search that can be stopped and resumed: one record as JSON, replaced whole after each training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from keras_sensprune.archive import reading, replacing, try_place
from keras_sensprune.errors import DataError, argument_error
from keras_sensprune.records import from_json, to_json
from keras_sensprune.training.sidecar import path_argument

_LARGEST = 2**28  # bytes; a training takes some hundred
_REMEDY = "Delete it to begin anew, or choose another path."


class RecordFile:
    """A file that holds how far a search has come.

    Args:
        path: where; the folder must exist and be writable, which is tried. None: nothing is read or written.

    Raises:
        ArgumentError: if `path` is no path, or no file can be made in its folder.
    """

    def __init__(self, path: str | os.PathLike[str] | None):
        self.path = None if path is None else path_argument("path", path)
        if self.path is None:
            return
        try:
            try_place(self.path)
        except OSError as error:
            remedy = f"No file can be made there ({type(error).__name__}: {error}). Make the folder, or choose another."
            raise argument_error("path", "the path of a file in an existing, writable folder", path, remedy) from None

    def resumed(self, plan: Any, consistent: Callable[[Any], bool]) -> Any:
        """The record in the file, if there is one, else the plan.

        Args:
            plan: a record of the same type, before the first training. What it holds at its default value is what a
                search adds.
            consistent: whether a record of this plan can have been written by a search.

        Raises:
            DataError: if the file is damaged, holds something else, or belongs to another plan.
        """
        if self.path is None or not os.path.lexists(self.path):
            return plan
        kind = type(plan).__name__
        with reading(self.path, f"a {kind}", _REMEDY):
            if os.path.getsize(self.path) > _LARGEST:
                raise DataError(f"it is longer than the allowed {_LARGEST:,} bytes.")
            with open(self.path, encoding="utf-8") as file:
                found = from_json(file.read())
            if type(found) is not type(plan):
                raise DataError(f"it holds no {kind} (type: {type(found).__name__}).")
            changed = _differences(plan, found)
            if changed:
                raise DataError(f"it belongs to a search with other settings: {'; '.join(changed)}.")
            if not consistent(found):
                raise DataError("it is damaged: its parts do not fit together.")
        return found

    def write(self, record: Any) -> None:
        """Replaces the file: whole, or not at all.

        Raises:
            DataError: if the disk does not take it; the file is then as before.
        """
        if self.path is None:
            return
        try:
            with replacing(self.path, "w", "utf-8") as file:
                file.write(to_json(record) + "\n")
        except OSError as error:
            raise DataError(
                f"{self.path}: the trainings that are done could not be written ({type(error).__name__}: {error}); the "
                "file is as it was before. Make room, and start the same search again: it goes on from there."
            ) from None


def _differences(plan: Any, found: Any) -> list[str]:
    """What the plan says and the file contradicts, as text."""
    told = []
    for field in dataclasses.fields(plan):
        asked, there = getattr(plan, field.name), getattr(found, field.name)
        if field.default is not dataclasses.MISSING or asked == there:
            continue
        if dataclasses.is_dataclass(asked):
            told += _differences(asked, there)
        else:
            told.append(f"{field.name} was {there!r}, now it is {asked!r}")
    return told
