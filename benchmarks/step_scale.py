"""How a step's time and memory grow with weights, outputs and batch: one JSON file per cell, beside the same with L2.

    python benchmarks/step_scale.py                                  every cell that has no result yet
    python benchmarks/step_scale.py --cells weights-vgg-16 outputs-21841
    python benchmarks/step_scale.py --cells batch-16 --quick folder  a smoke test; its results go to the folder

weights: a perceptron 784-H-H-10 with as many weights as the cell says, batch 32, and VGG-16 with ImageNet's shapes,
batch 8. outputs and batch: LeNet-300-100. A measurement is 32 steps, so that it holds one refresh of the default.

VGG-16 is the exception, because its step takes seconds: there a measurement is one step. The default is then two
measurements of one model, a step that refreshes (the session's counter `_wait` is set to 0 before it) and one that
does not (it is set to 1), and the time of `default` is (refreshing + 31 plain) / 32 within each round.

Memory is the peak of resident memory of a fresh process that runs a few steps of one mode, a refresh among them. It is
VmHWM: `ru_maxrss` begins with what the parent held when it started the process.
"""

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import step_networks as networks
from results import RESULTS, host, write
from step_cost import STEPS, measure, ratios, stepper

BATCH = 128  # of the axis outputs
AXES = {
    "weights": (100_000, 1_000_000, 10_000_000, 30_000_000, "vgg-16"),
    "outputs": (10, 100, 1000, 10_000, 21_841),
    "batch": (16, 64, 256, 1024),
}
REFRESHING, PLAIN = "default, refreshing step", "default, plain step"


def modes(axis: str, value: int | str) -> dict:
    """name -> (regularizer, sensitivity), as in `step_cost`."""
    from keras_sensprune import Sensitivity

    found = {"L2": ("l2", None), "default": ("ours", Sensitivity())}
    if value != "vgg-16":
        found["default, unspecific"] = ("ours", Sensitivity("unspecific"))
    if axis == "weights":
        found["exact specific, every step"] = ("ours", Sensitivity("specific", every=1))
    return found


def width(weights: int) -> int:
    """H of the perceptron 784-H-H-10 that has so many weights."""
    return round((math.sqrt(794**2 + 4 * weights) - 794) / 2)


def build(value: int | str, regularizer, quick: bool):
    """(model that ends in logits, x, y) of the axis weights."""
    import keras
    import tensorflow as tf
    from keras import layers

    if value == "vgg-16":
        shape, outputs, batch = (32, 32, 3) if quick else (224, 224, 3), 1000, 8
        model = keras.applications.VGG16(weights=None, input_shape=shape, classes=outputs, classifier_activation=None)
        for variable in model.trainable_variables if regularizer is not None else ():
            if len(variable.shape) > 1:
                variable.regularizer = regularizer
    else:
        shape, outputs, batch = (784,), 10, 32
        body = [layers.Dense(width(value), "relu", kernel_regularizer=regularizer) for _ in range(2)]
        model = keras.Sequential([keras.Input(shape), *body, layers.Dense(outputs, kernel_regularizer=regularizer)])
    x = tf.random.normal((batch, *shape))
    return model, x, tf.random.uniform((batch,), 0, outputs, "int32")


def count(axis: str, value: int | str, quick: bool) -> int:
    """Entries of all kernels."""
    if axis != "weights":
        return networks.count("lenet-300-100", value if axis == "outputs" else 10)
    model, _, _ = build(value, None, quick)
    return sum(math.prod(v.shape) for v in model.trainable_variables if len(v.shape) > 1)


def large(value: int | str, regularizer: str, sensitivity, quick: bool):
    """(function that runs a measurement, session or None) of the axis weights; see `step_cost.stepper`."""
    import keras
    import tensorflow as tf

    from keras_sensprune import SensitivityRegularizer
    from keras_sensprune.training.session import attach

    chosen = keras.regularizers.L2(1e-4) if regularizer == "l2" else SensitivityRegularizer(1e-4)
    steps = 1 if value == "vgg-16" else STEPS
    keras.utils.set_random_seed(0)
    model, x, y = build(value, chosen, quick)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False, steps_per_execution=steps)
    data, session = iter(tf.data.Dataset.from_tensors((x, y)).repeat()), None
    if sensitivity is None:
        model.make_train_function()
    else:
        session = attach(model, sensitivity)

    def run() -> float:
        begun = time.perf_counter()
        loss = float(model.train_function(data)["loss"])
        spent = time.perf_counter() - begun
        if loss != loss:
            raise RuntimeError(f"{value}: the loss is not a number")
        return spent / steps

    return run, session


def runs_of(axis: str, value: int | str, name: str, quick: bool) -> dict:
    """name -> function that runs a measurement: one, or two for the default of VGG-16."""
    regularizer, sensitivity = modes(axis, value)[name]
    if axis != "weights":
        outputs, batch = (value, BATCH) if axis == "outputs" else (10, value)
        return {name: stepper("lenet-300-100", outputs, "graph", regularizer, sensitivity, batch)}
    run, session = large(value, regularizer, sensitivity, quick)
    if value != "vgg-16" or name != "default":
        return {name: run}

    def after(wait: int):
        def timed() -> float:
            session.rule.pace._wait.assign(wait)
            return run()

        return timed

    return {REFRESHING: after(0), PLAIN: after(1)}


def peak_memory() -> int:
    """Bytes: the largest resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def run_child(arguments: list) -> dict:
    """Runs a Python script in a fresh process; returns the JSON of the last line that it prints."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} has failed:\n{child.stderr[-3000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def child_memory(axis: str, value: int | str, name: str, quick: bool) -> None:
    """What a fresh process does: some steps of one mode. Prints its memory with the modules only, and its peak."""
    import tensorflow as tf

    modes(axis, value)
    _ = tf.zeros(()).numpy()
    modules = peak_memory()
    for run in runs_of(axis, value, name, quick).values():
        run()
    print(json.dumps({"modules_bytes": modules, "peak_bytes": peak_memory()}))


def timed(axis: str, value: int | str, seconds: float, quick: bool) -> dict:
    """Seconds per step of each mode in each round."""
    import numpy as np

    least = 3 if quick or value == "vgg-16" else 7
    runs = {}
    for name in modes(axis, value):
        runs |= runs_of(axis, value, name, quick)
    for run in runs.values():
        run()
    rounds = measure(runs, 0 if quick or value == "vgg-16" else seconds, least)
    if REFRESHING in rounds:
        every = modes(axis, value)["default"][1].every
        refreshing, plain = np.array(rounds[REFRESHING]), np.array(rounds[PLAIN])
        rounds["default"] = list((refreshing + (every - 1) * plain) / every)
    return rounds


def run_cell(axis: str, value: int | str, seconds: float, quick: bool) -> dict:
    import keras
    import numpy as np

    started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    flags = ["--quick", "unused"] if quick else []
    memory = {name: run_child([__file__, "--child", axis, value, name, *flags]) for name in modes(axis, value)}
    rounds = timed(axis, value, seconds, quick)
    found = ratios(rounds, "L2")
    for name, values in rounds.items():
        found[name] |= {"milliseconds": round(1e3 * float(np.median(values)), 3), **memory.get(name, {})}
    parts = {name: found.pop(name) for name in (REFRESHING, PLAIN) if name in found}
    vgg, weights = value == "vgg-16", count(axis, value, quick)
    record = {
        **host(started, time.perf_counter() - begun, seed=0, data="random"),
        "axis": axis,
        "value": weights if axis == "weights" else value,
        "network": "vgg-16" if vgg else "784-H-H-10" if axis == "weights" else "lenet-300-100",
        "outputs": 1000 if vgg else value if axis == "outputs" else 10,
        "batch": 8 if vgg else {"weights": 32, "outputs": BATCH, "batch": value}[axis],
        "weights": weights,
        "steps": 1 if vgg else STEPS,
        "rounds": len(rounds["L2"]),
        "modes": found,
        **({"parts": parts} if parts else {}),
    }
    del rounds
    keras.backend.clear_session()
    gc.collect()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", help="for example weights-1000000; default: all that are missing")
    parser.add_argument("--seconds", type=float, default=60, help="of timing per cell; at least 7 rounds are made")
    parser.add_argument("--quick", type=Path, metavar="FOLDER", help="3 rounds, VGG-16 for 32x32; results to FOLDER")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if options.child:
        axis, value, name = options.child
        child_memory(axis, int(value) if value.isdigit() else value, name, options.quick is not None)
        return
    for axis, value in ((axis, value) for axis, values in AXES.items() for value in values):
        path = (options.quick or RESULTS) / f"step-scale-{axis}-{value}.json"
        if path.exists() or (options.cells and f"{axis}-{value}" not in options.cells):
            continue
        record = run_cell(axis, value, options.seconds, options.quick is not None)
        write(path, record)
        print(f"{axis}-{value}", {k: (v["ratio"], v["low"], v["high"]) for k, v in record["modes"].items()}, flush=True)


if __name__ == "__main__":
    main()
