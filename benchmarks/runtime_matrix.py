"""What each runtime does with each sparse encoding: the evidence for `keras_sensprune/export/allowed.py`.

    python benchmarks/runtime_matrix.py

One small file per rule (and per broken condition of a rule), run in LiteRT and tf.lite, with the default delegate and
without, each run in a process of its own, against the same weights stored dense. About five minutes. On a new runtime
run it again: `tests/export/test_allowed.py` then says which rules no longer hold.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULT = Path(__file__).parent / "results" / "runtime_matrix.json"
PACKAGES = ("keras", "tensorflow", "ai-edge-litert", "numpy")
MODULES = {"LiteRT": "ai_edge_litert.interpreter", "tf.lite": "tensorflow.lite.python.interpreter"}
RESOLVERS = {"default delegate": "AUTO", "no delegate": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
CHILD = """
import importlib, sys, numpy as np
module, resolver, path, inputs, outputs = sys.argv[1:]
module = importlib.import_module(module)
kind = getattr(module.OpResolverType, resolver)
runner = module.Interpreter(path, experimental_op_resolver_type=kind).get_signature_runner()
x = np.load(inputs)
(name,) = runner.get_input_details()
np.save(outputs, np.concatenate([next(iter(runner(**{name: row[None]}).values())) for row in x]))
"""
# Largest difference from the dense file, of the largest output. Computation in float32 (also with float16 weights) adds
# at most 4,096 products in another order. int8: far above the rounding of activations, far below garbage.
AGREES = {"float32": 1e-4, "float16": 1e-4, "dynamic": 0.05, "int8": 0.05, "int16x8": 0.05}


def dense_layer(inputs: int):
    import keras

    return keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(64, name="weight")])


def convolution():
    import keras

    layers = [keras.layers.Conv2D(64, 3, name="weight"), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((8, 8, 32)), *layers])


def transposed(batch: int | None):
    """The default delegate takes it only if the shape of its result, and so the batch, is fixed."""
    import keras

    layers = [keras.layers.Conv2DTranspose(64, 3, strides=2, name="weight"), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((8, 8, 32), batch_size=batch), *layers])


def network(structure: str, inputs: int, batch: int | None):
    make = {
        "dense layer": lambda: dense_layer(inputs),
        "convolution": convolution,
        "transposed convolution": lambda: transposed(batch),
    }
    return make[structure]()


def sparse_weights(model, block: int, full: bool = False, sparsity: float = 0.9) -> None:
    """Random zeros; of a Dense kernel in blocks of consecutive inputs, and perhaps one unit without any."""
    kernel = model.get_layer("weight").kernel
    value, generator = kernel.numpy(), np.random.default_rng(0)
    rows = value.reshape(-1, value.shape[-1])
    keep = generator.random((-(-len(rows) // block), rows.shape[1])) >= sparsity
    keep[:, -1] |= full
    kernel.assign((rows * np.repeat(keep, block, axis=0)[: len(rows)]).reshape(value.shape))


def files(
    dtype: str, structure: str, encoding: str, inputs: int, full: bool, batch: int | None
) -> tuple[bytes, bytes, np.ndarray]:
    """(dense file, sparse file, inputs) of one cell."""
    from ai_edge_litert import schema_py_generated as schema

    from keras_sensprune.export import convert
    from keras_sensprune.export.packing import BLOCKS, encode
    from keras_sensprune.export.sites import sparse_sites

    model = network(structure, inputs, batch)
    sparse_weights(model, BLOCKS[encoding], full)
    x = np.random.default_rng(1).normal(size=(4, *model.input_shape[1:])).astype("float32")
    if dtype == "int16x8" or (dtype, encoding) == ("float16", "1x4"):  # what only the converter writes sparse
        return with_converter(model, dtype, x, False), with_converter(model, dtype, x, True), x
    described = convert.model_inputs(model, None)
    representative = {described.names[0]: x} if dtype == "int8" else None
    dense = convert.convert_dense(model, described, dtype, representative)
    (site,) = sparse_sites(schema.ModelT.InitFromPackedBuf(dense))
    assert (site.dtype, site.structure) == (dtype, structure)
    return dense, encode(dense, {site.buffer: encoding}), x


def with_converter(model, dtype: str, x: np.ndarray, sparse: bool) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if sparse:
        converter.optimizations.append(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
    if dtype == "float16":
        converter.target_spec.supported_types = [tf.float16]
    else:
        converter.representative_dataset = lambda: ([row[None]] for row in x)
        operations = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [operations]
    return converter.convert()


def run(content: bytes, x: np.ndarray, runtime: str, delegate: str):
    """The answers, or one line that says what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "model.tflite").write_bytes(content)
        np.save(place / "x.npy", x)
        arguments = [MODULES[runtime], RESOLVERS[delegate], place / "model.tflite", place / "x.npy", place / "y.npy"]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-W", "ignore", "-c", CHILD, *map(str, arguments)]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if child.returncode < 0:
            return f"the process is ended by signal {-child.returncode}"
        if child.returncode:
            return "error: " + child.stderr.strip().splitlines()[-1][:160]
        return np.load(place / "y.npy")


def outcome(answer, reference: np.ndarray, agrees: float) -> dict:
    """What came, in words and numbers; the difference is the largest one, of the largest output."""
    if isinstance(answer, str):
        return {"ok": False, "what": answer}
    if not np.all(np.isfinite(answer)):
        return {"ok": False, "what": "NaN or infinity"}
    share = float(np.max(np.abs(answer - reference)) / np.max(np.abs(reference)))
    return {"ok": share <= agrees, "what": "agrees" if share <= agrees else "wrong numbers", "difference": share}


def cells():
    """(rule, inputs, nonempty blocks of the fullest row or 0, batch, whether its conditions hold).

    Every rule, every condition broken once, rows that are as full as they may be, and fixed batches where they matter.
    """
    from keras_sensprune.export.allowed import RULES

    for rule in RULES:
        yield rule, 64, 0, None, True
        if rule.structure == "transposed convolution":
            yield rule, 64, 0, 1, True
        if rule.multiple > 1:
            yield rule, 64 + rule.multiple // 2, 0, None, False
        if rule.largest < 1e9:
            yield rule, int(rule.largest) + rule.multiple, 0, None, False
        if rule.blocks < 1e9:
            yield rule, int(rule.blocks) * rule.multiple, int(rule.blocks), None, True
            yield rule, (int(rule.blocks) + 1) * rule.multiple, int(rule.blocks) + 1, None, False


def measured(rule, inputs: int, full: int, batch: int | None, holds: bool) -> dict:
    """One cell: what it is, and what each of the four runs did."""
    row = {"dtype": rule.dtype, "structure": rule.structure, "encoding": rule.encoding, "inputs": inputs}
    row |= {"conditions hold": holds, "allowed": rule.allowed and holds, "runs": {}}
    row |= ({"fullest row": full} if full else {}) | ({"batch": batch} if batch else {})
    dense, sparse, x = files(rule.dtype, rule.structure, rule.encoding, inputs, bool(full), batch)
    reference = {delegate: run(dense, x, "LiteRT", delegate) for delegate in RESOLVERS}
    if rule.dtype == "int16x8":  # there even the dense file is wrong
        reference = dict.fromkeys(RESOLVERS, model_answers(rule, inputs, x))
    for runtime in MODULES:
        for delegate in RESOLVERS:
            answer = run(sparse, x, runtime, delegate)
            row["runs"][f"{runtime}, {delegate}"] = outcome(answer, reference[delegate], AGREES[rule.dtype])
    return row


def main() -> None:
    import keras

    started, begun, found = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter(), []
    for cell in cells():
        keras.utils.set_random_seed(0)
        found.append(measured(*cell))
        print(*list(found[-1].values())[:4], [run["what"] for run in found[-1]["runs"].values()], flush=True)
    content = {
        "command": "python benchmarks/runtime_matrix.py",
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": platform.machine(),
        "started": started,
        "seconds": round(time.perf_counter() - begun, 1),
        "seed": 0,
        "data": "seeded random weights, 90 % zeros, and inputs",
        "cells": found,
    }
    temporary = RESULT.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, RESULT)


def model_answers(rule, inputs: int, x: np.ndarray) -> np.ndarray:
    """What Keras answers, for formats of which even the dense file is in doubt."""
    import keras

    from keras_sensprune.export.packing import BLOCKS

    keras.utils.set_random_seed(0)
    model = network(rule.structure, inputs, None)
    sparse_weights(model, BLOCKS[rule.encoding])
    return model(x).numpy()


if __name__ == "__main__":
    main()
