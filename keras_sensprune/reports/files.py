"""Records -> text for a terminal: what a `.tflite` file holds, what was exported, compacted, measured, searched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_sensprune.errors import argument_error
from keras_sensprune.records import (
    CompactionRecord,
    CrossValidationRecord,
    ExportRecord,
    SearchRecord,
    SparsifyRecord,
    SparsityReport,
    TrainRecord,
)
from keras_sensprune.records.inspection import SparseInferenceRecord, TfliteRecord
from keras_sensprune.records.latency import LatencyRecord
from keras_sensprune.reports.columns import aligned
from keras_sensprune.reports.phases import sparsify_text, train_text
from keras_sensprune.reports.search_text import cross_validation_text, search_text
from keras_sensprune.reports.table import report_text


def record_text(record: Any) -> str:
    """Any record of a model, a file or a search as text.

    Args:
        record: a `SparsityReport`, `TfliteRecord`, `ExportRecord`, `CompactionRecord`, `LatencyRecord`,
            `SparseInferenceRecord`, `SparsifyRecord`, `TrainRecord`, `CrossValidationRecord` or `SearchRecord`, also
            one read from JSON.

    Returns:
        Lines without a trailing newline.

    Raises:
        ArgumentError: for anything else.

    Example:
        >>> from keras_sensprune import record_text
        >>> from keras_sensprune.records import LayerRecord, SparsityReport
        >>> layer = LayerRecord("fc", "Dense", (2, 3), 6, 2, 3, 1, units=3, dead_units=1, regularized=True)
        >>> record_text(SparsityReport("net", (layer,))).splitlines()[0]
        'Model: net'
    """
    for kind, text in _TEXTS.items():
        if isinstance(record, kind):
            return text(record)
    names = ", ".join(kind.__name__ for kind in _TEXTS)
    raise argument_error("record", f"one of {names}", record)


def _tflite(record: TfliteRecord) -> str:
    rows = [
        (
            _cut(t.name),
            t.dtype,
            "x".join(map(str, t.shape)) or "scalar",
            t.encoding,
            _share(t),
            str(t.bytes),
            t.execution,
        )
        for t in record.tensors
    ]
    head = ("constant", "type", "shape", "stored", "zeros", "bytes", "runs")
    operations = ", ".join(f"{o.count} {o.name}" for o in record.operators)
    lines = [f"File: {record.path}, {_size(record.bytes)} ({_size(record.gzip_bytes)} gzipped)", f"Runs: {operations}"]
    return "\n".join([*lines, *aligned(head, rows, right=(4, 5)), *(f"warning: {text}" for text in record.warnings)])


def _export(record: ExportRecord) -> str:
    smaller = f"{record.dense_bytes / record.bytes:.1f}x smaller than dense"
    lines = [
        f"{record.path}: {_size(record.bytes)} ({_size(record.gzip_bytes)} gzipped), {record.quantize}, "
        f"{record.encoding}, {smaller}; the weights hold {_size(record.information_bytes)} of information"
    ]
    rows = [
        (_cut(t.name), t.dtype, "x".join(map(str, t.shape)), t.encoding, str(t.zeros), str(t.bytes))
        for t in record.tensors
    ]
    lines += aligned(("weight", "type", "shape", "stored", "zeros", "bytes"), rows, right=(4, 5))
    lines.append(
        f"run in {'; '.join(record.runs)} on {record.examples} examples: largest difference from Keras "
        f"{record.max_difference:.2g} of {record.largest_output:.3g}"
    )
    if record.error is not None:
        lines.append(f"error {record.error:.2f} %, of the Keras model {record.keras_error:.2f} %")
    return "\n".join(lines)


def _compaction(record: CompactionRecord) -> str:
    rows = [
        (_cut(row.path), row.kind, str(row.units_before), str(row.units_after), str(row.folded))
        for row in record.layers
    ]
    lines = [f"Model: {record.model}", *aligned(("layer", "kind", "units", "left", "folded"), rows, right=(2, 3, 4))]
    for name, before, after in (
        ("parameters", record.parameters_before, record.parameters_after),
        ("multiply-adds", record.multiply_adds_before, record.multiply_adds_after),
    ):
        lines.append(f"{name}: {before:,} -> {after:,}" + (f" ({100 * after / before:.1f} %)" if before else ""))
    lines += [f"stopped by {stop.path} ({stop.kind}): {stop.reason}" for stop in record.stops]
    lines.append(f"largest difference on {record.examples} examples: {record.max_difference:.2g}")
    return "\n".join(lines)


def _latency(record: LatencyRecord) -> str:
    rows = []
    for found in record.results:
        for name, timing in ((record.baseline, found.baseline), (record.candidate, found.candidate)):
            spread = f"{timing.microseconds_low:.1f} to {timing.microseconds_high:.1f}"
            memory = _size(timing.memory_bytes)
            ratio = ""
            if timing is found.candidate:
                ratio = f"{found.ratio:.2f} ({found.ratio_low:.2f} to {found.ratio_high:.2f})"
            load = f"{timing.load_milliseconds:.1f}"
            rows.append((_cut(name), str(found.threads), f"{timing.microseconds:.1f}", spread, load, memory, ratio))
    head = ("file", "threads", "us", "quartiles", "load ms", "memory", "ratio")
    sizes = " -> ".join(
        f"{_size(size)} ({_size(packed)} gzipped)"
        for size, packed in (
            (record.baseline_bytes, record.baseline_gzip_bytes),
            (record.candidate_bytes, record.candidate_gzip_bytes),
        )
    )
    last = f"{record.pairs} interleaved pairs of fresh processes, batch {record.batch}, {record.runtime}"
    return "\n".join([*aligned(head, rows, right=(1, 2, 4, 5)), f"bytes: {sizes}", last])


def _sparse_inference(record: SparseInferenceRecord) -> str:
    verdict = "eligible for sparse inference" if record.eligible else "not eligible for sparse inference"
    lines = [f"File: {record.path}: {verdict}; {record.zeros} of {record.weights} weights of 1x1 convolutions are zero"]
    lines += [f"{o.kind} {o.name}: {o.reason} {o.change}" for o in record.obstacles]
    return "\n".join([*lines, record.note])


_TEXTS: dict[type, Callable[[Any], str]] = {
    SparsityReport: report_text,
    TfliteRecord: _tflite,
    ExportRecord: _export,
    CompactionRecord: _compaction,
    LatencyRecord: _latency,
    SparseInferenceRecord: _sparse_inference,
    SparsifyRecord: sparsify_text,
    TrainRecord: train_text,
    CrossValidationRecord: cross_validation_text,
    SearchRecord: search_text,
}


def _share(tensor: Any) -> str:
    return f"{100 * tensor.zeros / tensor.entries:.1f} %" if tensor.entries else "-"


def _cut(name: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable if len(printable) <= 40 else printable[:18] + "..." + printable[-19:]


def _size(count: int) -> str:
    return f"{count / 1024:,.1f} KiB" if count < 1024**2 else f"{count / 1024**2:,.1f} MiB"
