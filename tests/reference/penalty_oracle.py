"""Slow, independent oracle of the penalty for one weight of one unit, in NumPy and SciPy, float64.

The unit is f(z), z = a w + c, and what follows it is linear, so that its sensitivity is S(w) = A |f'(a w + c)|.
Nothing here is shared with the library: each derivative is written out by hand.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy import integrate, optimize
from scipy.special import expit, log_ndtr, ndtr, spence

Function = Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class Unit:
    """An activation: antiderivative F, f, f', f'', f''' (almost everywhere).

    `kinks`: where f' or f'' jumps. `roots`: where f' changes sign. `steepest`: the largest |f'|.
    """

    F: Function
    f: Function
    f1: Function
    f2: Function
    f3: Function
    kinks: tuple[float, ...] = ()
    roots: tuple[float, ...] = ()
    steepest: float = 1.0


SLOPE = 0.2  # of leaky_relu below 0, as in Keras


def phi(z: float) -> float:
    return math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def s1(z: float) -> float:
    return expit(z) * expit(-z)


def s2(z: float) -> float:
    return s1(z) * (1 - 2 * expit(z))


def s3(z: float) -> float:
    return s1(z) * (1 - 6 * expit(z) + 6 * expit(z) ** 2)


def log1pexp(z: float) -> float:
    return float(np.logaddexp(0.0, z))


def dilog(z: float) -> float:
    """Li2(-e^z); SciPy's spence(x) is Li2(1 - x)."""
    return float(spence(1 + math.exp(z)))


def zero(z: float) -> float:
    return 0.0


def silu_slope(z: float) -> float:
    return expit(z) + z * s1(z)


def gelu_slope(z: float) -> float:
    return math.exp(log_ndtr(z)) + z * phi(z)


SILU_ROOT = optimize.brentq(silu_slope, -2, -1, xtol=1e-15)
GELU_ROOT = optimize.brentq(gelu_slope, -1, -0.5, xtol=1e-15)
SILU_STEEPEST = -optimize.minimize_scalar(lambda z: -silu_slope(z), (1, 2, 3)).fun

UNITS = {
    "linear": Unit(lambda z: z * z / 2, lambda z: z, lambda z: 1.0, zero, zero),
    "relu": Unit(
        F=lambda z: max(z, 0.0) ** 2 / 2,
        f=lambda z: max(z, 0.0),
        f1=lambda z: float(z > 0),
        f2=zero,
        f3=zero,
        kinks=(0.0,),
    ),
    "leaky_relu": Unit(
        F=lambda z: z * z / 2 * (1.0 if z > 0 else SLOPE),
        f=lambda z: z * (1.0 if z > 0 else SLOPE),
        f1=lambda z: 1.0 if z > 0 else SLOPE,
        f2=zero,
        f3=zero,
        kinks=(0.0,),
    ),
    "sigmoid": Unit(log1pexp, expit, s1, s2, s3, steepest=0.25),
    "tanh": Unit(
        F=lambda z: math.log(math.cosh(z)),
        f=math.tanh,
        f1=lambda z: 1 - math.tanh(z) ** 2,
        f2=lambda z: -2 * math.tanh(z) * (1 - math.tanh(z) ** 2),
        f3=lambda z: (1 - math.tanh(z) ** 2) * (6 * math.tanh(z) ** 2 - 2),
    ),
    "softplus": Unit(lambda z: -dilog(z), log1pexp, expit, s1, s2),
    "gelu": Unit(
        F=lambda z: ((z * z - 1) * ndtr(z) + z * phi(z)) / 2,
        f=lambda z: z * ndtr(z),
        f1=gelu_slope,
        f2=lambda z: (2 - z * z) * phi(z),
        f3=lambda z: (z**3 - 4 * z) * phi(z),
        roots=(GELU_ROOT,),
        steepest=gelu_slope(math.sqrt(2)),
    ),
    "silu": Unit(
        F=lambda z: z * log1pexp(z) + dilog(z),
        f=lambda z: z * expit(z),
        f1=silu_slope,
        f2=lambda z: 2 * s1(z) + z * s2(z),
        f3=lambda z: 3 * s2(z) + z * s3(z),
        roots=(SILU_ROOT,),
        steepest=SILU_STEEPEST,
    ),
    "elu": Unit(
        F=lambda z: z * z / 2 if z > 0 else math.exp(z) - z - 1,
        f=lambda z: z if z > 0 else math.expm1(z),
        f1=lambda z: 1.0 if z > 0 else math.exp(z),
        f2=lambda z: 0.0 if z > 0 else math.exp(z),
        f3=lambda z: 0.0 if z > 0 else math.exp(z),
        kinks=(0.0,),
    ),
}


def cases(activation: str, count: int = 40) -> list[tuple[float, float, float, float]]:
    """Random (w, a, c, A) with S <= 1 everywhere; |a| is kept from 0, where closed forms cancel."""
    rng = np.random.default_rng(list(UNITS).index(activation))
    w, c = rng.uniform(-2, 2, count), rng.uniform(-2, 2, count)
    a = rng.uniform(0.2, 1.5, count) * rng.choice([-1, 1], count)
    A = rng.uniform(0, 1, count) / UNITS[activation].steepest
    return [tuple(map(float, case)) for case in zip(w, a, c, A, strict=True)]


def sensitivity(activation: str, w: float, a: float, c: float, A: float) -> float:
    """S(w) = A |f'(a w + c)|."""
    return A * abs(UNITS[activation].f1(a * w + c))


def curvature(activation: str, w: float, a: float, c: float, A: float) -> float:
    """D(w) = sum_k alpha_k sgn(dy_k/dw) d2y_k/dw2 = A a sgn(f') f''."""
    unit, z = UNITS[activation], a * w + c
    return A * a * math.copysign(1.0, unit.f1(z)) * unit.f2(z)


def _inside(points: list[float], w: float) -> list[float]:
    low, high = min(0.0, w), max(0.0, w)
    return sorted({low, high, *(p for p in points if low < p < high)})


def closed_form(activation: str, w: float, a: float, c: float, A: float) -> float:
    """R(w) by antiderivatives, for S <= 1 on (0, w): w^2/2 - A |[u f/a - F/a^2]|, split at the roots of f'."""
    unit = UNITS[activation]
    ends = _inside([(root - c) / a for root in unit.roots], w)
    parts = [u * unit.f(a * u + c) / a - unit.F(a * u + c) / a**2 for u in ends]
    return w * w / 2 - A * sum(abs(right - left) for left, right in itertools.pairwise(parts))


def quadrature(activation: str, w: float, a: float, c: float, A: float) -> float:
    """R(w) = integral of u max(0, 1 - A |f'(a u + c)|) from 0 to w, split where the integrand is not smooth."""
    unit = UNITS[activation]

    def excess(u: float) -> float:
        return 1 - A * abs(unit.f1(a * u + c))

    breaks = _inside([(z - c) / a for z in unit.kinks + unit.roots], w)
    grid = np.unique(np.concatenate([np.linspace(breaks[0], breaks[-1], 401), breaks]))
    values = [excess(u) for u in grid]
    for left, right, at_left, at_right in zip(grid, grid[1:], values, values[1:], strict=False):
        if at_left * at_right < 0:  # S crosses 1
            breaks.append(optimize.brentq(excess, left, right, xtol=1e-15))
    breaks = sorted(breaks)
    total = 0.0
    for left, right in itertools.pairwise(breaks):
        total += integrate.quad(lambda u: u * max(0.0, excess(u)), left, right, epsabs=1e-14, epsrel=1e-12)[0]
    return total if w >= 0 else -total


def series(activation: str, w: float, a: float, c: float, A: float, terms: int) -> float:
    """The first one, two or three terms of eq. 15, without clipping."""
    unit, z = UNITS[activation], a * w + c
    total = 0.0
    for m, derivative in enumerate((unit.f1, unit.f2, unit.f3)[:terms], start=1):
        total += (-1) ** (m + 1) * w ** (m + 1) * a ** (m - 1) / math.factorial(m + 1) * derivative(z)
    return w * w / 2 - math.copysign(A, unit.f1(z)) * total
