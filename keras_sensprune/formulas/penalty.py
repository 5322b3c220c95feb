r"""The penalty whose derivative is the shrinkage: value by activation, gradient always exact.

For one weight $w$, with the input and all other weights held fixed,

$$R(w) = \int_0^w u\, \max(0, 1 - S(u))\, du, \qquad R'(w) = w\, \bar S_b(w), \qquad 0 \le R(w) \le w^2/2.$$

Integrating by parts again and again gives eq. 15, a series in the derivatives of the outputs $y_k$ at $w$:

$$R = \frac{w^2}{2}\Big[1 - \sum_k \alpha_k\, \mathrm{sgn}\Big(\frac{\partial y_k}{\partial w}\Big)
      \sum_{m \ge 1} (-1)^{m+1} \frac{2\, w^{m-1}}{(m+1)!}\, \frac{\partial^m y_k}{\partial w^m}\Big].$$

Order 1 keeps $m = 1$, order 2 adds $m = 2$. The gradient does not depend on the order: it is the integrand.

**Exact.** The gradient $w \bar S_b$, for every activation, by the fundamental theorem of calculus. The value at
order 1, where the outputs are affine in $w$ on the whole of $(0, w)$: piecewise-linear units without a kink there.

**Not exact.** (1) A kink of a ReLU inside $(0, w)$: the value misses it, the gradient does not. (2) Clipping: the
series takes $1 - S$ for $\max(0, 1 - S)$, so a crossing of $S = 1$, or a sign change of $\partial y_k/\partial w$,
inside $(0, w)$ spoils the value (a sign change always, where f' has a root: GELU at z = -0.752, SiLU at -1.278).
(3) Truncation after $m = 2$ for smooth units. (4) A curvature computed from the weight's own unit alone ignores
that of the layers above it. (5) $\sum_i R_i$ is a cost per weight: the whole field $w_i \bar S_{b,i}$ is in
general the gradient of no function, because $S_i$ depends on the other weights too.

For one unit $f(z)$, $z = a w + c$, the full series converges to $R$ if and only if

    linear, relu, ...         one term; exact if no kink lies in (0, w)
    sigmoid, softplus, silu   |a w| < sqrt(z^2 + pi^2)     (also log_sigmoid)
    tanh                      |a w| < sqrt(z^2 + pi^2 / 4)
    gelu, exponential         always
    elu, selu, celu           z and c = z - a w lie on the same side of 0
    softsign                  the same, and |a w| < 1 + |z|

Source: Tartaglione, Lepsoy, Fiandrotti, Francini, "Learning sparse neural networks via sensitivity-driven
regularization", NeurIPS 2018, eq. 15. The coefficient 2 / (m + 1)! is derived here, by repeated integration by parts.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_sensprune.formulas.sensitivity import bounded_insensitivity

# f'' = 0 almost everywhere. (hard_silu is not among them: it is piecewise quadratic.)
PIECEWISE_LINEAR = frozenset(
    ("linear", "relu", "relu6", "leaky_relu", "hard_sigmoid", "hard_tanh", "hard_shrink", "soft_shrink")
)

# gelu and silu: where |f'| is below this, the ratio is set to 0; 1 / _FLAT is still finite in float16. The ratio is
# only ever multiplied by f', so that f'' is taken for 0 there. In the tails that is an error of |f''| < 5e-4 at most
# (gelu at z = -4.4); at the root of f' it is more, but on an interval of z only some 2e-4 wide.
_FLAT = 1e-4


def _safe_ratio(second: Any, first: Any) -> Any:
    # second / first is infinite at the root of f', and 0 / 0 where both underflow (gelu at z = -20 in float32).
    flat = ops.abs(first) <= _FLAT  # not ">": NaN stays NaN
    return ops.where(flat, ops.zeros_like(first), second / ops.where(flat, ops.ones_like(first), first))


def _gelu_ratio(z: Any) -> Any:
    z = ops.clip(z, -40.0, 40.0)  # phi is 0 beyond; an unbounded z^2 overflows in float16 and gives inf * 0
    phi = ops.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    cdf = 0.5 * (1.0 + ops.erf(z / math.sqrt(2.0)))
    return _safe_ratio((2.0 - z * z) * phi, cdf + z * phi)


def _silu_ratio(z: Any) -> Any:
    z = ops.clip(z, -100.0, 100.0)  # s (1 - s) is 0 beyond; keeps inf * 0 out
    s, left = ops.sigmoid(z), ops.sigmoid(-z)  # left = 1 - s without cancellation
    return _safe_ratio(s * left * (2.0 + z * (left - s)), s * (1.0 + z * left))


def _elu_ratio(z: Any) -> Any:
    # f' = exp(z) = f'' below 0, up to a factor that cancels; the quotient of the two exponentials would be 0 / 0.
    return ops.where(z < 0.0, ops.ones_like(z), ops.zeros_like(z))


_RATIOS = {
    "sigmoid": lambda z: -ops.tanh(0.5 * z),  # 1 - 2 s
    "tanh": lambda z: -2.0 * ops.tanh(z),
    "softplus": lambda z: ops.sigmoid(-z),
    "log_sigmoid": lambda z: -ops.sigmoid(z),
    "softsign": lambda z: -2.0 * ops.sign(z) / (1.0 + ops.abs(z)),
    "exponential": ops.ones_like,
    "elu": _elu_ratio,
    "selu": _elu_ratio,
    "celu": _elu_ratio,
    "gelu": _gelu_ratio,
    "silu": _silu_ratio,
    "swish": _silu_ratio,
}

SMOOTH = frozenset(_RATIOS)


def curvature_ratio(activation: str, z: Any) -> Any:
    r"""Curvature of an activation relative to its slope.

    $$\rho(z) = f''(z) / f'(z),$$ with $f$ the activation and $z$ the pre-activation. For a unit $y = v f(a w + c)$
    it turns the first derivative into the second: $\partial^2 y/\partial w^2 = a\, \rho(z)\, \partial y/\partial w$,
    so that the curvature of `insensitivity_penalty` is $D = S\, a\, \rho(z)$.

    Args:
        activation: Keras name of the activation, with its default parameters (gelu: `approximate=False`).
        z: pre-activation, floating point, any shape.

    Returns:
        A tensor of the shape of `z`, finite for every `z` that is not NaN; zeros for the piecewise-linear
        activations; `None` for an unknown one (the caller then uses the first-order value). For gelu and silu,
        where f' has a root, it is 0 where $|f'| \le 10^{-4}$.

    Example:
        >>> from keras_sensprune.formulas.penalty import curvature_ratio
        >>> [round(float(rho), 4) for rho in curvature_ratio("tanh", [-1.0, 0.5, 50.0])]
        [1.5232, -0.9242, -2.0]
        >>> curvature_ratio("a_new_one", [1.0]) is None
        True

    Reference: derivation of the second term (m = 2) of eq. 15 for a single unit; see the module.
    """
    z = ops.convert_to_tensor(z)
    if activation in PIECEWISE_LINEAR:
        return ops.zeros_like(z)
    ratio = _RATIOS.get(activation)
    return None if ratio is None else ratio(z)


def insensitivity_penalty(weight: Any, sensitivity: Any, curvature: Any = None) -> Any:
    r"""Value of the penalty R of each weight.

    $$R \approx \frac{w^2}{2} \bar S_b \quad\text{(order 1)}, \qquad
      R \approx \frac{w^2}{2}\, \mathrm{clip}\Big(1 - S + \frac{w D}{3},\, 0,\, 1\Big)\,[S < 1] \quad\text{(order 2)},$$
    with $w$ the weight, $S$ its sensitivity, $\bar S_b = \max(0, 1 - S)$ and
    $D = \sum_k \alpha_k\, \mathrm{sgn}(\partial y_k/\partial w)\, \partial^2 y_k/\partial w^2$. The clip enforces
    $0 \le R \le w^2/2$, which the integral satisfies and a truncated series need not.

    Args:
        weight: tensor of any shape.
        sensitivity: $S \ge 0$, of the shape of `weight`. NaN counts as fully sensitive.
        curvature: $D$, of the shape of `weight`; `None` for order 1.

    Returns:
        A tensor of the shape of `weight`. It is differentiable, but its gradient is *not* the shrinkage where S
        depends on w: use `penalty_with_exact_gradient` in a loss.

    Example:
        >>> from keras_sensprune.formulas.penalty import insensitivity_penalty
        >>> [round(float(r), 4) for r in insensitivity_penalty([2.0, 2.0, 2.0], [0.0, 0.25, 7.0])]
        [2.0, 1.5, 0.0]
        >>> round(float(insensitivity_penalty(2.0, 0.25, curvature=-0.3)), 4)
        1.1

    Reference: Tartaglione et al., NeurIPS 2018, eq. 15, terms m = 1 and m = 2.
    """
    weight, sensitivity = ops.convert_to_tensor(weight), ops.convert_to_tensor(sensitivity)
    share = bounded_insensitivity(sensitivity)
    if curvature is not None:
        corrected = ops.clip(share + weight * curvature / 3.0, 0.0, 1.0)
        share = ops.where(sensitivity < 1.0, corrected, ops.zeros_like(share))
    return 0.5 * ops.square(weight) * share


def penalty_with_exact_gradient(weight: Any, sensitivity: Any, curvature: Any = None) -> Any:
    r"""Sum of the penalty over a tensor, with the shrinkage as its gradient.

    $$P = s + \mathrm{sg}(V - s), \qquad s = \sum_i \tfrac12 w_i^2\, \mathrm{sg}(\bar S_{b,i}),$$
    with sg = stop_gradient and $V = \sum_i R_i$ the sum of `insensitivity_penalty`. So the value of $P$ is $V$, and
    $\partial P/\partial w_i = w_i \bar S_{b,i}$ exactly, whatever the order of the value.

    Args:
        weight: tensor or variable of any shape.
        sensitivity: $S \ge 0$, of the shape of `weight`; no gradient flows into it.
        curvature: $D$ as in `insensitivity_penalty`, of the shape of `weight`; `None` for order 1.

    Returns:
        A scalar tensor.

    Example:
        >>> import tensorflow as tf
        >>> from keras_sensprune.formulas.penalty import penalty_with_exact_gradient
        >>> weight = tf.constant([2.0, -4.0])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(weight)
        ...     penalty = penalty_with_exact_gradient(weight, [0.5, 0.75])
        >>> float(penalty), tape.gradient(penalty, weight).numpy().tolist()
        (3.0, [1.0, -1.0])

    Reference: $R' = w \bar S_b$, the fundamental theorem of calculus applied to R; see the module.
    """
    weight = ops.convert_to_tensor(weight)
    share = ops.stop_gradient(bounded_insensitivity(ops.convert_to_tensor(sensitivity)))
    surrogate = ops.sum(0.5 * ops.square(weight) * share)
    if curvature is None:
        return surrogate  # V = s at order 1
    value = ops.sum(insensitivity_penalty(weight, sensitivity, curvature))
    return surrogate + ops.stop_gradient(value - surrogate)
