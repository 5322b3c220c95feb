"""Zip files of arrays with a header and a digest: written whole or not at all, and read with suspicion."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from keras_sensprune.arrays import read_array
from keras_sensprune.errors import DataError

HEADER = "header.json"
LARGEST_HEADER = 2**28  # bytes; one record of an epoch takes some hundred
_DIGEST = 64  # hexadecimal digits of SHA-256, the comment with which a sealed file ends


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], kind: str, remedy: str) -> Iterator[None]:
    """Turns whatever goes wrong in the block into a `DataError` that names the file.

    Args:
        path: the file that the block reads.
        kind: what it should be, as the end of "it cannot be read as ...".
        remedy: sentences that say what was expected or what to do.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error} {remedy}") from None
    except Exception as error:  # zipfile lets through what zlib, lzma, struct and ast raise: too many to list
        raise DataError(f"{path}: it cannot be read as {kind} ({type(error).__name__}: {error}). {remedy}") from None


def array_of(
    archive: zipfile.ZipFile, key: str, refuse: Callable[[tuple[int, ...], np.dtype], str | None]
) -> np.ndarray:
    """One array of an open file, whose member is called `key` + ".npy"; see `read_array`."""
    entry = archive.getinfo(f"{key}.npy")
    with archive.open(entry) as file:
        return read_array(file, key, entry.file_size, refuse)


def write_sealed(path: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file with a JSON header and a SHA-256 digest of all its bytes: whole, or not at all.

    It is written under another name in the same folder, brought to the disk, and then renamed.

    Args:
        path: where; an existing file is replaced.
        header: plain dictionaries, lists, numbers and strings.
        arrays: by name; no objects.

    Raises:
        OSError: if the folder or the disk does not take it; `path` is then as before.
    """
    with replacing(path, "w+b") as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = b"0" * _DIGEST
            archive.writestr(zipfile.ZipInfo(HEADER), json.dumps(header))
            for key, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        digest = _digest(file)
        file.seek(-_DIGEST, os.SEEK_END)
        file.write(digest)


@contextlib.contextmanager
def replacing(path: str, mode: str, encoding: str | None = None) -> Iterator[Any]:
    """A file to be written, which is given the name `path` when it is complete and on the disk.

    Raises:
        OSError: if the folder or the disk does not take it; `path` is then as before.
    """
    with open(partial_path(path), mode, encoding=encoding) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial_path(path), path)
    _bring_folder_to_disk(os.path.dirname(os.path.abspath(path)))


def try_place(path: str) -> None:
    """Makes the file under which `path` would be written, and removes it.

    Raises:
        OSError: if no file can be made there.
    """
    with open(partial_path(path), "wb"):
        pass
    os.remove(partial_path(path))


def partial_path(path: str) -> str:
    """The name under which a file is written before it gets its own; one that was left over is overwritten."""
    return f"{path}.partial"


@contextlib.contextmanager
def open_sealed(path: str) -> Iterator[tuple[Any, zipfile.ZipFile]]:
    """(header, open file) of what `write_sealed` wrote; its digest is compared before anything in it is parsed.

    Args:
        path: the file.

    Raises:
        DataError: if the file is not what was once written, or its header is too long.
        Exception: almost any, if it is no such file; see `reading`.
    """
    with open(path, "rb") as file:
        digest = _digest(file)
        if file.read(_DIGEST) != digest:
            raise DataError("it is damaged: its content does not have the digest with which it ends.")
        with zipfile.ZipFile(file) as archive:
            with archive.open(HEADER) as member:
                text = member.read(LARGEST_HEADER + 1)
            if len(text) > LARGEST_HEADER:
                raise DataError(f"its header is longer than the allowed {LARGEST_HEADER:,} bytes.")
            yield json.loads(text), archive


def _digest(file: BinaryIO) -> bytes:
    """SHA-256 of all but the last bytes of a file, in hexadecimal; the position is then at the rest."""
    left = max(0, file.seek(0, os.SEEK_END) - _DIGEST)
    file.seek(0)
    found = hashlib.sha256()
    while left > 0:
        chunk = file.read(min(left, 2**20))
        if not chunk:
            break
        found.update(chunk)
        left -= len(chunk)
    return found.hexdigest().encode()


def _bring_folder_to_disk(folder: str) -> None:
    """So that the new name survives a power cut; not every system opens folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
