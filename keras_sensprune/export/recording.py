"""The record of an export: bytes, tensors, information, what was tried, errors."""

from __future__ import annotations

import gzip
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from keras_sensprune.export import flatbuffer
from keras_sensprune.export.verify import Comparison
from keras_sensprune.formulas.counting import information_bits
from keras_sensprune.records import CandidateRecord, ExportRecord, TensorRecord

VALUE_BITS = {"float32": 32, "float16": 16, "int8": 8}


def verdicts(candidates: list[tuple[str, bytes]], written: bytes, failed: str) -> tuple[CandidateRecord, ...]:
    """What was tried, in order, and why it was written or not."""
    records = []
    for name, content in candidates:
        chosen = content is written
        reason = "agrees, and is the best by what was asked" if chosen else "another one is better by what was asked"
        if failed and name != "dense":
            reason = f"does not agree: {failed}"
        records.append(CandidateRecord(name, len(content), gzip_size(content), chosen, reason))
    return tuple(records)


def class_errors(
    comparison: Comparison, expected: Mapping[str, np.ndarray], labels: np.ndarray | None
) -> tuple[float, float] | tuple[None, None]:
    """Percent of wrong classes of model and file (first output, first run), if there are labels."""
    if labels is None:
        return None, None
    name = next(iter(expected))
    file = comparison.answers[comparison.runs[0]][name]
    wrong = [np.argmax(value, axis=-1) != labels for value in (expected[name], file)]
    return round(100.0 * float(np.mean(wrong[0])), 4), round(100.0 * float(np.mean(wrong[1])), 4)


def record_of(
    target: pathlib.Path,
    content: bytes,
    comparison: Comparison,
    quantize: str,
    clusters: int | None,
) -> ExportRecord:
    """The record of a written file; what was tried beside it is added by the caller."""
    tensors = flatbuffer.weight_tensors(content)
    sparse_tensors = sum(tensor.encoding != "dense" for tensor in tensors)
    return ExportRecord(
        path=str(target),
        encoding="sparse" if sparse_tensors else "dense",
        bytes=len(content),
        gzip_bytes=gzip_size(content),
        dense_bytes=len(content),
        tensors=tensors,
        sparse_tensors=sparse_tensors,
        max_difference=comparison.max_difference,
        largest_output=comparison.largest_output,
        tolerance=comparison.tolerance,
        runs=comparison.runs,
        examples=comparison.examples,
        quantize=quantize,
        information_bytes=math.ceil(sum(_information(tensor, clusters) for tensor in tensors) / 8),
    )


def _information(tensor: TensorRecord, clusters: int | None) -> float:
    total = math.prod(tensor.shape)
    bits: float = VALUE_BITS[tensor.dtype]
    if clusters is not None:
        bits = min(bits, math.log2(clusters))
    return information_bits(total, total - tensor.zeros, bits)


def gzip_size(content: bytes) -> int:
    """Bytes after gzip -9."""
    return len(gzip.compress(content, 9, mtime=0))
