"""Arrays from .npz and .npy files, read as if an enemy had written them.

Nothing is unpickled, and every size that a file claims is checked before memory is taken for it.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from keras_sensprune.errors import DataError

LARGEST = 4 * 2**30  # bytes of the arrays of a file together, uncompressed; MNIST has 55 million


def arrays_of_npz(path: str | os.PathLike[str], keys: Sequence[str] | None = None, kinds: str = "uif") -> dict:
    """Arrays of an .npz file.

    Args:
        path: the file.
        keys: names of the arrays that are wanted, others are not touched; None means all that it holds.
        kinds: what is allowed as `dtype.kind`.

    Returns:
        The arrays by name.

    Raises:
        DataError: if the file or one of the arrays cannot be used; the message says which and why.

    Example:
        >>> arrays_of_npz("nowhere.npz")
        Traceback (most recent call last):
            ...
        keras_sensprune.errors.DataError: nowhere.npz: there is no such file.
    """
    _check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _members(archive, keys, kinds)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # zipfile lets through what zlib, lzma, struct and ast raise: too many to list
        raise DataError(f"{path}: it cannot be read as .npz ({_reason(error)}).") from None


def array_of_npy(path: str | os.PathLike[str], kinds: str = "uif") -> np.ndarray:
    """The array of an .npy file.

    Args:
        path: the file.
        kinds: what is allowed as `dtype.kind`.

    Returns:
        The array.

    Raises:
        DataError: if the file cannot be used; the message says why.
    """
    _check_file(path)
    try:
        with open(path, "rb") as file:
            return read_array(file, "the array", os.fstat(file.fileno()).st_size, _other_than(kinds))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # NumPy lets through what struct, tokenize and ast raise
        raise DataError(f"{path}: it cannot be read as .npy ({_reason(error)}).") from None


def _check_file(path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file.")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _members(archive: zipfile.ZipFile, keys: Sequence[str] | None, kinds: str) -> dict[str, np.ndarray]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if keys is None:
        keys = [name.removesuffix(".npy") for name in entries if name.endswith(".npy")]
    missing = [key for key in keys if f"{key}.npy" not in entries]
    if missing or not keys:
        raise DataError(f"it lacks the arrays {', '.join(missing)}." if missing else "it holds no arrays.")
    wanted = {key: entries[f"{key}.npy"] for key in keys}
    total = sum(entry.file_size for entry in wanted.values())
    if total > LARGEST:
        raise DataError(f"its arrays unpack to {total:,} bytes, more than the allowed {LARGEST:,}.")
    found = {}
    for key, entry in wanted.items():
        with archive.open(entry) as file:
            found[key] = read_array(file, key, entry.file_size, _other_than(kinds))
    return found


def read_array(file: IO[bytes], key: str, size: int, refuse: Callable[[tuple[int, ...], np.dtype], str | None]) -> Any:
    """The array in an .npy file that is open. The size that it claims is checked before memory is taken for it.

    Args:
        file: at its beginning.
        key: the name of the array, for messages.
        size: bytes that the file holds.
        refuse: (shape, dtype) -> why such an array is not wanted, as the end of "`key` ..."; None if it is.

    Returns:
        The array; it cannot be written to.

    Raises:
        DataError: if the array is not wanted, or the file lies about its size.
        Exception: almost any, if the file is damaged.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{key} has the unknown .npy version {version}.")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    problem = refuse(shape, dtype)
    if problem:
        raise DataError(f"{key} {problem}.")
    claimed = math.prod(shape) * dtype.itemsize  # Python integers: no overflow
    held = size - file.tell()
    if any(length < 0 for length in shape) or claimed != held:
        raise DataError(f"{key} claims shape {shape} of {dtype}, {claimed:,} bytes, but holds {held:,}.")
    data = file.read(claimed + 1)  # up to its end, where the checksum is verified
    if len(data) != claimed:
        raise DataError(f"{key} is cut off after {len(data):,} of {claimed:,} bytes.")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _other_than(kinds: str) -> Callable[[tuple[int, ...], np.dtype], str | None]:
    return lambda shape, dtype: None if dtype.kind in kinds else f"has the dtype {dtype}, not numbers"
