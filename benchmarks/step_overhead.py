"""What the method costs beside the steps: memory, attaching, tracing, epoch ends. One JSON file.

    python benchmarks/step_overhead.py
    python benchmarks/step_overhead.py --quick folder    a smoke test; its results go to the folder

Memory: the variables beside the weights are counted. The peak of resident memory is that of a fresh process that runs
2 steps of LeNet-300-100, batch 128, with L2 or with the exact unspecific sensitivity in every step (C backward passes),
for several C (VmHWM, see step_scale.py).

Time: a `fit` of LeNet-300-100 over 10 epochs of 60,000 random examples, batch 128, with L2 and with the default
callback, each in a fresh process, in random order within a repetition. Of the overhead are: what `fit` takes until its
first step is done (attaching and tracing) beyond what it takes with L2, and what the callback does at the ends of the
epochs and of the training. The steps themselves are the subject of step_cost.py.
"""

import argparse
import json
import os
import time
from pathlib import Path

import step_cost
import step_networks as networks
from results import RESULTS, host, write
from step_scale import peak_memory, run_child

NETWORK, BATCH, EPOCHS, EXAMPLES = "lenet-300-100", 128, 10, 60_000
OUTPUTS = (10, 100, 1000)
REPETITIONS = 3
ALLOWED_SECONDS, ALLOWED_SHARE = 2.0, 0.02


def compiled(regularizer):
    """The network with 10 outputs, ready for `fit`."""
    import keras

    model, _, _ = networks.build(NETWORK, 10, regularizer)
    model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def variables_beside() -> dict:
    """Bytes of the session's variables per regularized weight."""
    from keras_sensprune import Sensitivity, SensitivityRegularizer
    from keras_sensprune.training.session import attach

    found = {}
    for name, settings in {"default": {}, "order=2": {"order": 2, "activation": "tanh"}}.items():
        model = compiled(SensitivityRegularizer(1e-4, **settings))
        session = attach(model, Sensitivity())
        count = sum(weight.mask.value.shape.num_elements() for weight in session.weights)
        beside = {
            kind: [getattr(weight, kind) for weight in session.weights] for kind in ("sensitivity", "mask", "curvature")
        }
        parts = {
            kind: sum(v.value.shape.num_elements() * v.value.dtype.size for v in variables if v is not None) / count
            for kind, variables in beside.items()
        }
        total = sum(parts.values())
        found[name] = {"regularized_weights": count, "bytes_per_weight": parts | {"together": total}}
        # not built: a sensitivity in bfloat16 has half the bytes
        found[name]["bytes_per_weight_if_bfloat16_sensitivity"] = total - parts["sensitivity"] / 2
        session.detach()
    return found


def child_memory(mode: str, outputs: int) -> None:
    """Some steps of one mode; prints the memory with the modules only, and the peak."""
    import tensorflow as tf

    from keras_sensprune import Sensitivity

    _ = tf.zeros(()).numpy()
    modules = peak_memory()
    step_cost.STEPS = 2  # memory is the same in every step, and with 1,000 outputs a step takes seconds
    sensitivity = None if mode == "l2" else Sensitivity("unspecific", estimator="exact", every=1)
    step_cost.stepper(NETWORK, outputs, "graph", mode, sensitivity, BATCH)()
    print(json.dumps({"modules_bytes": modules, "peak_bytes": peak_memory()}))


def timed_callback():
    """`PruneAtEpochEnd` in its default settings that notes how long its parts take."""
    from keras_sensprune import PruneAtEpochEnd

    class Timed(PruneAtEpochEnd):
        seconds = 0.0
        attaching = 0.0

        def on_train_begin(self, logs=None):
            begun = time.perf_counter()
            super().on_train_begin(logs)
            self.attaching = time.perf_counter() - begun

    def ending(name: str):
        def timed(self, *arguments, **keywords):
            begun = time.perf_counter()
            getattr(super(Timed, self), name)(*arguments, **keywords)
            self.seconds += time.perf_counter() - begun

        return timed

    for name in ("on_epoch_end", "on_test_begin", "on_train_end"):
        setattr(Timed, name, ending(name))
    return Timed()


def child_fit(mode: str, epochs: int, examples: int) -> None:
    """A whole `fit`; prints how long it took, until its first step was done, and at the ends of its epochs."""
    import keras
    import numpy as np

    from keras_sensprune import SensitivityRegularizer

    class First(keras.callbacks.Callback):
        at = None

        def on_train_batch_end(self, batch, logs=None):
            self.at = self.at or time.perf_counter()

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((examples, 28, 28), "float32"), rng.integers(0, 10, examples)
    model = compiled(keras.regularizers.L2(1e-4) if mode == "l2" else SensitivityRegularizer(1e-4))
    first, ours = First(), None if mode == "l2" else timed_callback()
    callbacks = [first] if ours is None else [ours, first]
    begun = time.perf_counter()
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks)
    record = {"fit": time.perf_counter() - begun, "until_first_step": first.at - begun}
    record |= {"attaching": ours.attaching if ours else 0.0, "ends": ours.seconds if ours else 0.0}
    print(json.dumps({name: round(value, 3) for name, value in record.items()}))


def peaks(outputs: tuple[int, ...], repetitions: int) -> dict:
    """Peak memory per mode and number of outputs: the median of fresh processes."""
    found = {}
    for mode in ("l2", "ours"):
        found["L2" if mode == "l2" else "exact unspecific, every step"] = of_mode = {}
        for number in outputs:
            children = [run_child([__file__, "--child", "memory", mode, number]) for _ in range(repetitions)]
            of_mode[str(number)] = {
                key: sorted(child[key] for child in children)[repetitions // 2]
                for key in ("modules_bytes", "peak_bytes")
            }
    return found


def times(epochs: int, examples: int, repetitions: int) -> dict:
    """The runs of `fit`, and the overhead of each repetition beside what is allowed."""
    import numpy as np

    rng, runs, overheads = np.random.default_rng(0), {"L2": [], "default": []}, []
    for _ in range(repetitions):
        for name in rng.permutation(list(runs)):
            mode = "l2" if name == "L2" else "ours"
            runs[name].append(run_child([__file__, "--child", "fit", mode, epochs, examples]))
        base, ours = runs["L2"][-1], runs["default"][-1]
        beginning = ours["until_first_step"] - base["until_first_step"]
        overheads.append(
            {
                "attach_and_trace": round(beginning, 3),
                "ends": ours["ends"],
                "together": round(beginning + ours["ends"], 3),
                "allowed": round(ALLOWED_SECONDS + ALLOWED_SHARE * base["fit"], 3),
                "whole_run_ratio": round(ours["fit"] / base["fit"], 4),
            }
        )
    median = {key: round(float(np.median([o[key] for o in overheads])), 4) for key in overheads[0]}
    return {"epochs": epochs, "examples": examples, "runs": runs, "overheads": overheads, "median": median}


def run(quick: bool) -> dict:
    started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    repetitions = 1 if quick else REPETITIONS
    spent = times(2, 12 * BATCH, repetitions) if quick else times(EPOCHS, EXAMPLES, repetitions)
    memory = peaks(OUTPUTS[:1] if quick else OUTPUTS, repetitions)
    beside = variables_beside()
    return {
        **host(started, time.perf_counter() - begun, seed=0, data="random"),
        "network": NETWORK,
        "batch": BATCH,
        "repetitions": repetitions,
        "memory": {"variables": beside, "peak": memory},
        "run": spent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", type=Path, metavar="FOLDER", help="a few steps, 10 outputs; results to FOLDER")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if options.child:
        kind, mode, *numbers = options.child
        {"memory": child_memory, "fit": child_fit}[kind](mode, *map(int, numbers))
        return
    path = (options.quick or RESULTS) / "step-overhead.json"
    if path.exists():
        return
    record = run(options.quick is not None)
    write(path, record)
    print(record["run"]["median"], record["memory"], flush=True)


if __name__ == "__main__":
    main()
