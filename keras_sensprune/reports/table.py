"""Records -> tables of text and Markdown, in the shape of the tables that papers on pruning print."""

from __future__ import annotations

import math
from collections.abc import Sequence

from keras_sensprune.records import LayerRecord, SparsityReport

_HEAD = ("layer", "kind", "shape", "weights", "nonzero", "% left", "dead units")
_LEFT_ALIGNED = 3  # so many columns of words come before those of numbers
_PATH_WIDTH = 40


def report_text(report: SparsityReport) -> str:
    """The report as an aligned table for a terminal.

    One row per layer, then the totals, then the two compression ratios: total / nonzero of the weights alone (as
    most published rows count it) and of weights and biases. "dead units" are the units all of whose incoming
    weights are zero, of all units. A layer without weights (normalization) has "-" there. Paths of more than 40
    characters lose their middle.

    Args:
        report: what `sparsity_report` returned, or the same read from JSON.

    Returns:
        Lines without a trailing newline.

    Raises:
        Nothing: every report has a table.

    Example:
        >>> from keras_sensprune.records import LayerRecord, SparsityReport
        >>> layer = LayerRecord("fc", "Dense", (2, 3), 6, 2, 3, 1, units=3, dead_units=1, regularized=True)
        >>> print(report_text(SparsityReport("net", (layer,))))
        Model: net
        layer             kind   shape  weights  nonzero  % left  dead units
        --------------------------------------------------------------------
        fc                Dense  2x3          6        2   33.33         1/3
        --------------------------------------------------------------------
        weights                               6        2   33.33
        weights + biases                      9        3   33.33
        compression: 3.00x (weights), 3.00x (weights + biases)
    """
    if not report.layers:
        return f"Model: {_one_line(report.model)}\nNo layer has weights."
    layers = [_layer_cells(layer, _shortened(_one_line(layer.path))) for layer in report.layers]
    totals = _total_cells(report)
    widths = [max(map(len, column)) for column in zip(_HEAD, *layers, *totals, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [f"Model: {_one_line(report.model)}", _aligned(_HEAD, widths), rule]
    lines += [_aligned(cells, widths) for cells in layers]
    lines += [rule, *(_aligned(cells, widths) for cells in totals), _compressions(report)]
    return "\n".join(lines)


def report_markdown(report: SparsityReport) -> str:
    """The report as a Markdown table, the same columns and totals as `report_text`; paths are never shortened.

    Args:
        report: what `sparsity_report` returned, or the same read from JSON.

    Returns:
        Lines without a trailing newline. Pipes in paths are escaped.

    Raises:
        Nothing: every report has a table.

    Example:
        >>> from keras_sensprune.records import LayerRecord, SparsityReport
        >>> layer = LayerRecord("a|b", "Dense", (2, 3), 6, 2, 3, 1, units=3, dead_units=1, regularized=True)
        >>> print(report_markdown(SparsityReport("net", (layer,))))
        **Model: net**
        <BLANKLINE>
        | layer | kind | shape | weights | nonzero | % left | dead units |
        |---|---|---|--:|--:|--:|--:|
        | a\\|b | Dense | 2x3 | 6 | 2 | 33.33 | 1/3 |
        | weights |  |  | 6 | 2 | 33.33 |  |
        | weights + biases |  |  | 9 | 3 | 33.33 |  |
        <BLANKLINE>
        compression: 3.00x (weights), 3.00x (weights + biases)
    """
    title = f"**Model: {_one_line(report.model)}**"
    if not report.layers:
        return f"{title}\n\nNo layer has weights."
    rows = [_layer_cells(layer, _one_line(layer.path)) for layer in report.layers] + _total_cells(report)
    alignment = "|" + "---|" * _LEFT_ALIGNED + "--:|" * (len(_HEAD) - _LEFT_ALIGNED)
    table = [_markdown_row(_HEAD), alignment, *map(_markdown_row, rows)]
    return "\n".join([title, "", *table, "", _compressions(report)])


def _layer_cells(layer: LayerRecord, path: str) -> tuple[str, ...]:
    share, dead = (f"{layer.percent_left:.2f}", f"{layer.dead_units}/{layer.units}") if layer.weights else ("-", "-")
    shape = "x".join(map(str, layer.shape))
    return path, layer.kind, shape, f"{layer.weights:,}", f"{layer.nonzero_weights:,}", share, dead


def _total_cells(report: SparsityReport) -> list[tuple[str, ...]]:
    rows = (
        ("weights", report.weights, report.nonzero_weights, report.compression),
        ("weights + biases", report.parameters, report.nonzero_parameters, report.compression_with_biases),
    )
    return [
        (name, "", "", f"{total:,}", f"{nonzero:,}", f"{100.0 / compression:.2f}" if total else "-", "")
        for name, total, nonzero, compression in rows
    ]


def _compressions(report: SparsityReport) -> str:
    weights, parameters = (
        "inf" if math.isinf(ratio) else f"{ratio:,.2f}x"
        for ratio in (report.compression, report.compression_with_biases)
    )
    return f"compression: {weights} (weights), {parameters} (weights + biases)"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if column < _LEFT_ALIGNED else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _one_line(name: str) -> str:
    # A name is the user's: a line break in it must not break the table.
    return " ".join(name.split())


def _shortened(path: str) -> str:
    if len(path) <= _PATH_WIDTH:
        return path
    kept = _PATH_WIDTH - 3
    return path[: kept // 2] + "..." + path[-(kept - kept // 2) :]
