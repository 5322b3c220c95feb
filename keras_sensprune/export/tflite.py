"""`export_tflite`: a Keras model as a small `.tflite` file that was run and compared before it got its name."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np

from keras_sensprune.errors import (
    BackendError,
    ExportError,
    ModelError,
    argument_error,
    choice_argument,
    number_argument,
)
from keras_sensprune.export import convert, verify, writing
from keras_sensprune.export.packing import BLOCKS
from keras_sensprune.records import ExportRecord
from keras_sensprune.untouched import model_untouched

COMPARED = 256  # representative examples that the file is compared on, where `data` is not given


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    quantize: str | None = None,
    representative_data: Any = None,
    sparse: str | bool = "auto",
    target: str = "size",
    measure: str = "raw",
    clusters: int | None = None,
    data: Any = None,
    labels: Any = None,
    overwrite: bool = False,
    tolerance: float | None = None,
    runtimes: tuple[str, ...] = ("litert", "tflite"),
) -> ExportRecord:
    """Write `model` as a `.tflite` file, sparse where that pays, and check it against Keras.

    The model is converted dense and quantized as asked; the sparse encodings are then written by us, weight by weight,
    and only those that were seen to run and agree (`keras_sensprune.export.allowed`): Dense layers (and the loops of
    LSTM, GRU and SimpleRNN) as CSR or in blocks, which have native kernels; convolutions as CSR that is expanded when
    the file is loaded, which saves bytes only. The file is run in LiteRT and in tf.lite, in processes of their own,
    with the default delegate and without: the dense file is compared with `model(x, training=False)`, the sparse one
    with the dense one. Only then does it get its name; before, and after any failure, nothing is at `path` that was
    not there.

    A sparse file that fails the check is replaced by the dense one, with a warning that says why. A model with
    recurrent layers gets a fixed batch of 1, unless its inputs have a batch size. Operations outside of the TFLite set
    ("Flex") are never written.

    Args:
        model: a built Keras model on the TensorFlow backend. It is not changed.
        path: the file to write, in an existing folder.
        quantize: None for float32; "float16" for the weights (half the bytes, computed in float32); "dynamic" for int8
            weights and float activations; "int8" for int8 weights and activations (inputs and outputs stay float32).
            Zeros stay exactly zero in all of them.
        representative_data: for "int8", example inputs as for `model.predict` (a hundred or more that look like real
            ones): the ranges of the activations are taken from them.
        sparse: "auto" chooses per weight; False leaves all weights dense. "csr", "1x4", "1x16" (dense layers) or
            "csr + densify" (convolutions) ask for one encoding for all weights with zeros, or an error that says why
            not.
        target: what "auto" looks for: "size" (the fewest bytes) or "latency" (what runs faster here, measured; a weight
            that brings no time stays dense).
        measure: which bytes count for "size": "raw", or "gzip" for files that are sent or stored compressed.
        clusters: replace the nonzero weights of each tensor by so many values (2 to 256; 8 to 16 cost little
            accuracy), which makes the gzipped file much smaller; float32 only.
        data: example inputs to compare on, as for `model.predict`: an array, or a list or dictionary of arrays,
            each (examples, ...). By default the first 256 of `representative_data`, where that is given; else 16
            seeded random examples: normal for floats, 0 and 1 for integers. Needed for subclassed models and for inputs
            with a free size beside the batch.
        labels: class numbers (examples,) of `data`; then the record holds the errors of model and file, in percent.
        overwrite: whether a file that exists may be replaced.
        tolerance: largest absolute difference allowed between file and model. By default, for each output of a float32
            file, 1e-4 times its largest absolute value plus 1e-5 (or 2 % of that value, if that is less), and 0 for
            integer outputs. For the other formats the root mean square of the difference may be 1 % (float16), 10 %
            (dynamic), 20 % (int8) of that of the output: enough to tell rounding from garbage, so look at the errors
            too. What clusters lose is in the record, and limited only by a tolerance that you set.
        runtimes: "litert", "tflite" or both: which runtimes must agree. tf.lite costs some seconds.

    Returns:
        An `ExportRecord`: bytes raw and gzipped, the tensors and how each is stored, what was tried, differences.

    Raises:
        ArgumentError: if an argument is not allowed, or the file exists and `overwrite` is False.
        ModelError: if the model is not built or has inputs that a `.tflite` file cannot take.
        BackendError: if Keras does not run on TensorFlow.
        ExportError: if a weight is not finite, the model cannot be converted (full int8 of a recurrent model ends the
            converter's process; ours lives on), or the file does not load, crashes, answers NaN, or differs from the
            model by more than the tolerance.

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
    options = _options(quantize, sparse, target, measure, clusters, tolerance, runtimes, overwrite)
    writing.checked_target(path, overwrite)
    _check_model(model)
    inputs = convert.model_inputs(model, representative_data if data is None else data)
    representative = _representative(inputs, options.quantize, representative_data)
    arrays = _compared(inputs, data, representative)
    wanted = _labels(labels, data, len(arrays[inputs.names[0]]))
    with model_untouched(model):
        dense = convert.convert_dense(model, inputs, options.quantize, representative)
        expected = convert.keras_outputs(model, inputs, arrays)
    first = next(iter(expected.values()))
    if wanted is not None and (first.ndim != 2 or first.shape[1] < 2):
        raise argument_error("labels", "None for a model whose first output is not (examples, classes)", first.shape)
    return writing.write_checked(dense, path, writing.Examples(arrays, expected, inputs.batch, wanted), options)


def _options(
    quantize: Any, sparse: Any, target: Any, measure: Any, clusters: Any, tolerance: Any, runtimes: Any, overwrite: Any
) -> writing.Options:
    if quantize is not None:
        choice_argument("quantize", quantize, ("float16", "dynamic", "int8"))
    if sparse is not False:
        choice_argument("sparse", sparse, ("auto", *BLOCKS))
    choice_argument("target", target, ("size", "latency"))
    choice_argument("measure", measure, ("raw", "gzip"))
    if clusters is not None:
        if not isinstance(clusters, int) or isinstance(clusters, bool) or not 2 <= clusters <= 256:
            raise argument_error("clusters", "an integer from 2 to 256, or None", clusters)
        if quantize is not None:
            remedy = "Weights of other formats have few values anyway."
            raise argument_error("clusters", "None unless quantize=None", clusters, remedy)
    if tolerance is not None:
        tolerance = number_argument("tolerance", tolerance, "a number of at least 0, or None")
    known = tuple(verify.RUNTIMES)
    if not isinstance(runtimes, (tuple, list)) or not runtimes or not set(runtimes) <= set(known):
        raise argument_error("runtimes", f"a tuple of one or more of {', '.join(map(repr, known))}", runtimes)
    return writing.Options(
        quantize or "float32", sparse or "none", target, measure, clusters, tolerance, tuple(runtimes), overwrite
    )


def _representative(inputs: convert.ModelInputs, quantize: str, data: Any) -> dict[str, np.ndarray] | None:
    if quantize != "int8":
        if data is not None:
            raise argument_error("representative_data", "None unless quantize='int8'", data)
        return None
    if data is None:
        remedy = "Pass a hundred or more inputs that look like real ones, as for `model.predict`."
        raise argument_error("representative_data", "given for quantize='int8'", data, remedy)
    return convert.example_arrays(inputs, data, "representative_data")


def _compared(
    inputs: convert.ModelInputs, data: Any, representative: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """The examples to compare on. Ranges of int8 say nothing about inputs that look different."""
    if data is not None or representative is None:
        return convert.example_arrays(inputs, data)
    batch = inputs.batch or 1
    return {name: value[: max(COMPARED // batch, 1) * batch] for name, value in representative.items()}


def _labels(labels: Any, data: Any, examples: int) -> np.ndarray | None:
    if labels is None:
        return None
    array = np.asarray(labels)
    if data is None or array.shape != (examples,) or array.dtype.kind not in "iu":
        allowed = f"{examples} class numbers, one per example of `data`, or None"
        raise argument_error("labels", allowed, f"{array.dtype} array of shape {array.shape}")
    return array


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
