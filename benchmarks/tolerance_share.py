"""What share of a training does the tolerance rule take? LeNet-300-100 on MNIST.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/tolerance_share.py

One `fit` from random weights, in which `ToleranceThreshold` searches after every epoch; beside it the same after every
fifth one, and with a wait for the plateau. Measured are the seconds of the whole `fit`, those in the rule (the
measurement of the dense network, its compilation and all trials included), and how often the validation data were
evaluated.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

from results import RESULTS, host, write


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is the same for all runs."""

    train: int = 55_000
    validation: int = 5_000
    batch: int = 128
    rate: float = 0.1
    epochs: int = 20
    strength: float = 1e-4
    tolerance: float = 0.002
    metric: str = "accuracy"


QUICK = Setting(train=256, validation=64, epochs=2)
WHEN = {"every epoch": (0, 1), "every fifth epoch": (0, 5), "at the plateau": (2, 1)}  # patience, frequency


def timed(rule_type):
    """A kind of the rule that adds up its seconds, and counts its evaluations."""

    class Timed(rule_type):
        """`seconds` and `evaluations` are those of all objects."""

        seconds, evaluations = 0.0, 0

        def check(self, session, moment):
            """Timed."""
            return self._timed(super().check, session, moment)

        def choose(self, session, families, moment):
            """Timed."""
            return self._timed(super().choose, session, families, moment)

        def measure(self, session):
            """Counted."""
            Timed.evaluations += 1
            return super().measure(session)

        @staticmethod
        def _timed(work, *arguments):
            begun = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                Timed.seconds += time.perf_counter() - begun

    return Timed


def run(setting, data, patience, frequency, seed):
    """One training; what is recorded of it."""
    import keras

    from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, ToleranceThreshold
    from keras_sensprune.networks import build_network

    keras.utils.set_random_seed(seed)
    model = build_network("lenet-300-100", SensitivityRegularizer(setting.strength))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(setting.rate), loss, metrics=["accuracy"])
    rule_type = timed(ToleranceThreshold)
    validation = data.x_validation, data.y_validation
    # of random weights nothing can become worse: what counts is each epoch's own accuracy
    rule = rule_type(validation, setting.tolerance, setting.metric, relative_to="current", patience=patience)
    prune = PruneAtEpochEnd(rule, frequency=frequency)
    x, y = data.x_train[: setting.train], data.y_train[: setting.train]
    begun = time.perf_counter()
    model.fit(x, y, setting.batch, setting.epochs, verbose=0, callbacks=[prune])
    seconds = time.perf_counter() - begun
    return {
        "fit seconds": round(seconds, 2),
        "rule seconds": round(rule_type.seconds, 2),
        "share": round(rule_type.seconds / seconds, 4),
        "evaluations": rule_type.evaluations,
        "prunings": sum(record.nonzero < record.nonzero_before for record in prune.records),
        "sparsity": round(prune.records[-1].sparsity, 4),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny, into a temporary folder: only to see that it runs")
    options = parser.parse_args(arguments)
    from keras_sensprune.datasets import load_dataset

    setting = QUICK if options.quick else Setting()
    data = load_dataset("mnist", validation=setting.validation)
    started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    found = {name: run(setting, data, *when, options.seed) for name, when in WHEN.items()}
    words = f"mnist: {setting.train} train, {setting.validation} validation"
    record = host(started, time.perf_counter() - begun, options.seed, words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.quick else RESULTS
        path = folder / "tolerance-share-lenet-300-100.json"
        write(path, {**record, "network": "lenet-300-100", "setting": dataclasses.asdict(setting), "runs": found})
    for name, row in found.items():
        print(
            f"{name}: {row['rule seconds']:.1f} s of {row['fit seconds']:.1f} s in the rule, "
            f"{100 * row['share']:.1f} %; {row['evaluations']} evaluations, {row['prunings']} prunings, "
            f"sparsity {100 * row['sparsity']:.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
