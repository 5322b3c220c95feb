"""`export_tflite`: a Keras model as a small `.tflite` file that was run and compared before it got its name."""

from __future__ import annotations

import contextlib
import gzip
import os
import pathlib
import secrets
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_sensprune.errors import BackendError, ExportError, ModelError, argument_error, number_argument
from keras_sensprune.export import convert, flatbuffer, verify
from keras_sensprune.records import ExportRecord


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    overwrite: bool = False,
    tolerance: float | None = None,
) -> ExportRecord:
    """Write `model` as a float32 `.tflite` file, sparse where that is smaller, and check it against Keras.

    The weights of Dense layers (and of the loops of LSTM, GRU and SimpleRNN) are stored as their nonzero values
    and indices wherever that takes fewer bytes; convolutions and embeddings stay dense. The file is run in LiteRT,
    in a process of its own, with the default delegate and without, and compared with `model(x, training=False)`.
    Only then does it get its name; before, and after any failure, nothing is at `path` that was not there.

    A sparse file that fails the check is replaced by the dense one, with a warning that says why. A model with
    recurrent layers gets a fixed batch of 1, unless its inputs have a batch size.

    Args:
        model: a built Keras model on the TensorFlow backend. It is not changed.
        path: the file to write, in an existing folder.
        data: example inputs to compare on, as for `model.predict`: an array, or a list or dictionary of arrays,
            each (examples, ...). By default 16 seeded random examples: normal for floats, 0 and 1 for integers.
            Needed for subclassed models and for inputs with a free size beside the batch.
        overwrite: whether a file that exists may be replaced.
        tolerance: largest absolute difference allowed between file and model. By default, for each output,
            1e-5 plus 1e-4 times its largest absolute value (rounding in float32), and 0 for integer outputs.

    Returns:
        An `ExportRecord`: bytes raw and gzipped, the tensors and how each is stored, the largest difference.

    Raises:
        ArgumentError: if an argument is not allowed, or the file exists and `overwrite` is False.
        ModelError: if the model is not built or has inputs that a `.tflite` file cannot take.
        BackendError: if Keras does not run on TensorFlow.
        ExportError: if a weight is not finite, the model cannot be converted, or the file does not load, crashes,
            answers NaN, or differs from the model by more than the tolerance.

    Example:

    >>> import os, tempfile
    >>> import keras, numpy as np
    >>> from keras_sensprune import export_tflite
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32), keras.layers.Dense(10)])
    >>> kernel = model.layers[0].kernel
    >>> kernel.assign(kernel * (np.arange(64 * 32).reshape(64, 32) % 10 == 0)).shape  # 90 % zeros
    TensorShape([64, 32])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = export_tflite(model, os.path.join(folder, "model.tflite"))
    >>> record.encoding, record.sparse_tensors, record.bytes < record.dense_bytes
    ('sparse', 1, True)
    >>> record.max_difference <= record.tolerance
    True
    """
    target = _checked_target(path, overwrite)
    if tolerance is not None:
        tolerance = number_argument("tolerance", tolerance, "a number of at least 0, or None")
    _check_model(model)
    inputs = convert.model_inputs(model, data)
    arrays = convert.example_arrays(inputs, data)
    with _state_kept(model):
        dense = flatbuffer.positive_zeros(convert.convert_dense(model, inputs))
        expected = convert.keras_outputs(model, inputs, arrays)

    def check(file: pathlib.Path) -> verify.Comparison:
        return verify.verify_file(file, arrays, expected, batch=inputs.batch, tolerance=tolerance)

    with _temporary_file(target) as temporary:
        content, comparison = _smallest_that_agrees(dense, temporary, check)
        record = _record(target, content, len(dense), comparison)
        _checked_target(path, overwrite)  # it may have appeared while we converted
        os.replace(temporary, target)
    return record


def _smallest_that_agrees(dense: bytes, file: pathlib.Path, check: Any) -> tuple[bytes, verify.Comparison]:
    """Write the sparse content to `file` if it is smaller and passes `check`, else the dense one."""
    sparse = flatbuffer.sparse_fully_connected(dense)
    if len(sparse) < len(dense):
        _write(file, sparse)
        try:
            return sparse, check(file)
        except ExportError as error:
            reason = str(error)
        _write(file, dense)
        comparison = check(file)  # if this one fails too, its own error is the one to see
        warnings.warn(f"The sparse file was not used, the dense one is written instead. {reason}", stacklevel=3)
        return dense, comparison
    _write(file, dense)
    return dense, check(file)


def _record(target: pathlib.Path, content: bytes, dense_bytes: int, comparison: verify.Comparison) -> ExportRecord:
    tensors = flatbuffer.weight_tensors(content)
    sparse_tensors = sum(tensor.encoding != "dense" for tensor in tensors)
    return ExportRecord(
        path=str(target),
        encoding="sparse" if sparse_tensors else "dense",
        bytes=len(content),
        gzip_bytes=len(gzip.compress(content, 9, mtime=0)),
        dense_bytes=dense_bytes,
        tensors=tensors,
        sparse_tensors=sparse_tensors,
        max_difference=comparison.max_difference,
        largest_output=comparison.largest_output,
        tolerance=comparison.tolerance,
        runs=comparison.runs,
        examples=comparison.examples,
    )


def _checked_target(path: Any, overwrite: Any) -> pathlib.Path:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise argument_error("path", "the name of a file", path)
    if not isinstance(overwrite, bool):
        raise argument_error("overwrite", "True or False", overwrite)
    target = pathlib.Path(os.fspath(path))
    if not target.parent.is_dir():
        raise argument_error("path", "in a folder that exists", str(path), "Create the folder first.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise argument_error("path", "in a folder that may be written to", str(path))
    if target.is_dir():
        raise argument_error("path", "the name of a file, not of a folder", str(path))
    if os.path.lexists(target) and not overwrite:
        allowed = "a file that does not exist"
        raise argument_error("path", allowed, str(path), "Pass overwrite=True to replace it.")
    return target


def _check_model(model: Any) -> None:
    if keras.backend.backend() != "tensorflow":
        raise BackendError(f"Export needs Keras on the TensorFlow backend, not {keras.backend.backend()!r}.")
    if not isinstance(model, keras.Model):
        raise argument_error("model", "a Keras model", model)
    if not model.built:
        raise ModelError(f"The model {model.name!r} is not built. Call it once, or give it a `keras.Input`.")
    for variable in model.variables:
        if keras.backend.is_float_dtype(variable.dtype) and not np.all(np.isfinite(variable.numpy())):
            raise ExportError(f"The weight {variable.path!r} of the model holds NaN or infinity.")


@contextlib.contextmanager
def _state_kept(model: keras.Model) -> Iterator[None]:
    """Give the model back what calling it changes: recurrent states, collected losses, marks set on its layers."""
    saved = [(variable, variable.numpy().copy()) for variable in model.non_trainable_variables]
    layers = [(layer, dict(vars(layer)), list(layer._losses)) for layer in model._flatten_layers()]
    try:
        yield
    finally:
        for variable, value in saved:
            if variable.numpy().tobytes() != value.tobytes():
                variable.assign(value)
        for layer, attributes, losses in layers:
            for name in vars(layer).keys() - attributes.keys():
                del vars(layer)[name]
            vars(layer).update(attributes)
            layer._losses[:] = losses


@contextlib.contextmanager
def _temporary_file(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new name beside `target`; whatever is left under it is removed at the end, also after Ctrl-C."""
    file = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _write(file: pathlib.Path, content: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())  # the later rename must not outrun the content
