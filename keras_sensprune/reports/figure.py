"""What pictures share: a figure without backend, tidy axes, a PNG that appears complete or not at all."""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

from keras_sensprune.errors import MissingPackageError, argument_error

_GRID = "#dddddd"


def tidy(axes: Any, grid_axis: str) -> None:
    """No frame at the top and the right, a pale grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid_axis, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def shortened(path: str) -> str:
    """A layer's path with its middle left out, if it is long."""
    return path if len(path) <= 28 else path[:11] + "..." + path[-14:]


def check_matplotlib() -> None:
    """Refuses early what could not be drawn later.

    Raises:
        MissingPackageError: if Matplotlib is not installed; with the line that installs it.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        raise MissingPackageError('Plots need Matplotlib: pip install "keras-sensprune[demo]"') from None


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches, outside of any backend."""
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def picture_target(path: str | os.PathLike[str] | None, overwrite: bool) -> Path | None:
    """`path`, if a PNG file may be written there; found out before anything is drawn."""
    if path is None:
        return None
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise argument_error("path", "a file name that ends in .png", str(path))
    if not target.parent.is_dir():
        raise argument_error("path", "in a folder that exists", str(path), "Create the folder first.")
    if target.is_dir() or (target.exists() and not overwrite):
        raise argument_error("path", "a file that does not exist yet", str(path), "Pass overwrite=True to replace it.")
    return target


def written(figure: Any, target: Path | None) -> Any:
    """The figure itself without a target, else the target once the PNG is there."""
    if target is None:
        return figure
    handle, temporary = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=".png", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            figure.savefig(file, format="png")
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target
