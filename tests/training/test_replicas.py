"""Two replicas equal one. In a process of its own, because logical devices are fixed when TensorFlow starts."""

import json
import subprocess
import sys

import numpy as np

PROGRAM = """
import json
import keras
import numpy as np
import tensorflow as tf
from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 12)).astype("float32"), rng.integers(0, 4, 32)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).with_options(options)
results = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        r = SensitivityRegularizer(1e-2)
        layers = [keras.layers.Dense(8, "tanh", kernel_regularizer=r), keras.layers.Dense(4, kernel_regularizer=r)]
        model = keras.Sequential([keras.Input((12,)), *layers])
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[PruneAtEpochEnd(0.1)]).history
    weights = [w.tolist() for w in model.get_weights()]
    results.append({"weights": weights, "sparsity": history["sparsity"]})
print("RESULT" + json.dumps(results))
"""


def test_two_replicas_equal_one():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = json.loads(done.stdout.split("RESULT")[1])
    assert one["sparsity"] == two["sparsity"]
    assert one["sparsity"][-1] > 0
    for a, b in zip(one["weights"], two["weights"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # 6 steps in float32, sums in another order
