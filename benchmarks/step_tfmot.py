"""A step with TF-MOT's pruning and a step with ours, each beside its own plain `fit`: one JSON file per network.

    python benchmarks/step_tfmot.py                                  every network that has no result yet
    python benchmarks/step_tfmot.py --networks lstm --seconds 60
    python benchmarks/step_tfmot.py --networks lstm --quick folder   a smoke test; its results go to the folder

Four runs of `fit` in one process: the Keras model plain and with `PruneAtEpochEnd`, its copy in tf_keras plain and
with `prune_low_magnitude` and `UpdatePruningStep` in their default settings (half of the weights, masks updated every
100 steps; layers that TF-MOT refuses are left alone). Each `fit` is one long epoch on a cached batch in a thread of its
own, and a callback stops it every 100 steps until it is its turn again: only one runs at a time, in random order
within a round, and nothing is compiled twice. What happens once (attaching, tracing) is in the first turn, which is
not counted. In 100 steps TF-MOT updates its masks once; our sensitivities are refreshed 3 or 4 times, on average 3.125.
"""

import argparse
import gc
import os
import queue
import threading
import time
from pathlib import Path

import step_networks as networks
from results import PACKAGES, RESULTS, host, write
from step_cost import measure, ratios

STEPS = 100  # TF-MOT's default interval between updates of its masks
OUTPUTS = 10
EPOCH = 10**7  # steps: longer than any measurement


class Fit:
    """One `fit` in a thread of its own, which stands still between its turns."""

    def __init__(self, model, callback, data, callbacks: list, steps: int):
        self.steps, self._done, self._stop = steps, 0, False
        self._go, self._turns = threading.Semaphore(0), queue.Queue()
        self._begun = 0.0
        settings = {"epochs": 1, "steps_per_epoch": EPOCH, "shuffle": False, "verbose": 0}
        settings["callbacks"] = [*callbacks, self._pausing(callback)]  # ours last: the others belong to the step
        self._thread = threading.Thread(target=self._run, args=(model, data, settings), daemon=True)
        self._thread.start()

    def __call__(self) -> float:
        """Runs `steps` steps; returns seconds per step."""
        self._go.release()
        spent = self._turns.get()
        if isinstance(spent, BaseException):
            raise spent
        return spent / self.steps

    def stop(self) -> None:
        """Ends the fit."""
        self._stop = True
        self._go.release()
        self._thread.join()

    def _run(self, model, data, settings: dict) -> None:
        self._go.acquire()
        self._begun = time.perf_counter()
        try:
            model.fit(data, **settings)
        except BaseException as error:
            self._turns.put(error)

    def _pausing(self, base):
        fit = self

        class Pause(base):
            def on_train_batch_end(self, batch, logs=None):
                fit._done += 1
                if fit._done % fit.steps == 0 and fit._pause(float(logs["loss"])):
                    self.model.stop_training = True

        return Pause()

    def _pause(self, loss: float) -> bool:
        spent = time.perf_counter() - self._begun
        self._turns.put(spent if loss == loss else RuntimeError("the loss is not a number"))
        self._go.acquire()
        self._begun = time.perf_counter()
        return self._stop


def with_tfmot(tf_keras, tfmot, model):
    """The model with `prune_low_magnitude` around every layer that TF-MOT takes, and the names of the others."""
    refused = []

    def wrap(layer):
        try:
            return tfmot.sparsity.keras.prune_low_magnitude(layer)
        except ValueError:
            refused.append(layer.name)
            return layer

    return tf_keras.models.clone_model(model, clone_function=wrap), refused


def compiled(package, model):
    """The model, ready for `fit`; `package` is keras or tf_keras."""
    loss = package.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(package.optimizers.SGD(0.01), loss, jit_compile=False)
    return model


def pruned_weights(model) -> int:
    """Entries of the weights that TF-MOT prunes."""
    wrapped = [layer for layer in model.layers if hasattr(layer, "pruning_vars")]
    return sum(int(mask.shape.num_elements()) for layer in wrapped for _, mask, _ in layer.pruning_vars)


def fits(network: str, steps: int) -> tuple[dict, dict]:
    """(name -> Fit, what is to be noted about them)."""
    import keras
    import tensorflow as tf

    from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, to_tf_keras
    from keras_sensprune.tfmot.importing import import_tf_keras, import_tfmot, quiet_warnings

    tf_keras, tfmot = import_tf_keras(), import_tfmot()
    keras.utils.set_random_seed(0)
    plain, x, y = networks.build(network, OUTPUTS, None)
    ours, _, _ = networks.build(network, OUTPUTS, SensitivityRegularizer(1e-4))
    data = tf.data.Dataset.from_tensors((x, y)).cache().repeat()
    with quiet_warnings():
        copy = to_tf_keras(plain)
        pruned, refused = with_tfmot(tf_keras, tfmot, to_tf_keras(plain))
    step = tfmot.sparsity.keras.UpdatePruningStep()
    ends, legacy = keras.callbacks.Callback, tf_keras.callbacks.Callback
    found = {
        "Keras": Fit(compiled(keras, plain), ends, data, [], steps),
        "ours": Fit(compiled(keras, ours), ends, data, [PruneAtEpochEnd(1e-3)], steps),
        "tf_keras": Fit(compiled(tf_keras, copy), legacy, data, [], steps),
        "TF-MOT": Fit(compiled(tf_keras, pruned), legacy, data, [step], steps),
    }
    notes = {"weights": networks.count(network, OUTPUTS), "weights_tfmot": pruned_weights(pruned)}
    return found, notes | {"refused_by_tfmot": refused, "batch": int(x.shape[0])}


def summary(rounds: dict) -> dict:
    """Ratios within rounds: each to its own plain `fit`, and ours to TF-MOT's."""
    import numpy as np

    own = ratios({name: rounds[name] for name in ("Keras", "ours")}, "Keras")["ours"]
    other = ratios({name: rounds[name] for name in ("tf_keras", "TF-MOT")}, "tf_keras")["TF-MOT"]
    pairs = (("ours", "Keras"), ("TF-MOT", "tf_keras"))
    prices = {name: np.array(rounds[name]) / np.array(rounds[base]) for name, base in pairs}
    return {
        "modes": {"ours": own, "tfmot": other},
        "ours_to_tfmot": ratios(prices, "TF-MOT")["ours"],
        "milliseconds": {name: round(1e3 * float(np.median(values)), 3) for name, values in rounds.items()},
    }


def run_network(network: str, seconds: float, quick: bool) -> dict:
    import keras

    started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    steps = 5 if quick else STEPS
    runs, notes = fits(network, steps)
    first = {name: round(run() * steps, 2) for name, run in runs.items()}
    rounds = measure(runs | {"L2": lambda: 0.0}, 0 if quick else seconds, least=3 if quick else 8)
    del rounds["L2"]  # `measure` counts by it
    for run in runs.values():
        run.stop()
    packages = (*PACKAGES, "tf_keras", "tensorflow-model-optimization")
    record = {
        **host(started, time.perf_counter() - begun, seed=0, data="random", packages=packages),
        "network": network,
        "outputs": OUTPUTS,
        **notes,
        "steps": steps,
        "rounds": len(rounds["Keras"]),
        "first_turn_seconds": first,
        **summary(rounds),
    }
    del runs
    keras.backend.clear_session()
    gc.collect()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=networks.NETWORKS, default=networks.NETWORKS)
    parser.add_argument("--seconds", type=float, default=100, help="of timing per network; at least 8 rounds are made")
    parser.add_argument("--quick", type=Path, metavar="FOLDER", help="3 rounds of 5 steps; results to FOLDER")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for network in options.networks:
        path = (options.quick or RESULTS) / f"step-tfmot-{network}.json"
        if path.exists():
            continue
        record = run_network(network, options.seconds, options.quick is not None)
        write(path, record)
        print(network, record["modes"], record["ours_to_tfmot"], flush=True)


if __name__ == "__main__":
    main()
