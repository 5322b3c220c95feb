"""What the studies behind docs/choosing.md share: data, networks, training, and rows that are not run twice."""

import argparse
import dataclasses
import gc
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from results import host, write


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is the same for all runs of a study on one network."""

    network: str = "lenet-300-100"
    data: str = "mnist"
    train: int = 20_000
    validation: int = 5_000
    test: int = 10_000
    batch: int = 128
    rate: float = 0.4  # of SGD
    label_smoothing: float = 0.1
    dense_epochs: int = 10

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.train // self.batch)


def use_threads(number: int) -> None:
    """Threads of TensorFlow, which takes them only before its first operation; 0 means its own choice."""
    import tensorflow as tf

    if number:
        tf.config.threading.set_intra_op_parallelism_threads(number)
        tf.config.threading.set_inter_op_parallelism_threads(number)


def study_parser(text: str) -> argparse.ArgumentParser:
    """The options that every study has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="threads of TensorFlow; 0 means its own choice")
    parser.add_argument("--quick", action="store_true", help="tiny, into a temporary folder: only to see that it runs")
    return parser


def best_half_decade(begin: float, error: Callable[[float], float], tried: int) -> float:
    """The value of least error among half decades around `begin`, where both its neighbors were tried."""
    errors: dict[int, float] = {}
    best = 0
    while len(errors) < tried:
        missing = [n for n in (best, best - 1, best + 1) if n not in errors]
        if not missing:
            break
        errors[missing[0]] = error(float(f"{begin * 10 ** (missing[0] / 2):.2g}"))
        best = min(errors, key=lambda n: (errors[n], abs(n)))
    return float(f"{begin * 10 ** (best / 2):.2g}")


def build(name: str, regularizer=None):
    """One of the package's networks, or "cifar": three convolutions and two dense layers, 155,824 weights."""
    import keras
    from keras import layers

    from keras_sensprune.networks import NETWORKS, build_network

    if name in NETWORKS:
        return build_network(name, regularizer)
    body = []
    for filters in (16, 32, 64):
        body += [layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_regularizer=regularizer)]
        body += [layers.MaxPooling2D()]
    body += [layers.Flatten(), layers.Dense(128, "relu", kernel_regularizer=regularizer)]
    return keras.Sequential([keras.Input((32, 32, 3)), *body, layers.Dense(10, kernel_regularizer=regularizer)])


def load(protocol: Protocol) -> dict:
    """part -> (images in [0, 1], labels), each as long as the protocol says."""
    from keras_sensprune.datasets import load_dataset

    p = protocol
    if p.data != "cifar10-jpeg":
        data = load_dataset(p.data, validation=p.validation)
        return {
            "train": (data.x_train[: p.train], data.y_train[: p.train]),
            "validation": (data.x_validation, data.y_validation),
            "test": (data.x_test[: p.test], data.y_test[: p.test]),
        }
    x, y = jpeg_images("train", p.train + p.validation)
    held = jpeg_images("test", p.test)
    return {"train": (x[: p.train], y[: p.train]), "validation": (x[p.train :], y[p.train :]), "test": held}


def jpeg_images(part: str, count: int):
    """The first images of CIFAR-10 (JPEG): cifar10_jpeg.npz beside mnist.npz has the files end to end."""
    import tensorflow as tf

    from keras_sensprune.datasets import DATA_VARIABLE

    named = Path(os.environ[DATA_VARIABLE])
    with np.load((named if named.is_dir() else named.parent) / "cifar10_jpeg.npz") as file:
        stream, ends, labels = (file[f"{key}_{part}"] for key in ("jpeg", "offsets", "y"))
    pieces = (stream[ends[n] : ends[n + 1]].tobytes() for n in range(count))
    images = np.stack([tf.io.decode_jpeg(piece, channels=3).numpy() for piece in pieces])
    return images.astype("float32") / 255, labels[:count].astype("int32")


class Study:
    """Runs on one network, the files with their rows, and a cache of trained weights that git ignores."""

    def __init__(self, name: str, protocol: Protocol, folder: Path, say=print):
        self.name, self.protocol, self.folder, self.say = name, protocol, folder, say
        self.parts = load(protocol)
        self.data = f"{protocol.data}: " + ", ".join(f"{len(y)} {part}" for part, (_, y) in self.parts.items())
        self.cache = folder / "cache"
        self.cache.mkdir(exist_ok=True)

    # Rows and the cache

    def path(self, name: str) -> Path:
        return self.folder / f"{self.name}-{self.protocol.network}-{name}.json"

    def rows(self, name: str) -> list[dict]:
        path = self.path(name)
        if not path.exists():
            return []
        record = json.loads(path.read_text())
        if record["protocol"] != json.loads(json.dumps(dataclasses.asdict(self.protocol))):
            raise SystemExit(f"{path.name} was made with another protocol. Remove it to run the study again.")
        return record["rows"]

    def row(self, name: str, key: dict, make: Callable[[], dict]) -> dict:
        """The row with this key: read if it is there, else made and written."""
        rows = self.rows(name)
        for row in rows:
            if all(row[field] == value for field, value in key.items()):
                return row
        started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
        found = make()
        row = host(started, time.perf_counter() - begun, key["seed"], self.data) | key | found
        record = host(started, sum(r["seconds"] for r in [*rows, row]), 0, self.data)
        record["protocol"] = dataclasses.asdict(self.protocol)
        write(self.path(name), {**record, "rows": [*rows, row]})
        words = ", ".join(f"{k} {v}" for k, v in (key | found).items() if k != "thresholds")
        self.say(f"{name}: {words}; {row['seconds']:.0f} s", flush=True)
        return row

    def cached(self, name: str, make: Callable[[], dict]) -> dict:
        """The arrays that `make` returns, by name: read if they are in the cache, else made and kept there."""
        digest = hashlib.sha256(repr(self.protocol).encode()).hexdigest()[:10]
        path = self.cache / f"{self.name}-{name}-{digest}.npz"
        if not path.exists():
            temporary = path.with_suffix(".tmp.npz")
            np.savez_compressed(temporary, **make())
            os.replace(temporary, path)
        with np.load(path) as file:
            return dict(file)

    # Training

    def network(self, regularizer=None, weights=None, seed: int = 0):
        """A fresh network, with weights from a seed or these; what earlier ones have left in Keras is forgotten."""
        import keras

        keras.backend.clear_session()
        gc.collect()
        keras.utils.set_random_seed(seed)
        model = build(self.protocol.network, regularizer)
        if weights is not None:
            model.set_weights(weights)
        return model

    def dense(self, seed: int) -> tuple[list, float]:
        """(weights, seconds) of the network without regularization; the same one for all runs with a seed."""
        p = self.protocol

        def make():
            model = self.network(seed=seed)
            seconds = self.fit(model, self.sgd(p.dense_epochs), p.dense_epochs, seed)
            return {"seconds": seconds, **{str(n): w for n, w in enumerate(model.get_weights())}}

        found = self.cached(f"{p.network}-dense-seed{seed}", make)
        return [found[str(n)] for n in range(len(found) - 1)], float(found["seconds"])

    def sgd(self, epochs: int = 0, **settings):
        """SGD with a rate that falls along a half cosine over so many epochs; 0 means a constant one."""
        import keras

        p = self.protocol
        falling = keras.optimizers.schedules.CosineDecay(p.rate, max(1, epochs * p.steps), alpha=0.01)
        return keras.optimizers.SGD(falling if epochs else p.rate, **settings)

    def fit(self, model, optimizer, epochs: int, seed: int, callback=None) -> float:
        """Trains; returns seconds. Equal seeds see the same batches."""
        import keras

        keras.utils.set_random_seed(seed)
        smoothing = self.protocol.label_smoothing
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
        model.compile(optimizer, loss, jit_compile=False)  # many short fits: XLA would compile longer than they train
        x, y = self.parts["train"]
        begun = time.perf_counter()
        batch, callbacks = self.protocol.batch, [callback] if callback else []
        model.fit(x, np.eye(10, dtype="float32")[y], batch, epochs, verbose=0, callbacks=callbacks)
        return time.perf_counter() - begun

    def measure(self, model, part: str) -> tuple[float, float]:
        """(error in percent, cross-entropy in nats) on a part."""
        x, y = self.parts[part]
        pieces = [np.asarray(model(piece, training=False)) for piece in np.array_split(x, math.ceil(len(x) / 500))]
        logits = np.concatenate(pieces).astype(float)
        wrong = np.argmax(logits, -1) != y
        loss = np.logaddexp.reduce(logits, -1) - logits[np.arange(len(y)), y]
        return round(100 * float(np.mean(wrong)), 4), round(float(np.mean(loss)), 6)

    def error(self, model, part: str) -> float:
        return self.measure(model, part)[0]
