"""Keras model -> dense `.tflite` bytes, and the model's inputs and outputs under the names of the file.

The model is traced as it is, into a signature whose names we choose, so that inputs and outputs of the file are
matched by name. Recurrent layers convert only with a known batch size: such a model is traced with a batch of 1.
Operations outside of the TFLite set ("Flex") are never allowed: the LiteRT interpreter could not run them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import keyword
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sensprune.errors import ExportError, ModelError, argument_error
from keras_sensprune.export import int8

DEFAULT_EXAMPLES = 16
EVALUATION_BATCH = 64  # examples that Keras gets at once, where the model leaves the batch free
_RESERVED = ("self", "cls", "args", "kwargs")  # names of a signature become those of a Python function's parameters
_DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """How a model takes its inputs, and what the file calls them.

    Attributes:
        structure: the nested structure in which the model wants them.
        names: one name per leaf of the structure.
        shapes: their shapes, None where a size is free; the first is the batch.
        dtypes: their dtypes.
        batch: the batch size that is fixed in the file; None if it is free.
    """

    structure: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    batch: int | None

    def pack(self, leaves: Any) -> Any:
        """The leaves in the structure of the model."""
        return keras.tree.pack_sequence_as(self.structure, list(leaves))


def model_inputs(model: keras.Model, data: Any) -> ModelInputs:
    """Describe the inputs of `model`; those of a subclassed model are read off `data`.

    Args:
        model: a built Keras model.
        data: what the user gave as example inputs, or None.

    Returns:
        The description.

    Raises:
        ArgumentError: if the model has no symbolic inputs and there is no data.
        ModelError: if an input has a type that a `.tflite` file cannot take.
    """
    if isinstance(model, keras.Sequential):
        structure = model.inputs[0]
    elif getattr(model, "inputs", None):
        structure = model.input
    elif data is None:
        allowed = "given for a model that is neither Sequential nor functional"
        raise argument_error("data", allowed, data, "Pass a few example inputs, as for `model.predict`.")
    else:
        structure = keras.tree.map_structure(_free_batch, data)
    leaves = keras.tree.flatten(structure)
    shapes = tuple(tuple(leaf.shape) for leaf in leaves)
    dtypes = tuple(str(leaf.dtype) for leaf in leaves)
    for dtype in dtypes:
        if dtype not in _DTYPES:
            raise ModelError(f"The model has an input of type {dtype}; a .tflite file takes {', '.join(_DTYPES)}.")
    sizes = {shape[0] for shape in shapes if shape[0] is not None}
    batch = min(sizes) if sizes else (1 if _needs_fixed_batch(model) else None)
    return ModelInputs(structure, _names([leaf.name for leaf in leaves]), shapes, dtypes, batch)


def example_arrays(inputs: ModelInputs, data: Any, argument: str = "data") -> dict[str, np.ndarray]:
    """The user's `data`, checked, or seeded random examples: one array per input, by name.

    Args:
        inputs: description of the model's inputs.
        data: an array, or a list or dictionary of arrays; None for random examples.
        argument: what the user calls it, for the error messages.

    Returns:
        Arrays (examples, ...) in the dtype of the input.

    Raises:
        ArgumentError: if `data` does not fit the inputs, or is needed and not given.
    """
    if data is None:
        return _random_arrays(inputs)
    wanted = ", ".join(f"{n} {s}" for n, s in zip(inputs.names, inputs.shapes, strict=True))
    allowed = f"example inputs of the shapes {wanted}"
    arrays = []
    leaves = _data_leaves(inputs, data, allowed, argument)
    for leaf, shape, dtype in zip(leaves, inputs.shapes, inputs.dtypes, strict=True):
        array = np.asarray(leaf)
        free = array.ndim == len(shape) and all(a == b for a, b in zip(array.shape[1:], shape[1:], strict=True) if b)
        if not free or array.dtype.kind not in "fiub":
            raise argument_error(argument, allowed, f"{array.dtype} array of shape {array.shape}")
        if not np.all(np.isfinite(array)):
            raise argument_error(argument, "finite", f"{array.dtype} array with NaN or infinity")
        arrays.append(array.astype(dtype))
    counts = sorted({len(array) for array in arrays})
    multiple = inputs.batch or 1
    if len(counts) != 1 or counts[0] < 1 or counts[0] % multiple:
        batches = f" that fill batches of {multiple}" if multiple > 1 else ""
        raise argument_error(argument, f"one or more examples{batches}, as many for every input", counts)
    return dict(zip(inputs.names, arrays, strict=True))


def keras_outputs(model: keras.Model, inputs: ModelInputs, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `model(x, training=False)` answers, by the output names of the file.

    Args:
        model: the Keras model.
        inputs: description of its inputs.
        arrays: examples by input name.

    Returns:
        Arrays (examples, ...) by output name.

    Raises:
        ExportError: if an output has no batch dimension.
    """
    size = next((shape[0] for shape in inputs.shapes if shape[0]), EVALUATION_BATCH)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(arrays[inputs.names[0]]), size):
        chunk = [keras.ops.convert_to_tensor(arrays[name][start : start + size]) for name in inputs.names]
        for name, value in _named(model(inputs.pack(chunk), training=False)).items():
            parts.setdefault(name, []).append(keras.ops.convert_to_numpy(value))
    for name, values in parts.items():
        if not values[0].ndim:
            raise ExportError(f"Output {name!r} of the model is a single number, not one answer per example.")
    return {name: np.concatenate(values) for name, values in parts.items()}


def convert_dense(
    model: keras.Model,
    inputs: ModelInputs,
    quantize: str = "float32",
    representative: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """The model as a dense `.tflite` file.

    Args:
        model: the Keras model; it is only traced.
        inputs: description of its inputs.
        quantize: "float32"; "float16" (weights); "dynamic" (int8 weights, float activations); "int8" (weights and
            activations; inputs and outputs stay float32).
        representative: for "int8", arrays (examples, ...) by input name, from which the ranges of the activations
            are taken.

    Returns:
        The bytes of the file.

    Raises:
        ExportError: if it cannot be converted, with the reason. The conversion to int8 runs in a process of its own,
            because it can end the process (seen for every recurrent network).
    """
    described = zip(inputs.names, inputs.shapes, inputs.dtypes, strict=True)
    specs = [tf.TensorSpec((inputs.batch, *shape[1:]), dtype, name=name) for name, shape, dtype in described]
    archive = keras.export.ExportArchive()
    try:
        with tempfile.TemporaryDirectory(prefix="sensprune-") as folder:
            with _quiet():
                serve = lambda *leaves: _named(model(inputs.pack(leaves), training=False))  # noqa: E731
                archive.add_endpoint("serve", serve, input_signature=specs)
                archive.write_out(os.path.join(folder, "model"), verbose=False)
            if quantize == "int8":
                assert representative is not None
                return int8.convert_in_child(folder, representative, inputs.batch or 1)
            with _quiet():
                return bytes(_converter(os.path.join(folder, "model"), quantize).convert())
    except ExportError as error:
        raise ExportError(f"The model {model.name!r} could not be converted to TFLite. {error}") from error
    except Exception as error:  # the converter raises many types; whatever it is, there is no file
        raise ExportError(_conversion_failure(model, str(error) or type(error).__name__)) from error


def _converter(folder: str, quantize: str) -> Any:
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if quantize != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter


def _conversion_failure(model: keras.Model, text: str) -> str:
    """One sentence from the pages that the converter writes, and what may help."""
    unknown = sorted(set(re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", text)))
    reason = f"LiteRT cannot run these operations: {', '.join(unknown)}" if unknown else text.split("\n")[0][:300]
    dtypes = sorted({layer.compute_dtype for layer in model._flatten_layers()} - {"float32"})
    remedy = f" The model computes in {dtypes[0]}; copy its weights to the same model in float32." if dtypes else ""
    return f"The model {model.name!r} could not be converted to TFLite. {reason.rstrip('. ')}.{remedy}"


def _free_batch(leaf: Any) -> keras.KerasTensor:
    array = np.asarray(leaf)
    return keras.KerasTensor((None, *array.shape[1:]), "float32" if array.dtype.kind == "f" else array.dtype.name)


def _names(labels: list[str]) -> tuple[str, ...]:
    """Labels as names that a signature accepts, or numbered names: for reserved ones, or for all if two are equal."""
    names = [re.sub(r"\W", "_", label, flags=re.ASCII) for label in labels]
    for i, name in enumerate(names):
        if not name.strip("_") or name in _RESERVED or keyword.iskeyword(name):
            names[i] = f"input_{i}"
    return tuple(names) if len(set(names)) == len(names) else tuple(f"input_{i}" for i in range(len(labels)))


def _named(outputs: Any) -> dict[str, Any]:
    """Outputs by name: the keys of a dictionary of outputs, else output_0, output_1, ... in the order of the model."""
    leaves = keras.tree.flatten(outputs)
    flat = isinstance(outputs, dict) and len(leaves) == len(outputs)
    if flat and all(isinstance(key, str) and key.isidentifier() and key.isascii() for key in outputs):
        return dict(outputs)
    return {f"output_{i}": value for i, value in enumerate(leaves)}


def _needs_fixed_batch(model: keras.Model) -> bool:
    """Whether a recurrent layer that loops is anywhere in the model, also inside a wrapper or a nested model."""
    layers = model._flatten_layers()
    return any(isinstance(layer, keras.layers.RNN) and not getattr(layer, "unroll", False) for layer in layers)


def _data_leaves(inputs: ModelInputs, data: Any, allowed: str, argument: str) -> list[Any]:
    """The arrays of `data` in the order of the inputs; a dictionary may also go by input names."""
    if isinstance(data, dict) and not isinstance(inputs.structure, dict) and set(data) == set(inputs.names):
        return [data[name] for name in inputs.names]
    same_keys = set(data) == set(inputs.structure) if isinstance(inputs.structure, dict) else not isinstance(data, dict)
    leaves = keras.tree.flatten(data) if same_keys else []
    if len(leaves) != len(inputs.names):
        raise argument_error(argument, allowed, data)
    return leaves


def _random_arrays(inputs: ModelInputs) -> dict[str, np.ndarray]:
    """16 seeded examples (or enough for one fixed batch): normal for floats, 0 and 1 for integers."""
    generator = np.random.default_rng(0)
    count = DEFAULT_EXAMPLES if inputs.batch is None else inputs.batch * -(-DEFAULT_EXAMPLES // inputs.batch)
    arrays = {}
    for name, shape, dtype in zip(inputs.names, inputs.shapes, inputs.dtypes, strict=True):
        if None in shape[1:]:
            allowed = f"given, because input {name!r} has the shape {shape}, in which more than the batch is free"
            raise argument_error("data", allowed, None, "Pass a few example inputs, as for `model.predict`.")
        size = [count, *(size for size in shape[1:] if size is not None)]
        values = generator.normal(size=size) if dtype.startswith("float") else generator.integers(0, 2, size)
        arrays[name] = values.astype(dtype)
    return arrays


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what this process prints, C++ log lines included, to nowhere; restored also after an exception.

    So are the handlers of the root logger: one that is made inside would write to the closed sink for ever.
    """
    handlers = logging.root.handlers[:]
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        try:
            for number, _ in saved:
                os.dup2(sink.fileno(), number)
            yield
        finally:
            logging.root.handlers[:] = handlers
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
