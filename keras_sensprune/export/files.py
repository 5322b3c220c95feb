"""A file gets its name only when it is complete: where one may be written, and how it gets there."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

from keras_sensprune.errors import ArgumentError, ExportError, argument_error


def checked_target(path: Any, overwrite: Any) -> pathlib.Path:
    """`path`, if a file may be written there.

    Raises:
        ArgumentError: if not, with the reason.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise argument_error("path", "the name of a file", path)
    if not isinstance(overwrite, bool):
        raise argument_error("overwrite", "True or False", overwrite)
    target = pathlib.Path(os.fspath(path))
    exists = name_exists(target, "path")
    if not target.parent.is_dir():
        raise argument_error("path", "in a folder that exists", str(path), "Create the folder first.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise argument_error("path", "in a folder that may be written to", str(path))
    if target.is_dir():
        raise argument_error("path", "the name of a file, not of a folder", str(path))
    if exists and not overwrite:
        raise _exists(path)
    return target


def name_exists(target: pathlib.Path, argument: str) -> bool:
    """Whether anything has this name, also a link to nothing.

    Raises:
        ArgumentError: naming the argument, if no file could have it.
    """
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise argument_error(argument, "a name that the file system takes", str(target), f"Here: {reason}.") from None
    return True


def _exists(path: Any) -> ArgumentError:
    return argument_error("path", "a file that does not exist", str(path), "Pass overwrite=True to replace it.")


@contextlib.contextmanager
def temporary_file(target: pathlib.Path, suffix: str = ".tmp") -> Iterator[pathlib.Path]:
    """A new name beside `target`; whatever is left under it is removed at the end, also after Ctrl-C.

    Raises:
        ExportError: in place of an `OSError` in the block, such as a full disk; `target` is as it was.
    """
    file = target.with_name(f".sensprune-{secrets.token_hex(8)}{suffix}")  # short, whatever the length of the target's
    try:
        yield file
    except OSError as error:
        raise ExportError(f"{str(target)!r} was not written: {error.strerror or error}.") from error
    finally:
        file.unlink(missing_ok=True)


def give_name(file: pathlib.Path, target: pathlib.Path, overwrite: bool) -> None:
    """The finished file gets its name; without `overwrite` only if nothing has it, in one step.

    Raises:
        ArgumentError: if a file has appeared there while we worked.
    """
    if overwrite:
        checked_target(target, overwrite)  # a folder may have appeared
        os.replace(file, target)
        return
    try:
        os.link(file, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # a file system without hard links: look first, the best that can be done there
        os.replace(file, checked_target(target, overwrite))


def write(file: pathlib.Path, content: bytes) -> None:
    """`content` under a name, safely on the disk."""
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())  # the later rename must not outrun the content
