"""Helpers of the tests: random weights of every kind, and dead units."""

import keras
import numpy as np


def randomized(model, seed=0):
    """Normal weights; variances positive. Nothing is near a special value such as 0."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        value = generator.normal(size=variable.shape) / np.sqrt(max(1, np.prod(variable.shape[:-1])))
        if "variance" in variable.path:
            value = np.abs(value) + 0.5
        variable.assign(value)
    return model


def kill_incoming(layer, units, gates=1, biases=False):
    """Zero the incoming weights of some units (last axis, all gates); biases too where asked."""
    values = layer.get_weights()
    size = values[0].shape[-1] // gates
    columns = [gate * size + unit for gate in range(gates) for unit in units]
    for value in values:
        if value.ndim > 1 or biases:
            value[..., columns] = 0
    layer.set_weights(values)


def kill_outgoing(layer, inputs):
    """Zero the weights with which a layer reads some input channels."""
    values = layer.get_weights()
    values[0][..., inputs, :] = 0
    layer.set_weights(values)


def kept(record, name):
    """The old units of a layer that are left."""
    (row,) = (row for row in record.layers if row.path == name)
    return list(row.kept)


def same(model, small, seed=1, examples=4):
    """Largest difference of the outputs on inputs that `compact` has not seen."""
    generator = np.random.default_rng(seed)

    def values(tensor):
        shape = (examples, *(size or 5 for size in tensor.shape[1:]))
        whole = not keras.backend.is_float_dtype(tensor.dtype)
        return (generator.integers(0, 5, shape) if whole else generator.normal(size=shape)).astype(tensor.dtype)

    x = [values(tensor) for tensor in model.inputs]
    x = x[0] if len(x) == 1 else x
    pairs = zip(keras.tree.flatten(model(x)), keras.tree.flatten(small(x)), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)
