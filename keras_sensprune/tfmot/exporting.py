"""A quantization-aware model as a checked int8 `.tflite` file."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from keras_sensprune.errors import ExportError, argument_error
from keras_sensprune.export import flatbuffer, verify, writing
from keras_sensprune.records import ExportRecord, TensorRecord
from keras_sensprune.tfmot.fitting import set_back
from keras_sensprune.tfmot.forward import tf_keras_outputs
from keras_sensprune.tfmot.importing import process_kept, quiet_warnings
from keras_sensprune.tfmot.qat import QuantizedModel


def export_quantized(
    quantized: QuantizedModel,
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    sparse: str | bool = "auto",
    overwrite: bool = False,
    tolerance: float | None = None,
    runtimes: tuple[str, ...] = ("litert", "tflite"),
) -> ExportRecord:
    """Write what `quantize_aware` made as an int8 `.tflite` file, and check it.

    The file is run and compared with the tf_keras model, and read back: each weight must have at least the zeros that
    the model has. Inputs and outputs stay float32. Only then does the file get its name.

    Args:
        quantized: what `quantize_aware` returned.
        path: the file to write, in an existing folder.
        data: example inputs to compare on: an array, or a list of arrays; by default 16 seeded random examples.
        sparse: "auto" writes weights sparse where that saves bytes; False leaves all dense.
        overwrite: whether a file that exists may be replaced.
        tolerance: largest absolute difference allowed; by default the root mean square of the difference may be 20 %
            of that of the output.
        runtimes: "litert", "tflite" or both.

    Returns:
        An `ExportRecord`.

    Raises:
        ArgumentError: if an argument is not allowed, or the file exists.
        ExportError: if it cannot be converted, zeros are lost in it, or it does not agree with the model.

    Example:
        >>> import os, tempfile
        >>> import keras, numpy as np
        >>> from keras_sensprune import export_quantized, quantize_aware
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="fc")])
        >>> model.set_weights([np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]), np.zeros(2)])
        >>> x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
        >>> quantized = quantize_aware(model, (x, x[:, :2]), loss="mse")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = export_quantized(quantized, os.path.join(folder, "model.tflite"), data=x)
        >>> record.quantize, [tensor.zeros for tensor in record.tensors]
        ('int8', [4])
    """
    if not isinstance(quantized, QuantizedModel):
        raise argument_error("quantized", "what `quantize_aware` returned", quantized)
    if sparse != "auto" and sparse is not False:
        raise argument_error("sparse", "'auto' or False", sparse)
    known = tuple(verify.RUNTIMES)
    if not isinstance(runtimes, (tuple, list)) or not runtimes or not set(runtimes) <= set(known):
        raise argument_error("runtimes", f"a tuple of one or more of {', '.join(map(repr, known))}", runtimes)
    writing.checked_target(path, overwrite)
    set_back(quantized.kernels)
    names = [f"input_{i}" for i in range(len(quantized.model.inputs))]
    arrays = _examples(quantized.model, data)
    with quiet_warnings():
        expected = tf_keras_outputs(quantized.model, arrays)
        dense = _convert(quantized.model, names)
    _check_zeros(quantized, flatbuffer.weight_tensors(dense))
    examples = writing.Examples(
        dict(zip(names, arrays, strict=True)),
        {f"output_{i}": value for i, value in enumerate(expected)},
        quantized.model.inputs[0].shape[0],
    )
    options = writing.Options(
        "int8",
        "auto" if sparse == "auto" else "none",
        tolerance=tolerance,
        runtimes=tuple(runtimes),
        overwrite=overwrite,
    )
    return writing.write_checked(dense, path, examples, options)


def _convert(model: Any, names: list[str]) -> bytes:
    import tensorflow as tf

    specs = [tf.TensorSpec(t.shape, t.dtype, name=n) for n, t in zip(names, model.inputs, strict=True)]

    def serve(*leaves: Any) -> dict[str, Any]:
        answers = tf.nest.flatten(model(leaves[0] if len(leaves) == 1 else list(leaves), training=False))
        return {f"output_{i}": value for i, value in enumerate(answers)}

    try:
        with tempfile.TemporaryDirectory(prefix="sensprune-") as folder, process_kept():
            signatures = tf.function(serve, input_signature=specs)
            tf.saved_model.save(model, folder, signatures=signatures)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            return bytes(converter.convert())
    except Exception as error:  # the converter raises many types; whatever it is, there is no file
        reason = (str(error) or type(error).__name__).split("\n")[0][:300]
        raise ExportError(f"The model {model.name!r} could not be converted to TFLite. {reason}") from error


def _examples(model: Any, data: Any) -> list[np.ndarray]:
    shapes = [tuple(t.shape) for t in model.inputs]
    dtypes = [t.dtype.as_numpy_dtype for t in model.inputs]
    if data is None:
        generator = np.random.default_rng(0)
        return [
            generator.normal(size=(16, *shape[1:])).astype(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
    leaves = [np.asarray(leaf) for leaf in (data if isinstance(data, (list, tuple)) else [data])]
    fits = len(leaves) == len(shapes) and all(a.shape[1:] == s[1:] for a, s in zip(leaves, shapes, strict=True))
    if not fits or len({len(a) for a in leaves}) != 1 or not len(leaves[0]):
        received = [a.shape for a in leaves]
        raise argument_error("data", f"example inputs of the shapes {shapes}, one or more", received)
    if not all(a.dtype.kind in "fiub" and np.all(np.isfinite(a)) for a in leaves):
        raise argument_error("data", "finite numbers", [str(a.dtype) for a in leaves])
    return [a.astype(dtype) for a, dtype in zip(leaves, dtypes, strict=True)]


def _check_zeros(quantized: QuantizedModel, tensors: tuple[TensorRecord, ...]) -> None:
    """Each kernel must be in the file as int8, with as many zeros or more; kernels of equal size go by their zeros."""
    sizes = sorted({mask.size for _, mask in quantized.kernels.values()})
    for size in sizes:
        zeros = [int(mask.size - mask.sum()) for _, mask in quantized.kernels.values() if mask.size == size]
        wanted = sorted(zeros, reverse=True)
        found = [t.zeros for t in tensors if int(np.prod(t.shape)) == size and t.dtype == "int8"]
        found = sorted(found, reverse=True)[: len(wanted)]
        if len(found) < len(wanted) or any(a < b for a, b in zip(found, wanted, strict=True)):
            layers = ", ".join(name for name, (_, mask) in quantized.kernels.items() if mask.size == size)
            raise ExportError(f"The int8 file has {found} zeros in the weights of {layers}; expected are {wanted}.")
