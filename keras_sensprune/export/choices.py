"""Which weight of a file gets which encoding: by bytes raw, by bytes gzipped, or by time."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_sensprune.errors import ExportError
from keras_sensprune.export.allowed import check_allowed, encodings_for
from keras_sensprune.export.packing import encode, encoded_bytes, stored_bytes
from keras_sensprune.export.sites import Site, sparse_sites

FASTER = 0.97  # a sparse weight must bring the whole file below this share of its time, or it stays dense


def forced(data: bytes, encoding: str, quantize: str) -> dict[int, str]:
    """The one encoding for every weight of the kind that it is for and that has zeros.

    Args:
        data: a dense `.tflite` file.
        encoding: "csr + densify" for convolutions and for float16, others for dense layers.
        quantize: number format of the file; small layers that the converter left in float32 are passed over.

    Raises:
        ExportError: if a weight cannot have it, with the reason and the alternative, or there is no such weight.
    """
    model = schema.ModelT.InitFromPackedBuf(data)
    expands = encoding == "csr + densify"
    chosen = {}
    for site in sparse_sites(model):
        values = site.values(model)
        meant = (site.structure != "dense layer") == expands or (expands and site.dtype == "float16")
        if meant and site.dtype == quantize and not np.all(values):
            check_allowed(site.dtype, site.structure, encoding, site.shape, values)
            chosen[site.buffer] = encoding
    if not chosen:
        kind = "layer" if expands and quantize == "float16" else "convolution" if expands else "dense layer"
        of = "" if quantize == "float32" else f" in {quantize} format"
        raise ExportError(f"No {kind} of the model{of} has zeros that could be stored as {encoding!r}.")
    return chosen


def smallest(data: bytes, gzipped: bool) -> dict[int, str]:
    """Encoding by buffer, for the weights that get smaller by one.

    Args:
        data: a dense `.tflite` file.
        gzipped: whether what counts is the size after compression (of each weight by itself).
    """
    model = schema.ModelT.InitFromPackedBuf(data)
    chosen = {}
    for site in sparse_sites(model):
        values = site.values(model)

        def size(encoding: str, values: np.ndarray = values, site: Site = site) -> int:
            if gzipped:
                return len(zlib.compress(stored_bytes(values, encoding), 6))
            return encoded_bytes(values, encoding, len(site.keys))

        allowed = encodings_for(site.dtype, site.structure, site.shape, values)
        best = min(("dense", *allowed), key=size)
        if best != "dense":
            chosen[site.buffer] = best
    return chosen


def fastest(data: bytes, ratio: Callable[[bytes, bytes], float]) -> dict[int, str]:
    """Encoding by buffer, for the dense layers that run faster by one; what brings no time stays dense.

    Args:
        data: a dense `.tflite` file.
        ratio: (file a, file b) -> time of b / time of a on this machine.

    Returns:
        The choices, found layer by layer from the largest on, each kept only if the file as a whole gets faster.
    """
    model = schema.ModelT.InitFromPackedBuf(data)
    chosen: dict[int, str] = {}
    current = data
    for site in sorted(sparse_sites(model), key=lambda site: -site.values(model).nbytes):
        best, values = FASTER, site.values(model)
        for encoding in encodings_for(site.dtype, site.structure, site.shape, values):
            if encoding.endswith("densify") or np.count_nonzero(values) > 0.6 * values.size:
                continue  # expanded weights run dense; kernels for sparse ones lose below some 70 % of zeros
            tried = encode(data, {**chosen, site.buffer: encoding})
            share = ratio(current, tried)
            if share < best:
                best, faster, kept = share, tried, encoding
        if best < FASTER:
            chosen[site.buffer], current = kept, faster
    return chosen
