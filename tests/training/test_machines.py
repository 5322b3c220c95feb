"""`fit` on several machines: one clear error, as early as this package is called at all."""

import sys
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer
from keras_sensprune.errors import ModelError
from keras_sensprune.training.machines import refuse_several_machines
from tests.test_examples import load

MESSAGE = (
    "PruneAtEpochEnd works in `fit`, but `fit` of Keras 3.15 cannot train on 2 machines (MultiWorkerMirroredStrategy). "
    "Use the step of make_pruning_step in a loop with strategy.run, as in examples/multi_worker.py. For a model that "
    "this machine trains alone, make the callback in the scope of its own strategy, for example "
    "tf.distribute.OneDeviceStrategy('CPU:0')."
)

PROGRAM = f"""
import keras, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer
from keras_sensprune.errors import ModelError

def refused(make):
    try:
        make()
    except ModelError as error:
        return str(error) == {MESSAGE!r}

with strategy.scope():
    layer = keras.layers.Dense(2, kernel_regularizer=SensitivityRegularizer(1e-3))
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    assert refused(PruneAtEpochEnd)
assert refused(PruneAtEpochEnd)
with tf.distribute.OneDeviceStrategy("CPU:0").scope():
    callback = PruneAtEpochEnd()
assert refused(lambda: callback.set_model(model))
data = tf.data.Dataset.from_tensor_slices((np.ones((8, 3), "float32"), np.ones((8, 2)))).batch(4)
try:
    model.fit(data, shuffle=False, verbose=0)  # without any callback
except ValueError as error:
    assert "PerReplica" in str(error)
else:
    raise SystemExit("fit of Keras works here: the error of this package has no reason any more")
"""


def strategy_of(workers):
    addresses = {"worker": [f"host{number}:1" for number in range(workers)]}
    resolver = SimpleNamespace(cluster_spec=lambda: tf.train.ClusterSpec(addresses))
    return SimpleNamespace(cluster_resolver=resolver)


def test_a_model_on_two_machines_is_refused():
    with pytest.raises(ModelError) as caught:
        refuse_several_machines(strategy_of(2))
    assert str(caught.value) == MESSAGE


def test_one_worker_is_no_cluster():
    assert refuse_several_machines(strategy_of(1)) is None


def test_a_process_in_a_cluster_is_refused_unless_the_scope_says_otherwise(monkeypatch):
    alone = tf.distribute.OneDeviceStrategy("CPU:0")
    cluster = SimpleNamespace(job=[SimpleNamespace(name="worker", tasks={0: "a:1", 1: "b:1"})])
    with monkeypatch.context() as patch:
        patch.setattr(context.context(), "_collective_ops_server_def", SimpleNamespace(cluster=cluster))
        with pytest.raises(ModelError) as caught:
            PruneAtEpochEnd()
        with alone.scope():
            callback = PruneAtEpochEnd()
    assert str(caught.value) == MESSAGE
    with alone.scope():
        layer = keras.layers.Dense(1, kernel_regularizer=SensitivityRegularizer(1e-3))
        model = keras.Sequential([keras.Input((2,)), layer])
    callback.set_model(model)
    assert callback.model is model


@pytest.mark.slow
def test_two_real_processes_are_refused_and_fit_fails_there_without_the_callback_too():
    assert load("multi_worker").start_workers([sys.executable, "-c", PROGRAM]) == [0, 0]
