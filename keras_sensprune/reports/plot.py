"""Records -> pictures. Matplotlib is imported inside, and its global backend is never touched."""

from __future__ import annotations

import math
import os
from typing import Any

from keras_sensprune.errors import argument_error
from keras_sensprune.records import HISTOGRAM_EDGES, SparsityReport
from keras_sensprune.reports.figure import new_figure, picture_target, shortened, tidy, written

_MOST_IN_LEGEND = 12  # with more layers the colors of the bars have to do


def plot_report(
    report: SparsityReport,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    *,
    overwrite: bool = False,
) -> Any:
    """Draws a report: percent of weights left per layer, and how large the surviving weights are.

    Args:
        report: what `sparsity_report` returned, or the same read from JSON.
        path: the PNG file to write, or None to get the figure. It appears complete or not at all.
        title: headline; None takes the model's name and its compression.
        overwrite: whether a file that exists may be replaced.

    Returns:
        The `pathlib.Path` that was written; without `path` a `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: if `path` is no .png, exists already, or its folder does not; or the report has no layers.
        MissingPackageError: if Matplotlib is not installed.

    Example:
        >>> from keras_sensprune.records import LayerRecord, SparsityReport
        >>> layer = LayerRecord("fc", "Dense", (2, 3), 6, 2, 3, 1, units=3, dead_units=1, regularized=True)
        >>> figure = plot_report(SparsityReport("net", (layer,)))
        >>> [axes.get_title() for axes in figure.axes]
        ['weights left', 'magnitudes of the nonzero weights']
    """
    target = picture_target(path, overwrite)
    if not any(layer.weights for layer in report.layers):
        raise argument_error("report", "a report with at least one layer that has weights", report)
    figure = new_figure(11.0, max(3.2, 1.6 + 0.34 * len(report.layers)))
    bars, lines = figure.subplots(1, 2)
    _draw_bars(bars, report)
    _draw_histograms(lines, report)
    ratio = "" if math.isinf(report.compression) else f": {report.compression:,.1f}x compression of the weights"
    figure.suptitle(f"{report.model}{ratio}" if title is None else title, fontweight="bold")
    return written(figure, target)


def plot_input_pixels(
    counts: Any, path: str | os.PathLike[str] | None = None, title: str | None = None, *, overwrite: bool = False
) -> Any:
    """Draws how many weights of the first layer are left at each input pixel; pixels that are cut off stay gray.

    Args:
        counts: numbers of nonzero weights, shape (height, width): nested lists or an array of integers.
        path: the PNG file to write, or None to get the figure. It appears complete or not at all.
        title: headline; None says how many pixels are still connected.
        overwrite: whether a file that exists may be replaced.

    Returns:
        The `pathlib.Path` that was written; without `path` a `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: if `counts` is no rectangle of integers of at least 0, or `path` cannot be used.
        MissingPackageError: if Matplotlib is not installed.

    Example:
        >>> figure = plot_input_pixels([[0, 3], [1, 0]])
        >>> figure.axes[0].get_title()
        '2 of 4 input pixels are connected'
    """
    target = picture_target(path, overwrite)
    figure = new_figure(5.6, 4.8)
    import matplotlib
    import numpy as np

    try:
        image = np.asarray(counts)
    except ValueError:  # rows of different lengths
        image = np.zeros(0, object)
    if image.ndim != 2 or not image.size or image.dtype.kind not in "iu" or image.min() < 0:
        raise argument_error("counts", "a rectangle of integers of at least 0, shape (height, width)", counts)
    axes = figure.subplots()
    palette = matplotlib.colormaps["viridis"].with_extremes(under="#e4e4e4")
    # Zeros lie under vmin; a picture of ones still needs a scale of some length.
    shown = axes.imshow(image, cmap=palette, vmin=1, vmax=max(2, int(image.max())), interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="nonzero first-layer weights", extend="min").locator = _whole_numbers()
    axes.set_xticks([])
    axes.set_yticks([])
    connected = f"{np.count_nonzero(image)} of {image.size} input pixels are connected"
    axes.set_title(connected if title is None else title)
    return written(figure, target)


def _draw_bars(axes: Any, report: SparsityReport) -> None:
    layers = report.layers
    shares = [layer.percent_left if layer.weights else 0.0 for layer in layers]
    smallest = min((share for share in shares if share > 0), default=1.0)
    left = 10.0 ** min(math.floor(math.log10(smallest) - 0.3), 0)  # the shortest bar is still a bar
    axes.set_xscale("log")
    axes.set_xlim(left, 100.0 * (100.0 / left) ** 0.3)  # room for the labels
    axes.barh(range(len(layers)), [max(share, left) for share in shares], color=_colors(len(layers)), height=0.7)
    for row, (layer, share) in enumerate(zip(layers, shares, strict=True)):
        text = f"{share:.2f} %  ({layer.nonzero_weights:,})" if layer.weights else "no weights"
        axes.annotate(text, (max(share, left), row), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(layers)), [shortened(layer.path) for layer in layers])
    axes.set_ylim(len(layers) - 0.4, -0.6)  # first layer on top
    ticks = [10.0**e for e in range(round(math.log10(left)), 3)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.spines["bottom"].set_bounds(left, 100.0)
    axes.set_title("weights left")
    axes.set_xlabel("percent of the layer's weights (log scale)")
    tidy(axes, grid_axis="x")


def _draw_histograms(axes: Any, report: SparsityReport) -> None:
    for layer, color in zip(report.layers, _colors(len(report.layers)), strict=True):
        if any(layer.histogram):
            label = shortened(layer.path)
            axes.stairs(layer.histogram, HISTOGRAM_EDGES, color=color, label=label, linewidth=1.8)
    axes.set_yscale("symlog", linthresh=1.0)  # counts from 0 to millions
    axes.set_ylim(bottom=0)
    decades = range(math.ceil(HISTOGRAM_EDGES[0]), math.floor(HISTOGRAM_EDGES[-1]) + 1)
    axes.set_xticks(list(decades), [f"$10^{{{e}}}$" for e in decades])
    axes.set_title("magnitudes of the nonzero weights")
    axes.set_xlabel("absolute value (the outermost bins are open)")
    axes.set_ylabel("weights per bin")
    if 0 < len(axes.patches) <= _MOST_IN_LEGEND:
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    tidy(axes, grid_axis="y")


def _colors(number: int) -> list[Any]:
    import matplotlib

    palette = matplotlib.colormaps["viridis"]
    return [palette(0.85 * row / max(1, number - 1)) for row in range(number)]  # not the pale end


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)
