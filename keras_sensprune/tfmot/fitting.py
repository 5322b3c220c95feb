"""Train a tf_keras model further without losing zeros."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_sensprune.errors import argument_error, integer_argument
from keras_sensprune.tfmot.importing import import_tf_keras, quiet_warnings


def fit_keeping_zeros(
    model: Any, data: Any, kept: Mapping[str, tuple[Any, np.ndarray]], options: Mapping[str, Any]
) -> collections.Counter[str]:
    """Compile and fit `model`; after every step the entries that must be zero are set to zero again.

    Args:
        model: a tf_keras model.
        data: (x, y), or a `tf.data.Dataset` of batches.
        kept: per layer name the variable and the mask of what may be nonzero.
        options: "loss", "optimizer", "epochs", "batch_size", "verbose".

    Returns:
        Per layer name how many entries had drifted away from zero, summed over all steps.
    """
    tf_keras = import_tf_keras()
    restored: collections.Counter[str] = collections.Counter()

    class KeepZeros(tf_keras.callbacks.Callback):  # type: ignore[name-defined]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            restored.update(set_back(kept))

    arguments: dict[str, Any] = {"epochs": options["epochs"], "verbose": options["verbose"]}
    if isinstance(data, tuple):
        arguments |= {"x": data[0], "y": data[1], "batch_size": options["batch_size"]}
    else:
        arguments["x"] = data
    with quiet_warnings():
        if options["epochs"]:
            model.compile(optimizer=options["optimizer"], loss=options["loss"])
            model.fit(**arguments, callbacks=[KeepZeros()])
    return restored


def set_back(kept: Mapping[str, tuple[Any, np.ndarray]]) -> dict[str, int]:
    """Zeros that drifted are set to zero again; how many there were, by layer name."""
    found = {}
    for name, (variable, mask) in kept.items():
        value = variable.numpy()
        drifted = (value != 0) & ~mask  # NaN is not zero
        if drifted.any():
            variable.assign(np.where(mask, value, 0).astype(value.dtype))
            found[name] = int(drifted.sum())
    return found


def fit_options(loss: Any, optimizer: Any, epochs: Any, batch_size: Any, verbose: Any) -> dict[str, Any]:
    """The arguments of a training, checked.

    Raises:
        ArgumentError: if one is not allowed; above all an object of Keras 3, which tf_keras does not take.
    """
    for name, value in (("loss", loss), ("optimizer", optimizer)):
        if type(value).__module__.split(".")[0] == "keras":
            remedy = (
                f"Pass its name, or the object of the same name from tf_keras.{name}{'es' if name == 'loss' else 's'}."
            )
            raise argument_error(name, "a name or an object of tf_keras", value, remedy)
    if not isinstance(optimizer, str) and type(optimizer).__module__.split(".")[0] != "tf_keras":
        raise argument_error("optimizer", "a name or an optimizer of tf_keras", optimizer)
    if not isinstance(loss, str) and not callable(loss):
        raise argument_error("loss", "a name, a loss of tf_keras, or a function (y, y_pred)", loss)
    integer_argument("epochs", epochs, 0)
    integer_argument("batch_size", batch_size, 1)
    return {"loss": loss, "optimizer": optimizer, "epochs": epochs, "batch_size": batch_size, "verbose": verbose}


def training_data(data: Any) -> Any:
    """`data` as (x, y) of arrays, or the data set itself.

    Raises:
        ArgumentError: if it is neither.
    """
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset):
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        allowed = "a pair (x, y) of arrays, or a tf.data.Dataset of batches"
        raise argument_error("data", allowed, data)
    x, y = (tf.nest.map_structure(np.asarray, part) for part in data)
    sizes = sorted({len(leaf) if leaf.ndim else 0 for leaf in (*tf.nest.flatten(x), *tf.nest.flatten(y))})
    if len(sizes) != 1 or not sizes[0]:
        raise argument_error("data", "x and y with as many examples, one or more", sizes)
    for leaf in tf.nest.flatten(x):
        if leaf.dtype.kind not in "fiub" or not np.all(np.isfinite(leaf)):
            raise argument_error("data", "finite numbers", f"{leaf.dtype} array of shape {leaf.shape}")
    return x, y
