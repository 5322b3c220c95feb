"""Picture of a search: error against compression, with the Pareto front as a step line."""

from __future__ import annotations

import os
from typing import Any

from keras_sensprune.errors import argument_error
from keras_sensprune.records import SearchRecord
from keras_sensprune.reports.figure import new_figure, picture_target, tidy, written

_TRIAL, _FRONT = "#b8c4d6", "#414487"


def plot_search(
    record: SearchRecord,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    *,
    overwrite: bool = False,
) -> Any:
    """Draws the trials of a search: validation error against compression, with the Pareto front as a step line.

    The line says which error can be had at least at a compression: that of the next trial of the front that is at
    least as small. The scale of the compression (size of the dense network / size) is logarithmic.

    Args:
        record: what `search` returned, or the same read from JSON.
        path: the PNG file to write, or None to get the figure. It appears complete or not at all.
        title: headline; None says how many trials there are, and how many of them are the front.
        overwrite: whether a file that exists may be replaced.

    Returns:
        The `pathlib.Path` that was written; without `path` a `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: if no trial of the record is finished, or `path` is no .png, exists already, or its folder does
            not.
        MissingPackageError: if Matplotlib is not installed.

    Example:
        >>> from keras_sensprune import plot_search
        >>> from keras_sensprune.records import FitSettings, SearchRange, SearchRecord, SearchTrial
        >>> settings = FitSettings("", 100, 5, 32, "accuracy", "max", "", 0)
        >>> trials = (SearchTrial((1e-4,), 2.0, 50, 0.5, 2.0, 1.0), SearchTrial((1e-3,), 3.0, 10, 0.9, 10.0, 1.0))
        >>> ranges = (SearchRange("strength", 1e-5, 1e-2),)
        >>> figure = plot_search(SearchRecord(settings, ranges, "nonzero weights", 100, trials, (0, 1)))
        >>> figure.axes[0].get_title()
        '2 trials, 2 on the Pareto front'
    """
    target = picture_target(path, overwrite)
    if not record.front:
        raise argument_error("record", "a SearchRecord with at least one finished trial", record)
    finished = [trial for trial in record.trials if not trial.failure]
    front = [record.trials[number] for number in record.front]
    figure = new_figure(7.0, 4.5)
    from matplotlib.ticker import LogLocator

    axes = figure.subplots()
    xs, ys = [trial.compression for trial in finished], [trial.error for trial in finished]
    axes.scatter(xs, ys, color=_TRIAL, s=24, label="trials")
    xs, ys = [trial.compression for trial in front], [trial.error for trial in front]
    # By rising compression, the error between two trials is that of the right one.
    axes.step(xs, ys, where="pre", color=_FRONT, marker="o", linewidth=1.8, label="Pareto front")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))  # most searches span less than two decades
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.minorticks_off()
    axes.set_xlabel(f"times smaller: {record.size} (log scale)")
    axes.set_ylabel("validation error, %" if record.settings.mode == "max" else f"validation {record.settings.metric}")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes, grid_axis="both")
    counts = f"{len(record.trials)} trials, {len(front)} on the Pareto front"
    axes.set_title(counts if title is None else title)
    return written(figure, target)
