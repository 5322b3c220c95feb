"""The process is left as it was, whatever was imported first; each case in a process of its own."""

import os
import subprocess
import sys

import pytest

from keras_sensprune.errors import MissingPackageError
from keras_sensprune.tfmot import importing

FIRST = {
    "keras": "import keras, tensorflow as tf",
    "tensorflow": "import tensorflow as tf, keras",
    "touched": "import tensorflow as tf, keras; tf.keras.Model",
    "nothing": "",
}
SCRIPT = """
import os, sys, warnings
{first}
warnings.filterwarnings("error", category=RuntimeWarning)
filters = list(warnings.filters)
before, imported = dict(os.environ), "tensorflow" in sys.modules
from keras_sensprune.tfmot.importing import import_tf_keras, import_tfmot
tf_keras, tfmot = import_tf_keras(), import_tfmot()
import keras, tensorflow as tf
from keras_sensprune import from_tf_keras, to_tf_keras
net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
from_tf_keras(to_tf_keras(net))
tfmot.sparsity.keras.prune_low_magnitude(to_tf_keras(net))
changed = {{k for k in before.keys() | os.environ if before.get(k) != os.environ.get(k)}}
assert "TF_USE_LEGACY_KERAS" not in changed
assert not changed or not imported, changed  # importing tensorflow sets some
assert [f for f in warnings.filters if f in filters] == filters  # importing keras and tensorflow adds some
print("KERAS", issubclass(tf.keras.Model, keras.Model), issubclass(tf.keras.Model, tf_keras.Model))
"""


EVERYTHING = (
    SCRIPT
    + """
import tempfile
import numpy as np
from keras_sensprune import cluster_preserving, export_quantized, quantize_aware
filters, before = list(warnings.filters), dict(os.environ)
net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(2)])
x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
quantized = quantize_aware(net, (x, x[:, :2]), loss="mse")
cluster_preserving(net, (x, x[:, :2]), loss="mse", clusters=4)
with tempfile.TemporaryDirectory() as folder:
    export_quantized(quantized, os.path.join(folder, "net.tflite"), data=x, runtimes=("litert",))
changed = {{k for k in before.keys() | os.environ if before.get(k) != os.environ.get(k)}}
assert not changed, changed
assert [f for f in warnings.filters if f in filters] == filters
print("THEN", issubclass(tf.keras.Model, keras.Model), issubclass(tf.keras.Model, tf_keras.Model))
"""
)


def run(script, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("first", ["keras", "nothing"])
def test_tf_keras_and_environment_stay(first):
    done = run(SCRIPT.format(first=FIRST[first]))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "KERAS True False" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
def test_training_and_export_leave_the_process_as_it_was(first):
    done = run(EVERYTHING.format(first=FIRST[first]))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "KERAS True False" in done.stdout
    assert "THEN True False" in done.stdout


@pytest.mark.slow
def test_who_chose_keras_2_keeps_it():
    done = run(SCRIPT.format(first=FIRST["tensorflow"]), TF_USE_LEGACY_KERAS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "KERAS False True" in done.stdout


@pytest.mark.parametrize(
    ("package", "load"), [("tf_keras", "import_tf_keras"), ("tensorflow_model_optimization", "import_tfmot")]
)
def test_a_missing_package_names_the_extra(monkeypatch, package, load):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"keras-sensprune\[tfmot\]"):
        getattr(importing, load)()
    assert "TF_USE_LEGACY_KERAS" not in os.environ


def test_the_environment_is_given_back_after_an_exception(monkeypatch):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")

    def fail():
        with importing.process_kept():
            os.environ["TF_USE_LEGACY_KERAS"] = "1"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.environ["TF_USE_LEGACY_KERAS"] == "0"
