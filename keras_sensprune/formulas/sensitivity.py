r"""Sensitivity of the outputs to each weight, and the bounded insensitivity that scales the shrinkage.

With logits $y_{pk}$ (position $p$: an example, a token or a pixel; output $k = 1..C$), position weights
$\omega_p \ge 0$, $\sum_p \omega_p = 1$, and output weights $\alpha_{pk} \ge 0$, every form used here is a sum over
*terms*, scalars $t_j$ whose gradients are taken one by one:

    abs_of_mean   S(w) = sum_j | d t_j / d w |,                  t_j = sum_p omega_p alpha_pj y_pj
    mean_of_abs   S(w) = sum_p omega_p sum_k alpha_pk | d y_pk / d w |

Unspecific: alpha_pk = 1/C. Specific: alpha_pk = the target of position p (one-hot, soft, or y/sum(y) for
several labels). Under `abs_of_mean` the specific form sums over p *and* k before the absolute value, so that one
backward pass is enough; with one label per position this is the batch mean of the target output's derivative.

Source: Tartaglione, Lepsoy, Fiandrotti, Francini, "Learning sparse neural networks via sensitivity-driven
regularization", NeurIPS 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_sensprune.errors import argument_error, choice_argument, number_argument

KINDS = ("auto", "unspecific", "specific", "loss", "none")
SCALES = ("raw", "relative", "relevance")
REDUCTIONS = ("abs_of_mean", "mean_of_abs")

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
        every: sensitivities are refreshed every so many steps; in between the last ones are used.
        momentum: of the running mean, in [0, 1); used by `"relative"` and `"relevance"`, `"raw"` has none.
        output_fn: `output_fn(model, x)` returns the logits (a tensor, list or dict), for models whose logits
            cannot be found behind the last activation. It costs a second forward pass; call the model with
            `training=False` in it.

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
    every: int = 1
    momentum: float = 0.9
    output_fn: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        choice_argument("kind", self.kind, KINDS)
        choice_argument("scale", self.scale, SCALES)
        choice_argument("reduction", self.reduction, REDUCTIONS)
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise argument_error("every", "an integer of at least 1", self.every)
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


def output_terms(logits: Any, alpha: Any | None, omega: Any, split: bool) -> list[Any]:
    """The scalars t_j whose gradients make up the sensitivity.

    Args:
        logits: y, shape (positions, C) with static C.
        alpha: output weights, shape (positions, C); None for the unspecific 1/C.
        omega: position weights, shape (positions,) or a scalar.
        split: one term per output (needed where the absolute value comes before the sum over outputs), or one
            term in all. The unspecific form is always split.

    Returns:
        A list of scalar tensors: C of them if split, else one.
    """
    from keras import ops

    classes = logits.shape[-1]
    omega = ops.reshape(omega, (-1, 1))
    weighted = logits * omega * (1 / classes if alpha is None else alpha)
    if alpha is not None and not split:
        return [ops.sum(weighted)]
    return [ops.sum(weighted[:, k]) for k in range(classes)]


def bounded_insensitivity(sensitivity: Any) -> Any:
    """max(0, 1 - S), element by element.

    Args:
        sensitivity: S >= 0, any shape.

    Returns:
        Same shape, in [0, 1]. Where S is NaN the result is 0: such a weight is left alone.
    """
    from keras import ops

    return ops.where(sensitivity < 1, 1 - sensitivity, ops.zeros_like(sensitivity))


def running_mean(mean: Any, value: Any, momentum: float) -> Any:
    """momentum * mean + (1 - momentum) * value; entries of `value` that are not finite change nothing.

    The bias of the zero start is a factor common to all weights; it cancels in `scaled_sensitivity`.

    Args:
        mean: the running mean so far, any shape.
        value: the new value, same shape.
        momentum: in [0, 1).

    Returns:
        Same shape.
    """
    from keras import ops

    return ops.where(ops.isfinite(value), momentum * mean + (1 - momentum) * value, mean)


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
