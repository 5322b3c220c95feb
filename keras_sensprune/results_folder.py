"""A folder of results: checked before any work, filled only when everything is finished."""

from __future__ import annotations

import os
from collections.abc import Sequence

from keras_sensprune.errors import ArgumentError, argument_error


def prepare_folder(output: str, overwrite: bool, names: Sequence[str]) -> None:
    """Makes the folder and checks that results can be written.

    Args:
        output: the folder.
        overwrite: whether results that exist may be replaced.
        names: of the files that will be written.

    Raises:
        ArgumentError: if it cannot be made or written to, or holds results that may not be replaced.
    """
    try:
        os.makedirs(output, exist_ok=True)
        probe = os.path.join(output, f".write-test-{os.getpid()}")
        with open(probe, "x"):
            pass
        os.remove(probe)
    except (OSError, ValueError) as error:
        raise argument_error(
            "output", "a folder that can be written to", output, f"The system says: {error}."
        ) from None
    there = [name for name in names if os.path.exists(os.path.join(output, name))]
    if there and not overwrite:
        raise ArgumentError(
            f"Folder {output!r} already holds {', '.join(there)}. Choose another `--output`, or pass `--overwrite`."
        )


def publish(finished: str, output: str, names: Sequence[str]) -> list[str]:
    """Moves finished results into the output folder; a result of an earlier run that this one lacks is removed.

    Args:
        finished: folder with the finished files.
        output: the folder for the results.
        names: of all files that a run may write.

    Returns:
        The names of the files that were moved.
    """
    written = [name for name in names if os.path.exists(os.path.join(finished, name))]
    for name in names:
        target = os.path.join(output, name)
        if name in written:
            os.replace(os.path.join(finished, name), target)
        elif os.path.exists(target):
            os.remove(target)
    return written
