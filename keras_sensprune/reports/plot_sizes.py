"""Pictures of what a model loses on its way to a file: before and after per layer, and bytes stage by stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from keras_sensprune.errors import argument_error
from keras_sensprune.records import SparsityReport
from keras_sensprune.reports.figure import new_figure, picture_target, shortened, tidy, written

_BEFORE, _NONZERO, _STAGE = "#b8c4d6", "#2a788e", "#414487"


def plot_before_after(
    before: SparsityReport,
    after: SparsityReport,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    *,
    overwrite: bool = False,
) -> Any:
    """Draws the weights of each layer in two states of a model: stored, and nonzero among them.

    Layers are matched by name; a layer that one of the two lacks has no bar there. The scale is logarithmic.

    Args:
        before: report of the first state, for example the dense model.
        after: report of the second, for example pruned and compacted.
        path: the PNG file to write, or None to get the figure. It appears complete or not at all.
        title: headline; None takes the name of the model and the two totals.
        overwrite: whether a file that exists may be replaced.

    Returns:
        The `pathlib.Path` that was written; without `path` a `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: if `path` is no .png, exists already, or its folder does not; or a report has no weights.
        MissingPackageError: if Matplotlib is not installed.

    Example:
        >>> from keras_sensprune.records import LayerRecord, SparsityReport
        >>> dense = LayerRecord("fc", "Dense", (2, 3), 6, 6, 3, 3, units=3, dead_units=0, regularized=True)
        >>> pruned = LayerRecord("fc", "Dense", (2, 3), 6, 2, 3, 1, units=3, dead_units=1, regularized=True)
        >>> figure = plot_before_after(SparsityReport("net", (dense,)), SparsityReport("net", (pruned,)))
        >>> figure.axes[0].get_xlabel()
        'weights (log scale)'
    """
    target = picture_target(path, overwrite)
    for name, report in (("before", before), ("after", after)):
        if not report.weights:
            raise argument_error(name, "a report with at least one layer that has weights", report)
    paths = list(dict.fromkeys(layer.path for report in (before, after) for layer in report.layers if layer.weights))
    figure = new_figure(9.0, max(3.0, 1.4 + 0.6 * len(paths)))
    axes = figure.subplots()
    for offset, report, label in ((-0.2, before, "before"), (0.2, after, "after")):
        layers = {layer.path: layer for layer in report.layers}
        found = [(row + offset, layers[path]) for row, path in enumerate(paths) if path in layers]
        rows = [row for row, _ in found]
        color = _BEFORE if report is before else "#7ad151"
        axes.barh(rows, [layer.weights for _, layer in found], height=0.38, color=color, label=f"{label}: stored")
        nonzero = [layer.nonzero_weights for _, layer in found]
        axes.barh(rows, nonzero, height=0.14, color=_NONZERO, label="nonzero" if report is after else None)
    axes.set_xscale("log")
    axes.set_xlim(left=0.8)
    axes.set_yticks(range(len(paths)), [shortened(path) for path in paths])
    axes.set_ylim(len(paths) - 0.4, -0.6)  # first layer on top
    axes.set_xlabel("weights (log scale)")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(axes, grid_axis="x")
    totals = f"{before.weights:,} weights stored, then {after.weights:,}, {after.nonzero_weights:,} of them nonzero"
    axes.set_title(f"{before.model}: {totals}" if title is None else title)
    return written(figure, target)


def plot_size_waterfall(
    stages: Sequence[tuple[str, int]],
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    *,
    overwrite: bool = False,
) -> Any:
    """Draws bytes stage by stage: dense, pruned, compacted, int8, gzip, or whatever stages there are.

    Args:
        stages: pairs of a label and a size in bytes, in order.
        path: the PNG file to write, or None to get the figure. It appears complete or not at all.
        title: headline; None says how many times smaller the last stage is.
        overwrite: whether a file that exists may be replaced.

    Returns:
        The `pathlib.Path` that was written; without `path` a `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: if there are fewer than two stages, a size is no positive integer, or `path` cannot be written.
        MissingPackageError: if Matplotlib is not installed.

    Example:
        >>> figure = plot_size_waterfall([("dense", 1000), ("pruned", 100)])
        >>> figure.axes[0].get_title()
        '10.0x smaller'
    """
    target = picture_target(path, overwrite)
    sizes = [size for _, size in stages]
    if len(sizes) < 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise argument_error("stages", "two or more pairs of a label and a number of bytes above 0", stages)
    figure = new_figure(max(5.0, 1.5 * len(sizes)), 4.0)
    axes = figure.subplots()
    axes.bar(range(len(sizes)), sizes, color=_STAGE, width=0.6)
    for column, size in enumerate(sizes):
        share = "" if not column else f"\n{100 * size / sizes[0]:.3g} %"
        axes.annotate(_size(size) + share, (column, size), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(sizes)), [label for label, _ in stages])
    axes.set_yscale("log")  # the last stages are often a hundredth of the first
    axes.set_ylim(min(sizes) / 4, 4 * max(sizes))
    axes.set_yticks([])
    axes.minorticks_off()
    axes.set_ylabel("bytes (log scale)")
    tidy(axes, grid_axis="y")
    axes.set_title(f"{sizes[0] / sizes[-1]:.1f}x smaller" if title is None else title)
    return written(figure, target)


def _size(count: int) -> str:
    return f"{count / 1024:,.1f} KiB" if count < 1024**2 else f"{count / 1024**2:,.1f} MiB"
