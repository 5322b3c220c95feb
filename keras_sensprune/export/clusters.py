"""Clustered weights in a dense float32 file: fewer different values, which gzip makes small."""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from keras_sensprune.export.flatbuffer import float_buffers
from keras_sensprune.formulas.clustering import cluster_nonzeros

SMALLEST = 256  # entries: biases and small kernels are left alone, there is nothing to gain


def clustered(data: bytes, clusters: int) -> bytes:
    """`data` with the nonzero weights of every float32 matrix or kernel rounded to a few values per tensor.

    Args:
        data: a dense `.tflite` file.
        clusters: values per tensor.

    Returns:
        A file of the same length.
    """
    buffer = bytearray(data)
    model = schema.Model.GetRootAs(buffer)
    ranks = [
        (model.Subgraphs(s).Tensors(t).Buffer(), model.Subgraphs(s).Tensors(t).ShapeLength())
        for s in range(model.SubgraphsLength())
        for t in range(model.Subgraphs(s).TensorsLength())
    ]
    matrices = {index for index, rank in ranks if rank >= 2}
    for index, kind in float_buffers(model).items():
        values = model.Buffers(index).DataAsNumpy().view(kind)  # a view into `buffer`
        if index in matrices and kind == "<f4" and values.size >= SMALLEST:
            values[:] = cluster_nonzeros(values, clusters)
    return bytes(buffer)
