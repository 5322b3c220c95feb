"""Runs the recipe of docs/resume.md in processes that are killed: python resume_runs.py FOLDER SCENARIO...

A scenario is a list of kill points with "+" between them, or "whole", which is not interrupted; after "other order: "
the two callbacks of the recipe change places; after "again: " one more process goes on with that scenario. At each kill
point one process dies by SIGKILL; one more process then goes on to the end. All start the same script in the folder of
their scenario. They are forks of this one, which has imported TensorFlow but not yet used it. The last process of a
scenario leaves `sparse.keras` and `records.json`, or `error.txt`.
"""

import os
import re
import signal
import sys
from pathlib import Path

import keras
import numpy as np
from keras.callbacks import BackupAndRestore

from keras_sensprune import archive
from keras_sensprune.records import to_json
from keras_sensprune.training import callback, shuffling  # noqa: F401  so that no fork must import them

PAGE = Path(__file__).resolve().parents[2] / "docs" / "resume.md"
STEPS = 7  # batches of one epoch


def blocks():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32 * STEPS - 5, 12)).astype("float32")
    return {"x": x, "y": x[:, :10].argmax(1), "x_validation": x[:40], "y_validation": x[:40, :10].argmax(1)}


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(owner, name, number, action):
    """Replaces a function: `action(original, *args)` at its call number `number`, the original otherwise."""
    original, calls = getattr(owner, name), [0]

    def replaced(*args, **kwargs):
        calls[0] += 1
        return action(original, *args, **kwargs) if calls[0] == number else original(*args, **kwargs)

    setattr(owner, name, replaced)


def torn_backup(save, backup):
    """A backup whose weights are half on the disk."""
    metadata = Path(backup._training_metadata_path)
    old = metadata.read_text()
    save(backup)
    weights = Path(backup._weights_path)
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    metadata.write_text(old)
    die()


def backup_without_epoch(save, backup):
    """A backup that died between its two files."""
    metadata = Path(backup._training_metadata_path)
    old = metadata.read_text()
    save(backup)
    metadata.write_text(old)
    die()


KILL = {
    "first batch": lambda: on_call(BackupAndRestore, "on_train_batch_end", 1, die),
    "batch": lambda: on_call(BackupAndRestore, "on_train_batch_end", 5 * STEPS + 3, die),
    "last batch": lambda: on_call(BackupAndRestore, "on_train_batch_end", 2 * STEPS, die),
    "validation": lambda: on_call(BackupAndRestore, "on_test_batch_end", 8, die),  # two batches an epoch
    "before first backup": lambda: on_call(BackupAndRestore, "_save_model", 1, die),
    "before backup": lambda: on_call(BackupAndRestore, "_save_model", 4, die),
    "torn backup": lambda: on_call(BackupAndRestore, "_save_model", 4, torn_backup),
    "backup without epoch": lambda: on_call(BackupAndRestore, "_save_model", 4, backup_without_epoch),
    # two weights: 4 arrays in the first file, then 8 in each
    "inside our file": lambda: on_call(np.lib.format, "write_array", 4 + 8 * 3 + 5, die),
    "before the model is saved": lambda: on_call(keras.Model, "save", 1, die),
    "before our file has its name": lambda: on_call(archive.os, "replace", 4, die),
}


def recipe(other_order):
    script = blocks()[0]
    if other_order:
        script = script.replace("callbacks=[pruner, backup]", "callbacks=[backup, pruner]")
        assert script != blocks()[0]
    return compile(script, str(PAGE), "exec")


def run(kill, script):
    """One process: its exit status."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        if kill:
            KILL[kill]()
        names = {**data(), "__name__": "__main__"}
        exec(script, names)
        Path("records.json").write_text(to_json(names["pruner"].records))
        os._exit(0)
    except BaseException as error:
        Path("error.txt").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def main(folder, *scenarios):
    for scenario in scenarios:
        place = Path(folder) / scenario.removeprefix("again: ")
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        script = recipe(scenario.startswith("other order: "))
        kills = scenario.removeprefix("other order: ").split("+")
        for kill in [] if scenario == "whole" or scenario.startswith("again: ") else kills:
            status = run(kill, script)
            assert os.WIFSIGNALED(status), f"the process was not killed: {kill}, status {status}"
            assert os.WTERMSIG(status) == signal.SIGKILL
        run(None, script)


if __name__ == "__main__":
    main(*sys.argv[1:])
