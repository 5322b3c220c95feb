"""What a training step costs beside the same step with `keras.regularizers.L2`: one JSON file per network.

    python benchmarks/step_cost.py                         every cell that has no result yet, about an hour
    python benchmarks/step_cost.py --cells lenet-300-100-10-graph --seconds 60

A cell is a network, a number of outputs and a compiler (graph or XLA). Its modes are timed in rounds: in each round
every mode once, in random order, through the compiled train function that `fit` itself uses. A ratio is taken within
a round; the result is the median over the rounds with a 95 % interval by bootstrap. Afterwards
`python benchmarks/make_performance_page.py`.
"""

import argparse
import itertools
import os
import time

import step_networks as networks
from results import RESULTS, host, write

DEFAULTS = ("L2", "default", "default, unspecific", "control, S = 0")
EXACT_NETWORKS = ("lenet-300-100", "lenet-5", "lstm")
STEPS = 32  # per measurement: a multiple of the refresh interval, so that its cost is spread evenly
CELLS = [
    (network, outputs, compiler)
    for network, outputs, compiler in itertools.product(networks.NETWORKS, (10, 1000), ("graph", "xla"))
    if (network, compiler) != ("mobilenet-v2", "xla")  # hours of compilation on a CPU
]


def modes(network: str, outputs: int):
    """name -> (regularizer: None, "l2" or "ours", sensitivity)."""
    from keras_sensprune import Sensitivity

    found = {
        "L2": ("l2", None),
        "default": ("ours", Sensitivity()),
        "default, unspecific": ("ours", Sensitivity("unspecific")),
        "control, S = 0": ("ours", Sensitivity("none")),
    }
    if network not in EXACT_NETWORKS or outputs != 10:  # the other forms are measured where a step is short
        return found
    own = Sensitivity("specific", every=1, output_fn=lambda model, x: model(x, training=False))
    exact = {"every": 1, "estimator": "exact"}
    found |= {
        "plain": (None, None),
        "exact specific, every step": ("ours", Sensitivity("specific", every=1)),
        "loss, every step": ("ours", Sensitivity("loss", every=1)),
        "exact specific, every step, own forward pass": ("ours", own),
        "exact unspecific, every step": ("ours", Sensitivity("unspecific", **exact)),
    }
    if network == "lenet-300-100":
        factored = Sensitivity("unspecific", reduction="mean_of_abs", **exact)
        found["exact unspecific, every step, factored"] = ("ours", factored)
    return found


def stepper(network: str, outputs: int, compiler: str, regularizer: str | None, sensitivity, batch: int | None = None):
    """A function that runs STEPS training steps, compiled."""
    import keras
    import tensorflow as tf

    from keras_sensprune import SensitivityRegularizer
    from keras_sensprune.training.session import attach

    chosen = {None: None, "l2": keras.regularizers.L2(1e-4), "ours": SensitivityRegularizer(1e-4)}[regularizer]
    keras.utils.set_random_seed(0)
    model, x, y = networks.build(network, outputs, chosen, batch)
    model.compile(
        keras.optimizers.SGD(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=compiler == "xla",
        steps_per_execution=STEPS,
    )
    data = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    if sensitivity is None:
        model.make_train_function()
    else:
        attach(model, sensitivity)

    def run() -> float:
        begun = time.perf_counter()
        logs = model.train_function(data)
        loss = float(logs["loss"])
        spent = time.perf_counter() - begun
        if loss != loss:
            raise RuntimeError(f"{network}: the loss is not a number")
        return spent / STEPS

    return run


def measure(runs: dict, seconds: float, least: int, longer: tuple[str, ...] = ()) -> dict:
    """Seconds per step of each mode in each round, in random order within a round.

    All modes take part in the first `least` rounds; then those of `longer`, or all, for as many seconds.
    """
    import numpy as np

    rng, rounds = np.random.default_rng(0), {name: [] for name in runs}

    def turn(names: list) -> None:
        for name in rng.permutation(names):
            rounds[name].append(runs[name]())

    for _ in range(least):
        turn(list(runs))
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        turn(list(longer or runs))
    return rounds


def ratios(rounds: dict, base: str) -> dict:
    """Per mode: median of the ratios within rounds, and its 95 % interval by bootstrap over the rounds."""
    import numpy as np

    rng, found = np.random.default_rng(0), {}
    for name, values in rounds.items():
        ratio = np.array(values) / np.array(rounds[base])[: len(values)]
        again = np.median(rng.choice(ratio, (2000, len(ratio))), axis=1)
        low, high = np.quantile(again, [0.025, 0.975])
        found[name] = {"ratio": round(float(np.median(ratio)), 4), "low": round(float(low), 4)}
        found[name]["high"] = round(float(high), 4)
    return found


def run_cell(network: str, outputs: int, compiler: str, seconds: float) -> dict:
    import numpy as np

    started, begun, runs, trace = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter(), {}, {}
    for name, (regularizer, sensitivity) in modes(network, outputs).items():
        before = time.perf_counter()
        runs[name] = stepper(network, outputs, compiler, regularizer, sensitivity)
        runs[name]()
        trace[name] = round(time.perf_counter() - before, 2)
    rounds = measure(runs, seconds, 7, DEFAULTS)
    found = ratios(rounds, "L2")
    for name, values in rounds.items():
        found[name] |= {"milliseconds": round(1e3 * float(np.median(values)), 3), "trace_seconds": trace[name]}
    return {
        **host(started, time.perf_counter() - begun, seed=0, data="random"),
        "network": network,
        "outputs": outputs,
        "compiler": compiler,
        "weights": networks.count(network, outputs),
        "steps": STEPS,
        "rounds": len(rounds["L2"]),
        "modes": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", help="for example lenet-5-1000-xla; default: all that are missing")
    parser.add_argument("--seconds", type=float, default=100, help="of timing per cell; at least 7 rounds are made")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for network, outputs, compiler in CELLS:
        name = f"{network}-{outputs}-{compiler}"
        path = RESULTS / f"step-cost-{name}.json"
        if path.exists() or (options.cells and name not in options.cells):
            continue
        record = run_cell(network, outputs, compiler, options.seconds)
        write(path, record)
        print(name, {k: (v["ratio"], v["low"], v["high"]) for k, v in record["modes"].items()}, flush=True)


if __name__ == "__main__":
    main()
