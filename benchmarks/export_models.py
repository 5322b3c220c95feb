"""The models that `export_gain.py` measures: trained from a folder, or with made-up weights; and made-up zeros."""

from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_sensprune import exact_count_mask

# name -> (shape of an input, whether the weights are trained)
NETWORKS = {
    "lenet-300-100": ((28, 28), True),
    "lenet-5": ((28, 28), True),
    "mlp": ((1024,), False),
    "vgg": ((32, 32, 3), False),
    "mobilenet": ((96, 96, 3), False),
    "lstm": ((20, 64), False),
}


def load(name: str, models: Path, state: str = "dense"):
    """The dense network, or (trained ones only) the one "pruned" by the recipe."""
    if NETWORKS[name][1]:
        return keras.models.load_model(models / f"{name}-{state}.keras", compile=False)
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(NETWORKS[name][0]), *BODIES[name]()], name=name)


def _mlp():
    return [
        layers.Dense(4096, "relu", name="fc1"),
        layers.Dense(4096, "relu", name="fc2"),
        layers.Dense(1000, name="fc3"),
    ]


def _vgg():
    body = []
    for block, filters in enumerate((64, 128, 256), 1):
        for number in (1, 2):
            body.append(layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{block}_{number}"))
            body += [layers.BatchNormalization(name=f"norm{block}_{number}"), layers.ReLU()]
        body.append(layers.MaxPooling2D())
    return [*body, layers.Flatten(), layers.Dense(512, "relu", name="fc1"), layers.Dense(10, name="fc2")]


def _mobilenet():
    """MobileNet's blocks at half width, with the stem that the runtime's sparse convolutions ask for."""
    body = [layers.ZeroPadding2D(1), layers.Conv2D(16, 3, strides=2, use_bias=False, name="stem")]
    body += [layers.BatchNormalization(name="stem_norm"), layers.ReLU()]
    plan = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (256, 1), (512, 2), (512, 1))
    for number, (filters, stride) in enumerate(plan, 1):
        body += [layers.ZeroPadding2D(1), layers.DepthwiseConv2D(3, strides=stride, use_bias=False, name=f"dw{number}")]
        body += [layers.BatchNormalization(name=f"dw{number}_norm"), layers.ReLU()]
        body += [layers.Conv2D(filters, 1, use_bias=False, name=f"pw{number}")]
        body += [layers.BatchNormalization(name=f"pw{number}_norm"), layers.ReLU()]
    return [*body, layers.GlobalAveragePooling2D(), layers.Dense(100, name="classes")]


def _lstm():
    return [layers.LSTM(256, name="lstm"), layers.Dense(10, name="classes")]


BODIES = {"mlp": _mlp, "vgg": _vgg, "mobilenet": _mobilenet, "lstm": _lstm}


def _kernels(model):
    """Weights of rank 2 and more, depthwise kernels left alone: they are small, and every channel needs its own."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, layers.DepthwiseConv2D) or layer._layers:
            continue
        yield from (v for v in layer._trainable_variables if len(v.shape) >= 2)


def zero_weights(model, sparsity: float) -> None:
    """The smallest weights of every kernel become zero: exactly the asked share of each."""
    for variable in _kernels(model):
        value = variable.numpy()
        variable.assign(np.where(exact_count_mask(np.abs(value), sparsity) > 0, value, np.float32(0)))


def zero_blocks(model, sparsity: float, size: int) -> None:
    """The same in blocks of `size` inputs of one unit, scored by their norm; other kernels stay as they are."""
    for variable in _kernels(model):
        value = variable.numpy()
        if value.ndim != 2 or value.shape[0] % size:
            continue
        blocks = value.reshape(-1, size, value.shape[1])
        mask = exact_count_mask(np.linalg.norm(blocks, axis=1), sparsity)[:, None, :]
        variable.assign(np.where(mask > 0, blocks, np.float32(0)).reshape(value.shape))


def zero_units(model, share: float) -> None:
    """The given share of the units of every hidden layer dies: incoming weights and biases, normalization included."""
    weighted = [layer for layer in model.layers if isinstance(layer, (layers.Dense, layers.Conv2D, layers.LSTM))]
    weighted = [layer for layer in weighted if not isinstance(layer, layers.DepthwiseConv2D)]
    for layer in weighted[:-1]:
        gates = 4 if isinstance(layer, layers.LSTM) else 1
        units = layer.weights[0].shape[-1] // gates
        dead = np.random.default_rng(0).permutation(units)[: round(share * units)]
        alive = np.ones(units, np.float32)
        alive[dead] = 0
        for variable in layer.cell.weights if gates > 1 else layer.weights:
            variable.assign(variable.numpy() * np.tile(alive, gates))
        _silence_normalization(model, layer, alive)


def _silence_normalization(model, layer, alive) -> None:
    """Shift and moving mean of the normalization that follows (also behind a depthwise layer) die with the units."""
    following = model.layers[model.layers.index(layer) + 1 :]
    for after in following:
        if isinstance(after, layers.BatchNormalization):
            for variable in (after.beta, after.moving_mean):
                variable.assign(variable.numpy() * alive)
        elif isinstance(after, (layers.Conv2D, layers.Dense)) and not isinstance(after, layers.DepthwiseConv2D):
            return
