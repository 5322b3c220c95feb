"""The only place that imports tf_keras and TF-MOT: late, and so that the process stays as it was."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

from keras_sensprune.errors import MissingPackageError

_SWITCH = "TF_USE_LEGACY_KERAS"


@contextlib.contextmanager
def quiet_warnings() -> Iterator[None]:
    """Warnings of tf_keras and TF-MOT about themselves are no news to the user; the filters are given back after."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """`tf.keras` and the environment variable stay as they were.

    TF-MOT sets TF_USE_LEGACY_KERAS and never takes it back. `tf.keras` is looked up on first use and would then be
    Keras 2 for the whole process; so it is looked up here before.
    """
    import tensorflow as tf

    with quiet_warnings():
        _ = tf.keras.Model
    before = os.environ.get(_SWITCH)
    try:
        with quiet_warnings():
            yield
    finally:
        if before is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = before


def import_tf_keras() -> Any:
    """The module `tf_keras`.

    Raises:
        MissingPackageError: if it is not installed.
    """
    with process_kept():
        try:
            import tf_keras
        except ImportError as error:
            raise _missing("tf_keras", error) from error
    return tf_keras


def import_tfmot() -> Any:
    """The module `tensorflow_model_optimization`.

    Raises:
        MissingPackageError: if it is not installed.
    """
    with process_kept():
        try:
            import tensorflow_model_optimization as tfmot
        except ImportError as error:
            raise _missing("tensorflow-model-optimization", error) from error
    return tfmot


def import_cluster_weights() -> Any:
    """TF-MOT's `cluster_weights` that can preserve zeros, which no public module of it names.

    Raises:
        MissingPackageError: if TF-MOT is not installed.
    """
    import_tfmot()
    with process_kept():
        module = importlib.import_module(
            "tensorflow_model_optimization.python.core.clustering.keras.experimental.cluster"
        )
    return module.cluster_weights


def _missing(package: str, error: ImportError) -> MissingPackageError:
    return MissingPackageError(
        f"This needs the package {package}, which cannot be imported ({error}). "
        "Install it with `pip install keras-sensprune[tfmot]`."
    )
