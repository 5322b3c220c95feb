"""`.keras` files that anybody may have written: looked through before Keras opens them.

Keras builds the model from JSON (in its safe mode, which runs no code of the file) and reads the weights with HDF5, a
C library that a damaged file can end together with the process. So first a child reads every array of the file:
`python -m keras_sensprune.keras_file FILE`; it imports h5py only and takes half a second.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pathlib
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

from keras_sensprune.errors import DataError
from keras_sensprune.export.verify import child_environment, signal_name

WEIGHTS = "model.weights.h5"
MOST_JSON = 64 * 2**20  # bytes of one JSON file; that of a model with 1,000 layers has about one million
MOST_EXPANSION, FREE = 100, 64 * 2**20  # bytes unpacked may be so many times those stored, or so many in all
TIMEOUT = 60.0  # seconds for the child, and one more for each 10 MB
PER_BYTE = 16  # bytes of memory that loading may take for each byte of the file, unpacked
SPARE, PER_CORE = 2 * 2**30, 2**28  # address space besides: TensorFlow, its threads


def load_keras(path: str) -> Any:
    """A Keras model from a `.keras` file, without its compile state; code inside the file is never run.

    Args:
        path: the file.

    Returns:
        The model.

    Raises:
        DataError: naming the file and what is wrong with it: it is no archive, unpacks to far more than it stores,
            crashes HDF5, asks for far more memory than its weights need, or the first line of what Keras says.
    """
    size = _looked_through(path)
    import keras

    import keras_sensprune.training.regularizer  # noqa: F401  registers our regularizer for load_model

    try:
        with contextlib.redirect_stdout(io.StringIO()), limited_memory(PER_BYTE * size):
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many types for damaged files
        first = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
        raise _unreadable(path, first) from error


def _unreadable(path: str, reason: str) -> DataError:
    return DataError(f"Cannot read {path!r} as a Keras model: {reason}")


def _looked_through(path: str) -> int:
    """Bytes of the weights of a file that has been looked through, without Keras.

    Raises:
        DataError: if something is wrong with it.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe may never end
            raise _unreadable(path, "it is no regular file.")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            reason = _problem(entries)
    except FileNotFoundError:
        raise _unreadable(path, "it does not exist.") from None
    except DataError:
        raise
    except Exception as error:  # zipfile lets through struct.error, NotImplementedError and others
        raise _unreadable(path, f"it is no zip archive, as .keras files are ({str(error)[:200]}).") from None
    reason = reason or _problem_of_weights(path)
    if reason:
        raise _unreadable(path, reason)
    return sum(entry.file_size for entry in entries)


def _problem(entries: list[zipfile.ZipInfo]) -> str:
    """What is wrong with the members of an archive, or the empty string."""
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        return "two of its members have the same name."
    if not {"config.json", WEIGHTS} <= set(names):
        return f"it lacks config.json or {WEIGHTS}."
    for entry in entries:
        name = pathlib.PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            return f"its member {entry.filename[:80]!r} points out of the archive."
        if entry.filename.endswith(".json") and entry.file_size > MOST_JSON:
            return f"its {entry.filename[:80]} of {entry.file_size:,} bytes is larger than the allowed {MOST_JSON:,}."
        if entry.file_size > max(FREE, MOST_EXPANSION * entry.compress_size):
            stored = f"{entry.file_size:,} bytes, but {entry.compress_size:,} are stored"
            return f"its member {entry.filename[:80]!r} unpacks to {stored}."
    return ""


def _problem_of_weights(path: str) -> str:
    """What a child says that has read all weights, or the empty string."""
    command = [sys.executable, "-W", "ignore", "-m", "keras_sensprune.keras_file", path]
    limit = TIMEOUT + os.path.getsize(path) / 10e6
    try:
        child = subprocess.run(
            command, env=child_environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return f"reading its weights did not end within {limit:.0f} seconds."
    if child.returncode < 0:
        return f"its weights crash HDF5: the process was ended by {signal_name(child.returncode)}."
    lines = child.stderr.decode(errors="replace").strip().splitlines()
    if child.returncode:
        return f"its weights cannot be read ({lines[-1].strip()[:300] if lines else f'exit code {child.returncode}'})."
    return ""


def read_weights(path: str) -> int:
    """Reads every array of the weights of a `.keras` file, as the child does; returns how many there are.

    Raises:
        DataError: if something there is no plain array or leads out of the file.
        Exception: whatever HDF5 raises; it can also end the process.
    """
    import h5py

    with zipfile.ZipFile(path) as archive:
        content = archive.read(WEIGHTS)
    arrays, groups = 0, set()
    with h5py.File(io.BytesIO(content), "r") as file, limited_memory(PER_BYTE * len(content)):
        waiting = [file]
        while waiting:
            group = waiting.pop()
            place = h5py.h5o.get_info(group.id).addr
            if place in groups:
                raise DataError("its groups lead in a circle")
            groups.add(place)
            for name in group:
                if group.get(name, getclass=True, getlink=True) is not h5py.HardLink:
                    raise DataError(f"{name[:80]!r} is a link")
                item = group[name]
                if isinstance(item, h5py.Group):
                    waiting.append(item)
                    continue
                _check_array(name, item, len(content))
                item[()]
                arrays += 1
    return arrays


def _check_array(name: str, item: Any, stored: int) -> None:
    if not hasattr(item, "shape") or item.shape is None:
        raise DataError(f"{name[:80]!r} is no array")
    if item.external or item.is_virtual:
        raise DataError(f"{name[:80]!r} is stored in another file")
    claimed = math.prod(item.shape) * item.dtype.itemsize
    if claimed > max(FREE, MOST_EXPANSION * stored):
        raise DataError(f"{name[:80]!r} claims {claimed:,} bytes of a file of {stored:,}")


@contextlib.contextmanager
def limited_memory(needed: int) -> Iterator[None]:
    """A limit for the process, where the system has one: what it uses now, so many bytes, and room for TensorFlow."""
    try:
        import resource

        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = used + SPARE + PER_CORE * (os.cpu_count() or 1) + needed
    limits = [most, *(value for value in (soft, hard) if value != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    read_weights(sys.argv[1])
