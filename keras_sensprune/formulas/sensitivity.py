r"""Sensitivity of the outputs to each weight, and the bounded insensitivity that scales the shrinkage.

With logits $y_{pk}$ (position $p$: an example, a token or a pixel; output $k = 1..C$), position weights
$\omega_p \ge 0$, $\sum_p \omega_p = 1$, and output weights $\alpha_{pk} \ge 0$, every form used here is a sum over
*terms*, scalars $t_j$ whose gradients are taken one by one:

    abs_of_mean   S(w) = sum_j | d t_j / d w |,                  t_j = sum_p omega_p alpha_pj y_pj
    mean_of_abs   S(w) = sum_p omega_p sum_k alpha_pk | d y_pk / d w |

Unspecific: alpha_pk = 1/C. Specific: alpha_pk = the target of position p (one-hot, soft, or y/sum(y) for
several labels). Under `abs_of_mean` the specific form sums over p *and* k before the absolute value, so that one
backward pass is enough; with one label per position this is the batch mean of the target output's derivative.

Each term costs a backward pass, so the exact unspecific form costs C of them. An *estimator* replaces the C terms by a
few, J, that are combinations of them with coefficients c (`output_direction`):

    S(w) ~ sum_j | sum_k c_jk d t_k / d w |

    exact      J = C, c_jk = 1 if j = k: the sum itself
    sampled    c_jk = C/J at one output k, which is another one every time: over C/J refreshes the mean is exact
    projected  c_jk = +-sqrt(C)/J at random: exact on average only if the d t_k / d w are independent with mean 0

Source: Tartaglione, Lepsoy, Fiandrotti, Francini, "Learning sparse neural networks via sensitivity-driven
regularization", NeurIPS 2018.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from keras_sensprune.errors import argument_error, choice_argument, integer_argument, number_argument

KINDS = ("auto", "unspecific", "specific", "loss", "none")
SCALES = ("raw", "relative", "relevance")
REDUCTIONS = ("abs_of_mean", "mean_of_abs")
ESTIMATORS = ("exact", "sampled", "projected")

RELEVANCE_CAP = 0.8  # the largest value that `relative` and `relevance` put in the place of S


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    r"""Which sensitivity the rule uses.

    $$S(w) = \sum_k \alpha_k \left|\frac{\partial y_k}{\partial w}\right|$$ with $y$ the logits.

    Args:
        kind: `"specific"` ($\alpha$ = the target), `"unspecific"` ($\alpha_k = 1/C$), `"loss"` ($|dL/dw|$ of the
            loss without this package's penalty), `"none"` ($S = 0$: plain weight decay, the control), or `"auto"`:
            specific for classification losses, unspecific otherwise.
        scale: `"raw"` ($S$ as in the paper), `"relative"` ($\min(\hat S / 2\mu, 0.8)$ in its place, with $\hat S$
            the running mean and $\mu$ its mean over the surviving weights of the tensor), or `"relevance"` (the
            same with $|w| \hat S$ for $\hat S$).
        reduction: `"abs_of_mean"`, the absolute value of the batch mean, or `"mean_of_abs"`, the batch mean of
            per-example absolute values (Dense layers that are called once per step on inputs of rank 2).
        every: sensitivities are refreshed every so many steps n. Decoupled shrinkage is then applied with the refresh,
            for the n steps before it at once, $w \leftarrow w (1 - \lambda \bar S_b)^n$, and for the rest at the
            epoch's end, so that an epoch of N steps always shrinks N times. 1 is the paper's rule.
        momentum: of the running mean over refreshes, in [0, 1). There is none for `"raw"` unless the estimator
            takes other outputs every time.
        output_fn: `output_fn(model, x)` returns the logits (a tensor, list or dict), for models whose logits
            cannot be found behind the last activation. It costs a second forward pass; call the model with
            `training=False` in it.
        estimator: how the unspecific form treats the C outputs: `"exact"`, all of them, C backward passes per
            refresh; `"sampled"`, `samples` outputs per refresh, another one each time, in a running mean, which
            is right over C/samples refreshes; `"projected"`, `samples` random signed sums of all outputs. The
            other kinds need one backward pass and are exact whatever it says.
        samples: backward passes per refresh of `"sampled"` and `"projected"`; more than C are C.

    Returns:
        A frozen configuration object.

    Raises:
        ArgumentError: if a value is not allowed.

    Example:
        >>> from keras_sensprune import Sensitivity
        >>> Sensitivity(kind="unspecific").scale
        'raw'
    """

    kind: str = "auto"
    scale: str = "raw"
    reduction: str = "abs_of_mean"
    every: int = 32
    momentum: float = 0.9
    output_fn: Callable[..., Any] | None = None
    estimator: str = "sampled"
    samples: int = 1

    def __post_init__(self) -> None:
        choice_argument("kind", self.kind, KINDS)
        choice_argument("scale", self.scale, SCALES)
        choice_argument("reduction", self.reduction, REDUCTIONS)
        choice_argument("estimator", self.estimator, ESTIMATORS)
        integer_argument("every", self.every, 1)
        integer_argument("samples", self.samples, 1)
        if number_argument("momentum", self.momentum, "a number in [0, 1)") >= 1:
            raise argument_error("momentum", "a number in [0, 1)", self.momentum)
        if self.output_fn is not None and not callable(self.output_fn):
            raise argument_error("output_fn", "a function (model, x) -> logits, or None", self.output_fn)
        if self.reduction == "mean_of_abs" and self.kind == "loss":
            raise argument_error(
                "reduction", "'abs_of_mean' when kind='loss'", self.reduction, "The loss is already a mean."
            )


def target_weights(task: str, targets: Any, classes: int) -> Any:
    """Output weights alpha of the specific form.

    Args:
        task: `"integer"` (class numbers), `"distribution"` (one-hot or soft labels), `"multilabel"` (any number of
            ones), `"binary"` (one logit for two classes: its weight is 1) or `"regression"` (1/C).
        targets: shape (positions,) for `"integer"`, else (positions, classes).
        classes: C.

    Returns:
        Shape (positions, classes). A class number outside [0, C) gives a row of zeros, and so does a row of
        several labels without a one.
    """
    from keras import ops

    if task == "integer":
        return ops.one_hot(ops.cast(targets, "int32"), classes)
    if task == "binary":
        return ops.ones_like(targets)
    if task == "regression":
        return ops.ones_like(targets) / classes
    if task == "multilabel":
        count = ops.sum(targets, axis=-1, keepdims=True)
        return targets / ops.where(count > 0, count, ops.ones_like(count))
    return targets


def position_weights(count: Any, weights: Any | None, dtype: str) -> Any:
    """Weights omega of the positions, summing to 1 (or all 0 where every position is excluded).

    Args:
        count: number of positions, a scalar tensor.
        weights: product of sample weight and mask, shape (positions,), or None for equal weights.
        dtype: of the result.

    Returns:
        Shape (positions,), or a scalar 1/count if `weights` is None.
    """
    from keras import ops

    if weights is None:
        return 1 / ops.cast(count, dtype)
    weights = ops.cast(weights, dtype)
    total = ops.sum(weights)
    return weights / ops.where(total > 0, total, ops.ones_like(total))


def passes_of(estimator: str, samples: int, classes: int) -> int:
    """How many terms, and so backward passes, stand for the C outputs.

    Args:
        estimator: `"exact"`, `"sampled"` or `"projected"`.
        samples: passes of the last two.
        classes: C.

    Returns:
        At least 1, at most C.
    """
    return classes if estimator == "exact" else min(samples, classes)


def output_direction(estimator: str, number: Any, passes: int, classes: int, refresh: Any, signs: Any) -> Any:
    """Coefficients c of one term, sum_k c_k t_k.

    `"sampled"` goes through the outputs in a fixed order that spreads evenly: with a stride near C times the golden
    section and prime to C, each output comes once in C passes.

    Args:
        estimator: `"exact"`, `"sampled"` or `"projected"`.
        number: of the pass, 0 to passes - 1, an integer tensor.
        passes: J.
        classes: C.
        refresh: how many refreshes there were before this one, an integer tensor.
        signs: shape (passes, C), +1 and -1 at random, for `"projected"`; otherwise None.

    Returns:
        Shape (C,), float32.
    """
    from keras import ops

    if estimator == "exact":
        return ops.one_hot(number, classes)
    if estimator == "projected":
        return ops.take(signs, number, axis=0) * (math.sqrt(classes) / passes)
    turn = ops.cast(refresh, "int64") * passes + ops.cast(number, "int64")
    chosen = (turn % classes) * _stride(classes) % classes
    return ops.one_hot(chosen, classes) * (classes / passes)


def _stride(classes: int) -> int:
    """The positive integer prime to C that is nearest to 0.618 C."""
    wanted = max(1, round(0.6180339887 * classes))
    near = (wanted + sign * step for step in range(classes) for sign in (1, -1))
    return next(stride for stride in near if stride > 0 and math.gcd(stride, classes) == 1)


def bounded_insensitivity(sensitivity: Any) -> Any:
    """max(0, 1 - S), element by element.

    Args:
        sensitivity: S >= 0, any shape.

    Returns:
        Same shape, in [0, 1]. Where S is NaN the result is 0: such a weight is left alone.
    """
    from keras import ops

    return ops.where(sensitivity < 1, 1 - sensitivity, ops.zeros_like(sensitivity))


def running_mean(mean: Any, value: Any, momentum: float, refresh: Any) -> Any:
    """The exponential running mean of all values so far, free of the bias of its start.

    mean_t = mean_{t-1} + beta_t (value - mean_{t-1}) with beta_t = (1 - m) / (1 - m^(t + 1)): the usual
    m * mean + (1 - m) * value from 0, divided by the sum of its weights. Entries of `value` that are not finite
    change nothing.

    Args:
        mean: the running mean so far, any shape.
        value: the new value, same shape.
        momentum: m in [0, 1).
        refresh: t, how many values there were before, an integer tensor.

    Returns:
        Same shape; at t = 0 it is `value`.
    """
    from keras import ops

    if momentum == 0:
        return ops.where(ops.isfinite(value), value, mean)
    weights = -ops.expm1(ops.cast(refresh + 1, value.dtype) * math.log(momentum))  # 1 - m^(t + 1), also for m near 1
    share = (1 - momentum) / weights
    return ops.where(ops.isfinite(value), mean + share * (value - mean), mean)


def shrunk_share(strength: Any, insensitivity: Any, steps: Any) -> Any:
    """Which share of a weight `steps` applications of the rule take away: 1 - (1 - strength * S_b)^steps.

    Args:
        strength: lambda >= 0, a number or a scalar tensor of the dtype of `insensitivity`.
        insensitivity: S_b in [0, 1], any shape.
        steps: how many steps; the integer 1 gives strength * S_b without rounding, a tensor the power.

    Returns:
        Same shape.
    """
    from keras import ops

    once = strength * insensitivity
    if isinstance(steps, int) and steps == 1:
        return once
    steps = ops.cast(steps, once.dtype)
    small = once < 0.5
    share = -ops.expm1(steps * ops.log1p(-ops.where(small, once, 0)))  # exact also where 1 - once rounds to 1
    return ops.where(small, share, 1 - ops.power(1 - once, steps))


def scaled_sensitivity(scale: str, weight: Any, sensitivity: Any) -> Any:
    """What takes the place of S in 1 - S.

    raw: S. relative: min(S / (2 mu), 0.8), with mu the mean of S over the surviving (nonzero) weights of this
    tensor. relevance: the same with q = |w| S for S. Both are 0 where mu is 0. Without the cap the most relevant
    weights would get no decay at all and overfit.

    Args:
        scale: `"raw"`, `"relative"` or `"relevance"`.
        weight: w, any shape.
        sensitivity: S (for raw) or its running mean, same shape.

    Returns:
        Same shape.
    """
    from keras import ops

    if scale == "raw":
        return sensitivity
    value = sensitivity if scale == "relative" else ops.abs(weight) * sensitivity
    alive = ops.cast(ops.not_equal(weight, 0), value.dtype)
    mean = ops.sum(value * alive) / ops.maximum(ops.sum(alive), 1)
    nothing = ops.equal(mean, 0)  # NaN is no zero: it stays NaN, and such a weight is left alone
    share = ops.minimum(value / ops.where(nothing, ops.ones_like(mean), 2 * mean), RELEVANCE_CAP)
    return ops.where(nothing, ops.zeros_like(share), share)
