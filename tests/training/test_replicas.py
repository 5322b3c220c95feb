"""Two replicas equal one. In a process of its own, because logical devices are fixed when TensorFlow starts."""

import json
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import json
import keras
import numpy as np
import tensorflow as tf
from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 12)).astype("float32"), rng.integers(0, 4, 32)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).with_options(options)
results = []


class OwnStep(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return {"loss": loss}


config, kind, decoupled = SETTINGS
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        r = SensitivityRegularizer(1e-2 if decoupled else 1e-1, decoupled=decoupled)
        layers = [keras.layers.Dense(8, "tanh", kernel_regularizer=r), keras.layers.Dense(4, kernel_regularizer=r)]
        model = keras.Sequential([keras.Input((12,)), *layers])
        model = OwnStep(model.inputs, model.outputs) if kind == "own" else model
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = PruneAtEpochEnd(0.1, Sensitivity(**config))
    history = model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[callback]).history
    weights = [w.tolist() for w in model.get_weights()]
    results.append({"weights": weights, "sparsity": history["sparsity"]})
print("RESULT" + json.dumps(results))
"""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("config", "kind", "decoupled"),
    [
        ({}, "stock", True),
        pytest.param({"kind": "loss"}, "stock", True, marks=SLOW),
        pytest.param({"kind": "loss"}, "own", False, marks=SLOW),
        pytest.param({"kind": "unspecific", "every": 2}, "stock", True, marks=SLOW),
        pytest.param({"scale": "relevance"}, "own", True, marks=SLOW),
    ],
)
def test_two_replicas_equal_one(config, kind, decoupled):
    program = PROGRAM.replace("SETTINGS", repr((config, kind, decoupled)))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = json.loads(done.stdout.split("RESULT")[1])
    assert one["sparsity"] == two["sparsity"]
    assert one["sparsity"][-1] > 0
    for a, b in zip(one["weights"], two["weights"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # 6 steps in float32, sums in another order
