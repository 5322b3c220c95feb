"""From what a Keras loss sees (y, y_pred, sample_weight) to logits and the scalar terms of the sensitivity."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops, tree

from keras_sensprune.errors import ModelError
from keras_sensprune.formulas.sensitivity import (
    Sensitivity,
    passes_of,
    position_weights,
    target_weights,
)

# Name of the function behind a Keras loss (object, function or string) -> the kind of its targets.
_TASKS = {
    "sparse_categorical_crossentropy": "integer",
    "categorical_crossentropy": "distribution",
    "categorical_focal_crossentropy": "distribution",
    "categorical_hinge": "distribution",
    "kl_divergence": "distribution",
    "binary_crossentropy": "multilabel",
    "binary_focal_crossentropy": "multilabel",
    "ctc": "regression",  # its integers are no class number per position
    **dict.fromkeys(
        ("mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error", "huber", "log_cosh"),
        "regression",
    ),
    **dict.fromkeys(("mean_squared_logarithmic_error", "poisson", "cosine_similarity"), "regression"),
}
# Those of them that take probabilities unless `from_logits=True`.
_OF_PROBABILITIES = frozenset(name for name, task in _TASKS.items() if task != "regression") - {"categorical_hinge"}


class Terms(NamedTuple):
    """What one output contributes: weight * sum_j |dt_j/dw|.

    Attributes:
        value: the logits, shape (positions, C), recorded by a tape; or a scalar, the only term.
        shares: a function that gives omega_p alpha_pk, same shape: with them the columns of `value` sum to the terms.
            They are computed only in steps that refresh.
        estimator: how terms are made of the columns (`formulas.sensitivity.output_direction`); None: one term, the sum
            of everything.
        passes: how many terms there are, each of which costs a backward pass.
        weight: the output's loss weight (1 if none was given).
        bad_labels: scalar boolean, whether a class number is out of range; None where there are none.
    """

    value: Any
    shares: Callable[[], Any]
    estimator: str | None
    passes: int
    weight: float = 1.0
    bad_labels: Any | None = None

    @property
    def varies(self) -> bool:
        """Whether each refresh takes other terms, so that only a mean over refreshes is the sensitivity."""
        return self.estimator in ("sampled", "projected") and self.passes < self.value.shape[-1]


def model_terms(
    model: Any, y: Any, y_pred: Any, sample_weight: Any, sensitivity: Sensitivity, replaced: bool = False
) -> list[Terms]:
    """The terms of every output of a model that has a loss; of every output if the model has only `add_loss`.

    Args:
        model: the Keras model; its compiled loss says what kind of target each output has.
        y: targets as `compute_loss` gets them, or None.
        y_pred: outputs, or the result of `output_fn`, in the structure of the model's outputs.
        sample_weight: as `compute_loss` gets it, or None. A weight of 0 excludes the position.
        sensitivity: the configuration.
        replaced: whether `y_pred` comes from `output_fn` and is logits for sure.

    Returns:
        One `Terms` per output.

    Raises:
        ModelError: if the specific form is asked for without targets, or if shapes do not fit.
    """
    return [
        _terms(model, loss, target, output, weights, factor, sensitivity, replaced)
        for loss, factor, target, output, weights in _pairs(model, y, y_pred, sample_weight)
    ]


def _pairs(model: Any, y: Any, y_pred: Any, sample_weight: Any) -> list[tuple[Any, float, Any, Any, Any]]:
    """(loss or None, loss weight, target, output, sample weight) per output."""
    outputs = tree.flatten(y_pred)
    compiled = getattr(model, "_compile_loss", None)
    if compiled is None or y is None:
        return [(None, 1.0, None, output, _only(sample_weight)) for output in outputs]
    y = _in_output_order(y, y_pred, compiled)
    if not compiled.built:
        compiled.build(y, y_pred)
    losses = compiled._flat_losses
    targets = [t for t in tree.flatten(y) if t is not None]
    pairs = []
    for i, entry in enumerate(losses):
        output = outputs[0] if len(outputs) == 1 else _at(y_pred, entry.path)
        target = targets[0] if len(targets) == 1 else _at(y, entry.path) if _has(y, entry.path) else targets[i]
        weights = sample_weight
        if tree.is_nested(sample_weight):
            weights = _at(sample_weight, entry.path) if _has(sample_weight, entry.path) else _only(sample_weight)
        factor = 1.0 if entry.loss_weights is None else abs(float(entry.loss_weights))
        pairs.append((entry.loss, factor, target, output, weights))
    return pairs


def _in_output_order(y: Any, y_pred: Any, compiled: Any) -> Any:
    """Targets in the structure of the outputs, as Keras arranges them for its loss.

    A dict goes by name, a list by order. Targets may be missing (None here) where the list of losses has a None.
    """
    names, losses = compiled.output_names, compiled._user_loss
    if isinstance(y, dict) and isinstance(y_pred, dict):
        return y
    if isinstance(y, dict) and names and set(names) == set(y):
        y = [y[name] for name in names]
    flat, count = tree.flatten(y), len(tree.flatten(y_pred))
    if len(flat) < count and isinstance(losses, (list, tuple)) and len(losses) == count:
        given = iter(flat)
        flat = [None if loss is None else next(given, None) for loss in losses]
    return tree.pack_sequence_as(y_pred, flat) if len(flat) == count else y


def _at(structure: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        structure = structure[key]
    return structure


def _has(structure: Any, path: tuple[Any, ...]) -> bool:
    try:
        return not tree.is_nested(_at(structure, path))
    except (KeyError, IndexError, TypeError):
        return False


def _only(structure: Any) -> Any:
    flat = tree.flatten(structure)
    return flat[0] if flat else None


def task_of(loss: Any, target: Any, output: Any) -> str:
    """What kind of target a loss has: integer, distribution, multilabel, binary or regression.

    A loss that Keras does not know counts as classification if its targets are integers of a rank that fits
    class numbers, and as regression otherwise.
    """
    classes = output.shape[-1] if len(output.shape) else 1
    task = _TASKS.get(_loss_name(loss))
    if task is None:
        integer = keras.backend.is_int_dtype(target.dtype)
        labels = len(target.shape) == len(output.shape) - 1 or target.shape[-1] == 1
        task = "integer" if integer and labels and classes > 1 else "regression"
    return "binary" if task == "multilabel" and classes == 1 else task


def _loss_name(loss: Any) -> str:
    return getattr(getattr(loss, "fn", loss), "__name__", type(loss).__name__)


def _logits(model: Any, loss: Any, output: Any, replaced: bool) -> Any:
    """The pre-activation that Keras keeps on the tensor, else the output itself, with a warning if that looks wrong."""
    kept = getattr(output, "_keras_logits", None)
    if kept is not None:
        return kept
    from_logits = getattr(loss, "_fn_kwargs", {}).get("from_logits", False)
    if _loss_name(loss) in _OF_PROBABILITIES and not from_logits and not replaced:
        warnings.warn(
            f"The loss {_loss_name(loss)} of model {model.name!r} takes probabilities, but the logits behind them "
            "were not found (they are lost behind Reshape, TimeDistributed or tf.nn.softmax). Sensitivities are "
            "those of the probabilities, which are close to 0 for confident examples. Use a loss with "
            "`from_logits=True`, or pass `Sensitivity(output_fn=...)`.",
            stacklevel=2,
        )
    return output


def _terms(
    model: Any, loss: Any, target: Any, output: Any, weights: Any, factor: float, config: Sensitivity, replaced: bool
) -> Terms:
    mask = getattr(output, "_keras_mask", None)
    logits = ops.cast(_logits(model, loss, output, replaced), _float(output.dtype))
    if len(logits.shape) == 1:
        logits = ops.expand_dims(logits, -1)
    lead, classes = ops.shape(logits)[:-1], logits.shape[-1]
    flat = ops.reshape(logits, (-1, classes))
    task = "regression" if target is None else task_of(loss, target, logits)
    if target is None and config.kind == "specific":
        raise ModelError(
            f"Sensitivity(kind='specific') needs targets, but model {model.name!r} has no compiled loss that takes "
            "them, or no `y` was given. Use kind='unspecific'."
        )
    if config.reduction == "mean_of_abs" and len(logits.shape) > 2:
        raise ModelError(
            f"Sensitivity(reduction='mean_of_abs') needs outputs of shape (batch, outputs), but an output of model "
            f"{model.name!r} has shape {tuple(logits.shape)}. Use reduction='abs_of_mean'."
        )
    bad = included = None
    if task != "regression":
        _check_targets(model, loss, task, target, logits)
    if target is not None and task == "integer":
        target, included, bad = _class_numbers(loss, target, flat, classes)
    specific = task != "regression" and config.kind in ("auto", "specific")

    def shares() -> Any:
        alpha = ops.ones((1, classes), flat.dtype) / classes
        if specific:
            alpha = ops.cast(target_weights(task, _flat_targets(task, target, flat), classes), flat.dtype)
        joined = _joined(lead, weights, mask, included, flat.dtype)
        omega = position_weights(ops.shape(flat)[0], joined, flat.dtype)
        return ops.broadcast_to(ops.reshape(omega, (-1, 1)) * alpha, ops.shape(flat))

    if not specific:
        passes = passes_of(config.estimator, config.samples, classes)
        return Terms(flat, shares, config.estimator, passes, factor, bad)
    if config.reduction == "mean_of_abs" and task not in ("integer", "binary"):  # several outputs per example
        return Terms(flat, shares, "exact", classes, factor, bad)
    return Terms(flat, shares, None, 1, factor, bad)


def _float(dtype: Any) -> str:
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def _check_targets(model: Any, loss: Any, task: str, target: Any, logits: Any) -> None:
    """Refuses targets of the wrong size per example, as far as shapes are known."""
    of_positions = task in ("integer", "binary")
    wanted = logits.shape[1:-1] if of_positions else logits.shape[1:]
    sizes = [None if None in shape else math.prod(shape) for shape in (tuple(target.shape[1:]), tuple(wanted))]
    if None not in sizes and sizes[0] != sizes[1]:
        need = "class number per position" if of_positions else "target per output"
        raise ModelError(
            f"The targets of model {model.name!r} have shape {tuple(target.shape)}, but its outputs have shape "
            f"{tuple(logits.shape)}; the loss {_loss_name(loss)} needs one {need}."
        )


def _flat_targets(task: str, target: Any, flat: Any) -> Any:
    """Targets as `target_weights` takes them: class numbers, or floats of shape (positions, classes)."""
    return target if task == "integer" else ops.cast(ops.reshape(target, (-1, flat.shape[-1])), flat.dtype)


def _class_numbers(loss: Any, target: Any, flat: Any, classes: int) -> tuple[Any, Any, Any]:
    """Flat class numbers, the positions that count (None for all), and whether one is out of range (None: no matter).

    A loss that Keras does not know may give numbers out of range a meaning of its own (say, -100 for "no label"): such
    positions are left out and not called bad.
    """
    numbers = ops.cast(ops.reshape(target, (-1,)), "int32")
    wrong = ops.logical_or(numbers < 0, numbers >= classes)
    if _loss_name(loss) not in _TASKS:
        return numbers, ops.logical_not(wrong), None
    ignored = getattr(loss, "ignore_class", None)
    if ignored is None:
        return numbers, None, ops.any(wrong)
    included = ops.not_equal(numbers, ignored)
    return numbers, included, ops.any(ops.logical_and(wrong, included))


def _joined(lead: Any, weights: Any, mask: Any, included: Any, dtype: str) -> Any | None:
    """Product of sample weight, mask (both broadcast over the leading axes `lead`) and `included` (flat already)."""
    product = included if included is None else ops.cast(included, dtype)
    for part in (weights, mask):
        if part is None:
            continue
        part = ops.cast(part, dtype)
        while len(part.shape) > len(lead) and part.shape[-1] == 1:
            part = ops.squeeze(part, -1)
        while len(part.shape) < len(lead):
            part = ops.expand_dims(part, -1)
        part = ops.reshape(ops.broadcast_to(part, lead), (-1,))
        product = part if product is None else product * part
    return product
