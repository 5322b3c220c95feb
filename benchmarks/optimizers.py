"""Which optimizer, decoupled or coupled: LeNet-300-100 on 10,000 digits of MNIST.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/optimizers.py

A run trains with the rule, sets the smallest weights of all layers together to zero, to the same sparsity in all runs,
and fine-tunes with the zeros kept. So compressions are equal by construction and errors can be compared; how many
weights a fixed threshold would have removed is recorded beside them. The learning rate of an optimizer is chosen
without regularization, the strength of each rule with that rate: half decades, one seed, validation error after
fine-tuning, further as long as the best one has a neighbor that was not tried. The test part is evaluated in the runs
that follow, with what was chosen. One file per optimizer and rule, rewritten after every run; rows that are there are
not run again.
"""

import argparse
import dataclasses
import gc
import json
import tempfile
import time
from pathlib import Path

from results import RESULTS, host, write
from study import best_half_decade

# name -> the Keras optimizer for a learning rate or schedule, and where the search for the rate begins
OPTIMIZERS = {
    "sgd": (lambda keras, rate: keras.optimizers.SGD(rate), 0.1),
    "adam": (lambda keras, rate: keras.optimizers.Adam(rate), 1e-3),
    "momentum": (lambda keras, rate: keras.optimizers.SGD(rate, momentum=0.9), 0.03),
    "adamw": (lambda keras, rate: keras.optimizers.AdamW(rate), 1e-3),
    "rmsprop": (lambda keras, rate: keras.optimizers.RMSprop(rate), 1e-3),
    "lion": (lambda keras, rate: keras.optimizers.Lion(rate), 1e-4),
    # its documentation says to leave the output layer to its Adam
    "muon": (lambda keras, rate: keras.optimizers.Muon(rate, exclude_layers=["fc3"]), 1e-3),
}
RULES = {"none": 0.0, "decoupled": 1e-3, "coupled": 1e-3}  # where the search for the strength begins
SPARSITIES = (0.8, 0.9, 0.95, 0.98)  # evaluated right after the pruning
SMALL = 1e-3  # the default threshold of PruneAtEpochEnd


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is the same for all runs."""

    train: int = 10_000
    validation: int = 5_000
    test: int = 10_000
    batch: int = 128
    epochs: int = 10
    fine_epochs: int = 3
    target: float = 0.95  # sparsity for the fine-tuning
    tried: int = 6  # at most so many values in a search


QUICK = Protocol(train=256, validation=200, test=200, epochs=1, fine_epochs=1, tried=2)


class Study:
    """Runs on one data set, and the files that hold them."""

    def __init__(self, protocol: Protocol, folder: Path, say=print):
        from keras_sensprune.datasets import load_dataset

        self.protocol, self.folder, self.say = protocol, folder, say
        data = load_dataset("mnist", validation=protocol.validation)
        self.train = data.x_train[: protocol.train], data.y_train[: protocol.train]
        self.parts = {
            "validation": (data.x_validation, data.y_validation),
            "test": (data.x_test[: protocol.test], data.y_test[: protocol.test]),
        }
        self.data = f"mnist: {len(self.train[0])} train, " + ", ".join(
            f"{len(y)} {n}" for n, (_, y) in self.parts.items()
        )

    def path(self, optimizer, rule):
        return self.folder / f"optimizers-{optimizer}-{rule}.json"

    def rows(self, optimizer, rule):
        path = self.path(optimizer, rule)
        return json.loads(path.read_text())["rows"] if path.exists() else []

    def run(self, optimizer, rule, settings, seed, part):
        """The row of a run: read if it is there, else made and written. One that diverges counts as 100 % error."""
        from keras_sensprune.errors import TrainingError

        rows = self.rows(optimizer, rule)
        for row in rows:
            if (row["rate"], row["strength"], row["seed"], row["part"]) == (*settings, seed, part):
                return row
        started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
        try:
            found = self.train_prune_tune(optimizer, rule, settings, seed, part)
        except TrainingError:  # the loss is not finite
            found = {"trained": 100.0, "small": 0.0, "pruned": {str(s): 100.0 for s in SPARSITIES}, "tuned": 100.0}
            found |= {"compression": 1.0, "diverged": True}
        row = host(started, time.perf_counter() - begun, seed, self.data)
        row |= {"rate": settings[0], "strength": settings[1], "part": part, **found}
        record = {"optimizer": optimizer, "rule": rule, "protocol": dataclasses.asdict(self.protocol)}
        made = host(started, sum(r["seconds"] for r in [*rows, row]), 0, self.data)
        write(self.path(optimizer, rule), {**made, **record, "rows": [*rows, row]})
        words = f"{optimizer}, {rule}, rate {settings[0]:.2g}, strength {settings[1]:.2g}, seed {seed}"
        self.say(f"{words}: {part} error {row['tuned']:.2f} %, {row['seconds']:.0f} s", flush=True)
        return row

    def train_prune_tune(self, optimizer, rule, settings, seed, part):
        """Errors on a part in percent: trained, pruned to each sparsity, fine-tuned at the target."""
        import keras
        import numpy as np

        from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer, exact_count_mask
        from keras_sensprune.networks import build_network

        keras.backend.clear_session()
        gc.collect()
        keras.utils.set_random_seed(seed)
        p, (rate, strength), make = self.protocol, settings, OPTIMIZERS[optimizer][0]
        model = build_network("lenet-300-100", SensitivityRegularizer(strength, decoupled=rule != "coupled"))
        self.fit(model, make(keras, rate), p.epochs, PruneAtEpochEnd(0.0))
        weights = model.get_weights()
        kernels = np.concatenate([w.ravel() for w in weights if w.ndim == 2])
        found = {"trained": self.error(model, part), "small": float(np.mean(np.abs(kernels) < SMALL)), "pruned": {}}

        def pruned(sparsity):
            mask, kept, at = exact_count_mask(np.abs(kernels), sparsity), [], 0
            for w in weights:
                share = mask[at : at + w.size].reshape(w.shape) if w.ndim == 2 else 1.0
                kept.append(w * share)
                at += w.size if w.ndim == 2 else 0
            return kept

        for sparsity in SPARSITIES:
            model.set_weights(pruned(sparsity))
            found["pruned"][str(sparsity)] = self.error(model, part)
        model = build_network("lenet-300-100", SensitivityRegularizer(0.0))
        model.set_weights(pruned(p.target))
        steps = p.fine_epochs * -(-p.train // p.batch)
        schedule = keras.optimizers.schedules.CosineDecay(rate, steps, alpha=0.01)
        self.fit(model, make(keras, schedule), p.fine_epochs, PruneAtEpochEnd(0.0, Sensitivity("none")))
        left = sum(int(np.count_nonzero(w)) for w in model.get_weights() if w.ndim == 2)
        return {**found, "tuned": self.error(model, part), "compression": round(kernels.size / left, 2)}

    def fit(self, model, optimizer, epochs, callback):
        import keras

        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
        batch = self.protocol.batch
        model.fit(*self.train, batch_size=batch, epochs=epochs, verbose=0, callbacks=[callback])

    def error(self, model, part):
        found = model.evaluate(*self.parts[part], batch_size=1000, verbose=0, return_dict=True)
        return round(100 * (1 - found["accuracy"]), 4)

    def optimizer(self, name, rules, seeds):
        """Searches, then the runs with what was found."""
        first = seeds[0]
        tried = self.protocol.tried
        rate = best_half_decade(
            OPTIMIZERS[name][1], lambda r: self.run(name, "none", (r, 0.0), first, "validation")["tuned"], tried
        )
        for rule in rules:
            strength = 0.0
            if rule != "none":
                strength = best_half_decade(
                    RULES[rule],
                    lambda s, rule=rule: self.run(name, rule, (rate, s), first, "validation")["tuned"],
                    tried,
                )
            for seed in seeds:
                self.run(name, rule, (rate, strength), seed, "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="tiny, into a temporary folder: only to see that it runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Study(QUICK, Path(folder)) if options.quick else Study(Protocol(), RESULTS)
        for name in options.optimizers:
            study.optimizer(name, options.rules, options.seeds)


if __name__ == "__main__":
    main()
