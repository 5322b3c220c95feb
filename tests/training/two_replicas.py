"""Runs cases on one replica and on two, in a process of its own: logical devices are fixed when TensorFlow starts.

`python -m tests.training.two_replicas CASE ...` prints "RESULT" and a JSON object: case -> [result on one replica,
run eagerly, result on two].
"""

import contextlib
import json
import math
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_sensprune import NofM, PruneAtEpochEnd, Sensitivity, SensitivityRegularizer
from keras_sensprune.training.step import SESSION
from tests.steps import OwnStep, with_step

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 12)).astype("float32"), RNG.integers(0, 4, 32)
EPOCHS, BATCH = 3, 16
# The two halves of each batch of 16, which go to one replica each, cancel each other.
OPPOSITE = np.tile(np.repeat([[1.0], [-1.0]], 8, axis=0), (2, 12)).astype("float32")


def dense(regularizer, own=False):
    layers = [
        keras.layers.Dense(8, "tanh", kernel_regularizer=regularizer),
        keras.layers.Dense(4, kernel_regularizer=regularizer),
    ]
    model = keras.Sequential([keras.Input((12,)), *layers])
    return with_step(model, OwnStep) if own else model


def with_batch_norm(regularizer):
    layers = [
        keras.layers.Reshape((4, 3)),
        keras.layers.Conv1D(6, 3, use_bias=False, kernel_regularizer=regularizer),
        keras.layers.BatchNormalization(synchronized=True),
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(4, kernel_regularizer=regularizer),
    ]
    return keras.Sequential([keras.Input((12,)), *layers])


def linear(regularizer):
    layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=regularizer)
    return keras.Sequential([keras.Input((12,)), layer])


def recurrent(regularizer):
    layers = [
        keras.layers.Reshape((4, 3)),
        keras.layers.SimpleRNN(5, kernel_regularizer=regularizer, recurrent_regularizer=regularizer),
        keras.layers.Dense(4, kernel_regularizer=regularizer),
    ]
    return keras.Sequential([keras.Input((12,)), *layers])


def own_logits(model, x):
    return model(x, training=False)


# name -> (model, settings of Sensitivity, and what differs from the usual: see `run`)
CASES = {
    "specific": (dense, {"every": 2}, {}),
    "sampled": (dense, {"kind": "unspecific"}, {}),
    "projected": (dense, {"kind": "unspecific", "estimator": "projected", "samples": 2, "every": 1}, {}),
    "exact": (dense, {"kind": "unspecific", "estimator": "exact", "every": 2}, {}),
    "loss": (dense, {"kind": "loss", "every": 2}, {}),
    "loss, own step, coupled": (lambda r: dense(r, own=True), {"kind": "loss", "every": 1}, {"decoupled": False}),
    "mean of abs": (dense, {"reduction": "mean_of_abs", "every": 2}, {}),
    "second order": (dense, {"every": 2}, {"decoupled": False, "order": 2}),
    "units": (dense, {"every": 2}, {"structure": "unit"}),
    "2 of 4": (dense, {"every": 2}, {"structure": NofM(2, 4)}),
    "output_fn": (dense, {"every": 2, "output_fn": own_logits}, {}),
    "batch norm": (with_batch_norm, {"every": 2}, {}),
    "recurrent": (recurrent, {"every": 2}, {}),
    "eager": (dense, {"every": 2}, {"run_eagerly": True}),
    "opposite halves": (linear, {"kind": "unspecific", "every": 1}, {"data": (OPPOSITE, np.ones((32, 1)))}),
    "opposite halves, mean of abs": (
        linear,
        {"kind": "unspecific", "reduction": "mean_of_abs", "every": 1},
        {"data": (OPPOSITE, np.ones((32, 1)))},
    ),
}


def batches(x, y):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).with_options(options)


class Watch(keras.callbacks.Callback):
    """Keeps the sensitivities and masks of the last epoch."""

    def on_epoch_end(self, epoch, logs=None):
        weights = vars(self.model)[SESSION].weights
        self.sensitivities = [weight.sensitivity.numpy().tolist() for weight in weights]
        self.masks = [weight.mask.numpy().tolist() for weight in weights]


@contextlib.contextmanager
def noting(exchanged):
    """Adds to `exchanged` what replicas average or sum together: bytes [in every step, in a condition of the graph]."""
    original = tf.distribute.StrategyExtended.batch_reduce_to

    def noted(self, reduce_op, pairs, options=None):
        for value, _ in pairs:
            first = self._container_strategy().experimental_local_results(value)[0]
            number = int(getattr(tf.compat.v1.get_default_graph(), "name", "").startswith("cond"))
            exchanged[number] += math.prod(first.shape) * first.dtype.size
        return original(self, reduce_op, pairs, options)

    tf.distribute.StrategyExtended.batch_reduce_to = noted
    try:
        yield
    finally:
        tf.distribute.StrategyExtended.batch_reduce_to = original


def run(strategy, build, config, *, decoupled=True, order=1, structure="weight", data=(X, Y), **settings):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = build(SensitivityRegularizer(1e-2 if decoupled else 1e-1, decoupled=decoupled, order=order))
        loss = "mse" if build is linear else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, **settings)
    callback, watch = PruneAtEpochEnd(0.1, Sensitivity(**config), structure=structure), Watch()
    exchanged = [0, 0]
    with noting(exchanged):
        model.fit(batches(*data), epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[callback, watch])
    return {
        "exchanged": exchanged,
        "recorded": [layer.name for layer in model.layers if "call" in vars(layer)],
        "weights": [w.tolist() for w in model.get_weights()],
        "sensitivities": watch.sensitivities,
        "masks": watch.masks,
        "sparsity": [record.sparsity for record in callback.records],
    }


def main(names):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = {}
    for name in names:
        build, config, settings = CASES[name]
        eager = {**settings, "run_eagerly": True}  # needs no compilation
        results[name] = [run(one, build, config, **eager), run(two, build, config, **settings)]
    print("RESULT" + json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
