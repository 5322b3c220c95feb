"""Slow, independent oracle of optimizers: NumPy, float64, one array at a time, from the papers' formulas.

An optimizer is a function (weight, gradient) -> new weight with a memory. Where papers differ in detail the form of
Keras is taken: epsilon behind the corrected rate in Adam, inside the root in RMSprop. Muon's polynomial is applied to
the singular values, where Keras multiplies matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Rate = float | Callable[[int], float]


class Oracle:
    """w <- w - decay * rate * w - step, with the rate of the update's number (from 0)."""

    def __init__(self, rate: Rate, decay: float = 0.0):
        self.rate, self.decay, self.updates = rate, decay, 0

    def __call__(self, w: np.ndarray, g: np.ndarray) -> np.ndarray:
        rate = self.rate(self.updates) if callable(self.rate) else self.rate
        self.updates += 1
        return w - self.decay * rate * w - self.step(g, rate)

    def step(self, g: np.ndarray, rate: float) -> Any:
        raise NotImplementedError


class SGD(Oracle):
    """Velocity v <- momentum v + rate g; Nesterov looks one step ahead."""

    def __init__(self, rate: Rate, momentum: float = 0.0, nesterov: bool = False):
        super().__init__(rate)
        self.momentum, self.nesterov, self.velocity = momentum, nesterov, 0.0

    def step(self, g, rate):
        self.velocity = self.momentum * self.velocity + rate * g
        return self.momentum * self.velocity + rate * g if self.nesterov else self.velocity


class Adam(Oracle):
    """Moving means m of g and v of g^2, both corrected for their start at 0. With decay: AdamW."""

    def __init__(self, rate: Rate, decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)):
        super().__init__(rate, decay)
        self.betas, self.m, self.v = betas, 0.0, 0.0

    def step(self, g, rate):
        one, two = self.betas
        self.m = one * self.m + (1 - one) * g
        self.v = two * self.v + (1 - two) * g * g
        rate = rate * np.sqrt(1 - two**self.updates) / (1 - one**self.updates)
        return rate * self.m / (np.sqrt(self.v) + 1e-7)


class Lion(Oracle):
    """The sign of a mean of momentum and gradient; a sign that rounding could turn is refused."""

    def __init__(self, rate: Rate, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(rate)
        self.betas, self.m = betas, 0.0

    def step(self, g, rate):
        one, two = self.betas
        direction = one * self.m + (1 - one) * g
        assert np.abs(direction).min() > 1e-9
        self.m = two * self.m + (1 - two) * g
        return rate * np.sign(direction)


class RMSprop(Oracle):
    """g over the root of its mean square, or of its variance (centered); then momentum."""

    def __init__(self, rate: Rate, momentum: float = 0.0, centered: bool = False):
        super().__init__(rate)
        self.momentum, self.centered, self.mean, self.square, self.velocity = momentum, centered, 0.0, 0.0, 0.0

    def step(self, g, rate):
        self.square = 0.9 * self.square + 0.1 * g * g
        self.mean = 0.9 * self.mean + 0.1 * g
        spread = self.square - self.mean**2 if self.centered else self.square
        self.velocity = self.momentum * self.velocity + rate * g / np.sqrt(spread + 1e-7)
        return self.velocity


class Muon(Oracle):
    """Nesterov momentum; then its singular values, scaled to norm 1 together, through a s + b s^3 + c s^5, 5 times."""

    def __init__(self, rate: Rate, decay: float = 0.0, momentum: float = 0.95):
        super().__init__(rate, decay)
        self.momentum, self.m = momentum, 0.0

    def step(self, g, rate):
        self.m = self.momentum * self.m + g
        left, values, right = np.linalg.svd(g + self.momentum * self.m, full_matrices=False)
        values = values / (np.sqrt(np.sum(values**2)) + 1e-7)
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        return 0.2 * np.sqrt(max(g.shape)) * rate * (left * values) @ right


def clipped(gradients: list[np.ndarray], norm: float) -> list[np.ndarray]:
    """Gradients scaled so that the norm of all of them together is `norm`; where that would not clip, it is refused."""
    found = np.sqrt(sum(np.sum(g * g) for g in gradients))
    assert found > norm
    return [g * norm / found for g in gradients]
