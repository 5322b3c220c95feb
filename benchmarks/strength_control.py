"""Does the controller hold a validation loss at its tolerance? Three networks, one setting.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/strength_control.py

Each network is trained dense with a learning rate that falls along a half cosine; then, with a small and constant one,
under a fixed threshold and a controlled strength. What is recorded of every epoch is the loss of the pruned network on
the validation examples that the controller uses, the factor and the sparsity; and of the last half of the epochs the
share in which the loss was within a tenth of the tolerance of the goal. Nothing is tested: this is about the control.
One file per network; networks whose file exists are skipped, so an interrupted series continues where it stopped.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from results import RESULTS, host, write


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is the same for all networks."""

    validation: int = 5_000
    batch: int = 128
    label_smoothing: float = 0.1
    dense_epochs: int = 10
    dense_rate: float = 0.1
    epochs: int = 60
    rate: float = 0.005
    strength: float = 2e-4
    threshold: float = 0.01
    tolerance: float = 0.1  # of the dense loss


NETWORKS = {"lenet-300-100": ("mnist", 10_000), "lenet-5": ("mnist", 10_000), "cifar": ("cifar10_jpeg", 10_000)}
NAMES = {"mnist": "mnist", "cifar10_jpeg": "CIFAR-10 (JPEG)"}
QUICK = Setting(validation=200, dense_epochs=1, epochs=2)


def examples(source, train, validation):
    """Images and one-hot labels: ((x, y) for training, (x, y) for validation), the latter the last of the file."""
    if source == "mnist":
        from keras_sensprune.datasets import load_dataset

        data = load_dataset("mnist", validation=validation)
        parts = (data.x_train[:train], data.y_train[:train]), (data.x_validation, data.y_validation)
    else:
        import tensorflow as tf

        with np.load(Path(os.environ["KERAS_SENSPRUNE_DATA"]) / f"{source}.npz") as file:
            stream, at, labels = file["jpeg_train"].tobytes(), file["offsets_train"], file["y_train"]

        def images(numbers):
            decoded = [tf.io.decode_jpeg(stream[at[n] : at[n + 1]]).numpy() for n in numbers]
            return np.stack(decoded).astype("float32") / 255.0 - 0.5

        first, last = range(train), range(len(labels) - validation, len(labels))
        parts = tuple((images(numbers), labels[numbers.start : numbers.stop]) for numbers in (first, last))
    return tuple((x, np.eye(10, dtype="float32")[y]) for x, y in parts)


def build(name, regularizer):
    """The network, which ends in logits."""
    import keras
    from keras import layers

    from keras_sensprune.networks import build_network

    if name != "cifar":
        return build_network(name, regularizer)
    body = [layers.RandomFlip("horizontal")]
    for filters in (16, 32, 64):
        body += [layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_regularizer=regularizer)]
        body += [layers.MaxPooling2D()]
    body += [layers.Flatten(), layers.Dense(64, "relu", kernel_regularizer=regularizer)]
    body += [layers.Dense(10, kernel_regularizer=regularizer)]
    return keras.Sequential([keras.Input((32, 32, 3)), *body], name=name)


def fit(model, setting, rate, epochs, data, callbacks):
    """One phase; its history."""
    import keras

    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=setting.label_smoothing)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"])
    (x, y), validation = data
    settings = {"batch_size": setting.batch, "validation_batch_size": 1000, "verbose": 0}
    return model.fit(x, y, epochs=epochs, validation_data=validation, callbacks=callbacks, **settings).history


def control(name, setting, data, seed):
    """Trains dense, then controlled; what is recorded."""
    import keras

    from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, StrengthController

    keras.utils.set_random_seed(seed)
    model = build(name, SensitivityRegularizer(setting.strength))
    dense = build(name, None)
    dense.set_weights(model.get_weights())
    steps = setting.dense_epochs * -(-len(data[0][0]) // setting.batch)
    falling = keras.optimizers.schedules.CosineDecay(setting.dense_rate, steps, alpha=0.01)
    begun = time.perf_counter()
    before = fit(dense, setting, falling, setting.dense_epochs, data, [])
    model.set_weights(dense.get_weights())
    middle = time.perf_counter()
    reference = before["val_loss"][-1]
    tolerance = setting.tolerance * reference
    rule = StrengthController(data[1], tolerance)
    prune = PruneAtEpochEnd(setting.threshold, strength=rule)
    found = fit(model, setting, setting.rate, setting.epochs, data, [prune])
    spent = [(loss - reference) / tolerance for loss in found["val_loss"]]
    last = spent[len(spent) // 2 :]
    columns = zip(
        found["val_loss"], found["val_accuracy"], found["strength_factor"], found["sparsity"], spent, strict=True
    )
    return {
        "dense": {"loss": reference, "error": 100 * (1 - before["val_accuracy"][-1])},
        "columns": ["loss", "accuracy", "factor", "sparsity", "share of the tolerance"],
        "epochs": [[round(float(value), 6) for value in row] for row in columns],
        "skipped": sum(record.threshold == 0 for record in prune.records),
        "within a tenth": float(np.mean(np.abs(np.array(last) - 1) <= 0.1)),
        "mean share": float(np.mean(last)),
        "dense seconds": round(middle - begun, 1),
        "control seconds": round(time.perf_counter() - middle, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny, into a temporary folder: only to see that it runs")
    options = parser.parse_args()
    setting = QUICK if options.quick else Setting()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.quick else RESULTS
        for name in options.networks:
            path = folder / f"strength-control-{name}-seed{options.seed}.json"
            if path.exists():
                continue
            source, train = NETWORKS[name]
            data = examples(source, 256 if options.quick else train, setting.validation)
            started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
            found = control(name, setting, data, options.seed)
            words = f"{NAMES[source]}: {len(data[0][0])} train, {len(data[1][0])} validation"
            record = host(started, time.perf_counter() - begun, options.seed, words)
            write(path, {**record, "network": name, "setting": dataclasses.asdict(setting), **found})
            sparsity = found["epochs"][-1][3]
            print(
                f"{name}: within a tenth of the tolerance in {100 * found['within a tenth']:.0f} % of the last half of "
                f"the epochs, sparsity {100 * sparsity:.1f} %, {record['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
