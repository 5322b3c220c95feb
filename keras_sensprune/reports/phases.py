"""Records of `sparsify` -> a table of its phases, and what was reached."""

from __future__ import annotations

from keras_sensprune.records import PhaseRecord, SparsifyRecord, TrainRecord
from keras_sensprune.reports.table import report_text

_HEAD = ("phase", "epochs", "seconds", "validation", "weights left", "compression", "")


def sparsify_text(record: SparsifyRecord) -> str:
    """The phases as an aligned table, and what was reached.

    Args:
        record: what `sparsify` returned, or the same read from JSON.

    Returns:
        Lines without a trailing newline.

    Raises:
        Nothing: every record has a table.

    Example:
        >>> from keras_sensprune import Budget
        >>> from keras_sensprune.records import PhaseRecord, SparsifyRecord
        >>> dense = PhaseRecord("dense", 20, 40.0, 1.5, 400, 400, True)
        >>> pruned = PhaseRecord("round 1", 4, 10.0, 1.6, 100, 400, True)
        >>> stopped = "there is no time for another round"
        >>> record = SparsifyRecord(Budget(0.2), "accuracy", True, "as given", (dense, pruned), stopped, ())
        >>> print(sparsify_text(record))
        phase    epochs  seconds  validation  weights left  compression
        ---------------------------------------------------------------
        dense        20     40.0      1.50 %           400        1.00x
        round 1       4     10.0      1.60 %           100        4.00x
        ---------------------------------------------------------------
        75.0 % sparse; validation error 1.60 %, of the dense network 1.50 % (validation data: as given)
        no further round: there is no time for another round
        all that followed added 25 % of the dense training time
    """
    rows = [_HEAD, *(_cells(record, phase) for phase in record.phases)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_aligned(row, widths) for row in rows]
    rule = "-" * max(map(len, lines))
    error, dense = _error(record, record.error), _error(record, record.dense_error)
    lines = [lines[0], rule, *lines[1:], rule]
    lines.append(
        f"{100 * record.sparsity:.1f} % sparse; validation {_quantity(record)} {error}, of the dense network {dense} "
        f"(validation data: {record.validation})"
    )
    lines.append(f"no further round: {record.stopped}")
    if record.added is not None:
        lines.append(f"all that followed added {100 * record.added:.0f} % of the dense training time")
    if record.unmet:
        lines.append(f"not met: {', '.join(record.unmet)}")
    return "\n".join(lines)


def train_text(record: TrainRecord) -> str:
    """Everything that a run of a recipe gave: layers, phases, test error, exported file."""
    export = record.export
    return "\n".join(
        [
            report_text(record.report),
            "",
            sparsify_text(record.result),
            f"test error {record.error:.2f} %; data: {record.data}",
            f"{export.path}: {export.bytes / 1024:.1f} KiB ({export.gzip_bytes / 1024:.1f} KiB gzipped), "
            f"{export.encoding}; run back in {' and '.join(export.runs)} on {export.examples} examples",
        ]
    )


def _cells(record: SparsifyRecord, phase: PhaseRecord) -> tuple[str, ...]:
    return (
        phase.name,
        str(phase.epochs),
        f"{phase.seconds:.1f}",
        _error(record, phase.error),
        f"{phase.nonzero:,}",
        f"{phase.compression:,.2f}x",
        "" if phase.accepted else "not kept",
    )


def _error(record: SparsifyRecord, value: float | None) -> str:
    if value is None:
        return "diverged"
    return f"{value:.2f} %" if record.percent else f"{value:.4g}"


def _quantity(record: SparsifyRecord) -> str:
    return "error" if record.percent else record.metric


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    words = (0, len(widths) - 1)  # columns of words; the others are numbers
    padded = [
        cell.ljust(width) if column in words else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
