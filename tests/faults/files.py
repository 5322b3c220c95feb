"""Faults while a file is written: the old file is intact or the new one complete, and nothing else is left."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np

from keras_sensprune import export_tflite, plot_report, sparsity_report
from keras_sensprune.cli import main
from keras_sensprune.commands import compact_file
from keras_sensprune.errors import ArgumentError, ExportError
from keras_sensprune.export import convert, files, verify, writing
from keras_sensprune.export.verify import child_environment
from tests.faults.training import raises

OLD = b"precious"
FULL = OSError(errno.ENOSPC, "No space left on device")
DENIED = PermissionError(errno.EACCES, "Permission denied")


def model() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(4)])


def assert_intact(folder: Path, name: str) -> None:
    assert os.listdir(folder) == [name]
    assert (folder / name).read_bytes() == OLD


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the system itself refuses to write on, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failing_export(owner: Any, name: str, error: BaseException, kind: type[BaseException]) -> Callable[[Path], None]:
    """`export_tflite` over an old file, with an error in one of its phases."""

    def run(folder: Path) -> None:
        target, network = folder / "model.tflite", model()
        target.write_bytes(OLD)
        before = [variable.numpy().copy() for variable in network.variables]
        with raises(kind), mock.patch.object(owner, name, side_effect=error):
            export_tflite(network, target, overwrite=True, runtimes=("litert",))
        assert_intact(folder, "model.tflite")
        for variable, value in zip(network.variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)

    return run


def export_on_a_small_disk(folder: Path) -> None:
    target = folder / "model.tflite"
    target.write_bytes(OLD)
    with raises(ExportError), small_disk(1000):
        export_tflite(model(), target, overwrite=True, runtimes=("litert",))
    assert_intact(folder, "model.tflite")


def compact_on_a_small_disk(folder: Path) -> None:
    """The command line says so in one line and exits with 1."""
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    source, target = folder / "in" / "model.keras", folder / "out" / "small.keras"
    network = model()
    network.layers[0].kernel.assign(network.layers[0].kernel * (np.arange(8) % 2).astype("float32"))
    network.save(source)
    target.write_bytes(OLD)
    with raises(ExportError), small_disk(4000):
        compact_file(str(source), str(target), overwrite=True)
    assert_intact(folder / "out", "small.keras")
    with small_disk(4000), contextlib.redirect_stderr(sys.stdout):
        assert main(["compact", str(source), str(target), "--overwrite"]) == 1
    assert_intact(folder / "out", "small.keras")


def picture_on_a_small_disk(folder: Path) -> None:
    target = folder / "report.png"
    target.write_bytes(OLD)
    with raises(OSError), small_disk(1000):
        plot_report(sparsity_report(model()), target, overwrite=True)
    assert_intact(folder, "report.png")


def read_only(folder: Path) -> None:
    """As another user it would be the permissions; as root, the system call is made to refuse."""
    target = folder / "model.tflite"
    target.write_bytes(OLD)
    with raises(ArgumentError), mock.patch.object(os, "access", return_value=False):
        export_tflite(model(), target, overwrite=True)
    assert_intact(folder, "model.tflite")
    with raises(ArgumentError):
        export_tflite(model(), target / "below a file.tflite")
    with raises(ExportError), mock.patch("builtins.open", side_effect=DENIED), files.temporary_file(target) as file:
        files.write(file, b"new")
    assert_intact(folder, "model.tflite")


def failing_write(owner: Any, name: str, error: BaseException, kind: type[BaseException]) -> Callable[[Path], None]:
    """Writing under a temporary name and renaming, with an error of one system call."""

    def run(folder: Path) -> None:
        target = folder / "file"
        target.write_bytes(OLD)
        with raises(kind), mock.patch.object(owner, name, side_effect=error):
            write_whole(target)
        assert_intact(folder, "file")
        write_whole(target)
        assert target.read_bytes() == b"new" * 10**6
        assert os.listdir(folder) == ["file"]

    return run


def write_whole(target: Path) -> None:
    with files.temporary_file(target) as file:
        files.write(file, b"new" * 10**6)
        files.give_name(file, target, True)


KILLED = """
import os, pathlib, signal, sys
from keras_sensprune.export import files
step, target = sys.argv[1], pathlib.Path(sys.argv[2])
owner = {"fsync": os, "replace": os, "give_name": files}[step]
setattr(owner, step, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
with files.temporary_file(target) as file:
    files.write(file, b"new" * 10**6)
    files.give_name(file, target, True)
"""


def killed(step: str) -> Callable[[Path], None]:
    """SIGKILL to a process that is about to flush, to look at the name, or to rename."""

    def run(folder: Path) -> None:
        target = folder / "file"
        target.write_bytes(OLD)
        command = [sys.executable, "-c", KILLED, step, str(target)]
        assert subprocess.run(command, env=child_environment()).returncode == -signal.SIGKILL
        assert target.read_bytes() == OLD
        left = sorted(set(os.listdir(folder)) - {"file"})
        assert len(left) == 1
        assert left[0].startswith(".sensprune-")
        write_whole(target)
        assert target.read_bytes() == b"new" * 10**6

    return run


def interrupted_command(folder: Path) -> None:
    """Ctrl-C in the middle of `sensprune compact`: exit code 130."""
    source, target = folder / "model.keras", folder / "out.keras"
    model().save(source)
    target.write_bytes(OLD)
    held = source.read_bytes()

    def save(self: Any, path: pathlib.Path) -> None:
        pathlib.Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with mock.patch.object(keras.Model, "save", save), contextlib.redirect_stderr(sys.stdout):
        assert main(["compact", str(source), str(target), "--overwrite"]) == 130
    assert sorted(os.listdir(folder)) == ["model.keras", "out.keras"]
    assert (source.read_bytes(), target.read_bytes()) == (held, OLD)


FILE = "the file that was there is intact, and nothing else is left in the folder"
LEFT = "the file that was there is intact; one temporary file .sensprune-* is left beside it, which may be deleted"
TOLD = f"ExportError; {FILE}"
PASSED = f"KeyboardInterrupt passes on; {FILE}; the model is as it was"
C = KeyboardInterrupt
# name, promise, function, whether it is slow
ROWS = [
    ("Ctrl-C in the conversion", PASSED, failing_export(convert, "convert_dense", C(), C)),
    ("Ctrl-C while the file is written", PASSED, failing_export(writing, "write", C(), C)),
    ("Ctrl-C while the file is checked", PASSED, failing_export(verify, "verify_file", C(), C)),
    ("Ctrl-C just before the file gets its name", PASSED, failing_export(writing, "give_name", C(), C), True),
    ("disk full while the file is written", TOLD, failing_export(writing, "write", FULL, ExportError)),
    ("disk full in the folder for temporary files", TOLD, failing_export(np, "savez", FULL, ExportError)),
    ("file system refuses to write on (export)", TOLD, export_on_a_small_disk),
    ("file system refuses to write on (compact)", f"{TOLD}; exit code 1", compact_on_a_small_disk),
    ("file system refuses to write on (picture)", f"OSError; {FILE}", picture_on_a_small_disk),
    ("Ctrl-C in `sensprune compact`", f"exit code 130; {FILE}", interrupted_command),
    ("read-only folder, or a folder that is a file", f"ArgumentError or ExportError; {FILE}", read_only),
    ("disk full at the flush", TOLD, failing_write(os, "fsync", FULL, ExportError)),
    ("rename refused", TOLD, failing_write(os, "replace", DENIED, ExportError)),
    ("Ctrl-C at the flush", FILE, failing_write(os, "fsync", C(), C)),
    ("Ctrl-C at the rename", FILE, failing_write(os, "replace", C(), C)),
    ("SIGKILL at the flush", LEFT, killed("fsync")),
    ("SIGKILL between writing and naming", LEFT, killed("give_name")),
    ("SIGKILL at the rename", LEFT, killed("replace")),
]
