"""All injected faults: run by the tests, and by `benchmarks/faults.py`, which counts what was survived."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from tests.faults import files, training

WHERE = {True: "listed before PruneAtEpochEnd", False: "listed after it"}


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault: `run(folder)` injects it and raises if anything is not as promised.

    Attributes:
        area: "training" or "files".
        name: what happens.
        promise: what holds afterwards.
        run: takes an empty folder.
        slow: whether the daily tests leave it out.
    """

    area: str
    name: str
    promise: str
    run: Callable[[Path], None]
    slow: bool = False


MODEL = "no hook is left on the model; it trains bit for bit like a fresh one with the same state"
RESTORED = f"with keep_last_good=True: TrainingError; weights and optimizer as before that epoch; {MODEL}"
# Our training code runs some 2,000 lines in the small `fit`, the first thousand up to the first validation.
LINES, QUICK_LINES = range(1, 2000, 80), range(1, 2000, 560)
QUICK_HOOKS = ("on_train_begin", "on_train_batch_end", "on_test_begin", "on_epoch_end", "on_train_end")


def _training() -> list[Fault]:
    found = []
    for hook in training.HOOKS:
        for before in (True, False):
            error = RuntimeError("mine") if before else KeyboardInterrupt()
            name = f"{type(error).__name__} in {hook} of another callback, {WHERE[before]}"
            slow = before or hook not in QUICK_HOOKS
            found.append(Fault("training", name, MODEL, training.in_a_hook(hook, error, before), slow))
    for error in (RuntimeError("mine"), KeyboardInterrupt()):
        name = f"{type(error).__name__} in the forward pass of a step"
        found.append(Fault("training", name, MODEL, training.in_a_step(error)))
    for line in LINES:
        slow = line not in QUICK_LINES
        name = f"Ctrl-C before line {line} of our code in a fit"
        found.append(Fault("training", name, MODEL, training.ctrl_c_at_line(line), slow))
    for seconds in (0.0, 0.1, 0.25):
        name = f"SIGINT {seconds:g} s into compiled steps"
        found.append(Fault("training", name, MODEL, training.ctrl_c_from_the_keyboard(seconds), seconds != 0.1))
    for value, bad in (("NaN", 5), ("NaN", 1), ("infinity", 5)):
        run = training.bad_value(float(value), bad)
        found.append(Fault("training", f"{value} in batch {bad} of 4 per epoch", RESTORED, run, value != "NaN"))
    found.append(Fault("training", "data that ends early", MODEL, training.data_that_ends_early))
    found.append(Fault("training", "data that fails in the third batch", MODEL, training.data_that_fails))
    found.append(Fault("training", "Ctrl-C in a custom loop", MODEL, training.custom_loop))
    promise = f"saving, loading and evaluating work at once; after detach {MODEL}"
    found.append(Fault("training", "a fault, then saving", promise, training.saved_while_hooked, True))
    return found


FAULTS = [*_training(), *(Fault("files", *row) for row in files.ROWS)]
