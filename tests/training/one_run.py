"""One small training run and its export, in a process of its own; prints "RESULT" and digests of what came out.

python one_run.py FOLDER KIND:SEED ...: one run per kind of sensitivity and seed.
"""

import hashlib
import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer, export_tflite
from keras_sensprune.training.step import SESSION


def digest(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()


class Watch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.kept = [array.numpy() for w in vars(self.model)[SESSION].weights for array in (w.mask, w.sensitivity)]


def run(seed, kind, path):
    keras.utils.set_random_seed(seed)  # Python's, NumPy's and TensorFlow's generators
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 8, 8, 2)).astype("float32"), rng.integers(0, 4, 96)
    sparse = SensitivityRegularizer(1e-2)
    layers = [
        keras.layers.Conv2D(6, 3, activation="relu", kernel_regularizer=sparse),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(16, "tanh", kernel_regularizer=sparse),
        keras.layers.Dense(4, kernel_regularizer=sparse),
    ]
    model = keras.Sequential([keras.Input((8, 8, 2)), *layers], name="one_run")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback, watch = PruneAtEpochEnd(0.05, Sensitivity(kind, every=2)), Watch()
    model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=[callback, watch])  # shuffled by the seed
    export_tflite(model, path, data=x[:8], runtimes=("litert",), overwrite=True)
    with open(path, "rb") as file:
        exported = file.read()
    return {
        "weights": digest(*(w.tobytes() for w in model.get_weights())),
        "masks and sensitivities": digest(*(array.tobytes() for array in watch.kept)),
        "records": [repr(record) for record in callback.records],
        "file": digest(exported),
    }


def main(folder, *settings):
    tf.config.experimental.enable_op_determinism()
    results = {}
    try:
        results["unseeded"] = str(tf.random.uniform([1]))
    except RuntimeError as error:
        results["unseeded"] = str(error)
    for setting in settings:
        kind, seed = setting.split(":")
        results[setting] = run(int(seed), kind, os.path.join(folder, "model.tflite"))
    print("RESULT" + json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
