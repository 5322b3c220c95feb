"""Draws the figures of docs/intuition.md: `python docs/make_figures.py` writes docs/images/*.png.

One weight w of one unit f(z), z = w + c, is followed from -3 to 3; what comes after the unit is linear, so that its
sensitivity is S(w) = A |f'(w + c)|.
"""

from __future__ import annotations

import pathlib

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from keras_sensprune.formulas.penalty import curvature_ratio, insensitivity_penalty
from keras_sensprune.formulas.sensitivity import bounded_insensitivity

IMAGES = pathlib.Path(__file__).parent / "images"
# activation: (c, largest |f'|)
UNITS = {
    "linear": (0.0, 1.0),
    "relu": (-1.0, 1.0),
    "leaky_relu": (-1.0, 1.0),
    "elu": (-1.0, 1.0),
    "sigmoid": (-1.0, 0.25),
    "tanh": (-1.0, 1.0),
    "softplus": (-1.0, 1.0),
    "gelu": (-1.0, 1.129),
}
WEIGHTS = np.linspace(-3, 3, 6001)
GREY, INK, ORANGE, BLUE, GREEN = "#8a8984", "#1d1d1b", "#d95f1e", "#2a78d6", "#1a8f5a"


def sensitivity(activation: str, A: float) -> np.ndarray:
    """S on the grid of weights; the slope of the activation is Keras's own."""
    z = tf.constant(WEIGHTS + UNITS[activation][0])
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = keras.activations.get(activation)(z)
    return A * np.abs(tape.gradient(value, z).numpy())


def shrinkage(S: np.ndarray) -> np.ndarray:
    """w * max(0, 1 - S), the derivative of the penalty."""
    return WEIGHTS * np.asarray(bounded_insensitivity(tf.constant(S)))


def integral(S: np.ndarray) -> np.ndarray:
    """The penalty itself: the shrinkage summed up from w = 0 by the trapezoidal rule."""
    slope = shrinkage(S)
    total = np.concatenate([[0.0], np.cumsum(np.diff(WEIGHTS) * (slope[1:] + slope[:-1]) / 2)])
    return total - total[len(WEIGHTS) // 2]


def panels(title: str, ylabel: str) -> tuple:
    """Eight small panels, one per activation, with common axes."""
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.6), sharex=True, sharey=True)
    for axis, activation in zip(axes.flat, UNITS, strict=True):
        c = UNITS[activation][0]
        axis.set_title(
            f"{activation}, z = w {'-' if c < 0 else '+'} {abs(c):g}" if c else f"{activation}, z = w", size=10
        )
        axis.grid(color="#e6e5e0", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks(range(-3, 4))
    for axis in axes[1]:
        axis.set_xlabel("weight w")
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    figure.suptitle(title, x=0.01, ha="left", size=12, weight="bold")
    return figure, axes


def save(figure: plt.Figure, axis: plt.Axes, name: str) -> None:
    """The legend in one row below the title, then the file."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.0, 0.955), ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=110)
    plt.close(figure)


def draw_penalty() -> None:
    """R(w): the integral, order 1, order 2 and plain L2, at a sensitivity that never reaches 1."""
    figure, axes = panels("The value of the penalty, by order (A = 0.9 / largest slope, so S < 1)", "penalty R(w)")
    for axis, (activation, (c, steepest)) in zip(axes.flat, UNITS.items(), strict=True):
        S = sensitivity(activation, 0.9 / steepest)
        D = S * np.asarray(curvature_ratio(activation, WEIGHTS + c))
        axis.plot(WEIGHTS, WEIGHTS**2 / 2, color=GREY, linestyle=":", linewidth=1.5, label="L2: $w^2/2$")
        axis.plot(WEIGHTS, integral(S), color=INK, linewidth=3.5, alpha=0.3, label="exact integral")
        axis.plot(WEIGHTS, insensitivity_penalty(WEIGHTS, S), color=ORANGE, linewidth=1.4, label="order 1")
        axis.plot(WEIGHTS, insensitivity_penalty(WEIGHTS, S, D), "--", color=BLUE, linewidth=1.4, label="order 2")
    axes[0, 0].set_ylim(-0.1, 3.2)
    save(figure, axes[0, 0], "penalty.png")


def draw_shrink() -> None:
    """w * S_b(w): what is subtracted from the weight, below and above the clipping point."""
    figure, axes = panels("What is subtracted from the weight, exact for every activation", r"shrinkage $w\,\bar S_b$")
    for axis, (activation, (_, steepest)) in zip(axes.flat, UNITS.items(), strict=True):
        axis.plot(WEIGHTS, WEIGHTS, color=GREY, linestyle=":", linewidth=1.5, label="L2: $w$")
        for factor, color, style in ((0.5, GREEN, "-"), (0.9, ORANGE, "-"), (2.0, BLUE, "--")):
            S = sensitivity(activation, factor / steepest)
            axis.plot(WEIGHTS, shrinkage(S), style, color=color, linewidth=1.5, label=f"largest S = {factor:g}")
    save(figure, axes[0, 0], "shrink.png")


if __name__ == "__main__":
    draw_penalty()
    draw_shrink()
