"""sparsify: a budget in, a sparse network out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_sensprune.errors import ArgumentError, ModelError, argument_error, integer_argument, number_argument
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.planning.borrowing import borrowed, check_compiled
from keras_sensprune.planning.feed import digest, make_feed
from keras_sensprune.planning.phases import Trainer, choose_monitor
from keras_sensprune.planning.progress import ProgressFile, described, described_layers
from keras_sensprune.planning.run import Plan, Run
from keras_sensprune.planning.target import check_size_of
from keras_sensprune.records import to_dict
from keras_sensprune.records.planning import Budget, SparsifyRecord
from keras_sensprune.training.callback import PruneAtEpochEnd
from keras_sensprune.training.regularizer import SensitivityRegularizer
from keras_sensprune.training.targets import add_regularizer, prunable_weights

SHRUNK = 1.0  # the strength that we choose: so much, in units of -log, goes from an insensitive weight in a round
PATIENCE = 5


def sparsify(
    model: Any,
    data: Any,
    budget: Budget,
    validation_data: Any = None,
    *,
    metric: str | None = None,
    mode: str = "auto",
    dense_epochs: int = 20,
    round_epochs: int = 10,
    fine_epochs: int = 20,
    keep: float = 0.5,
    batch_size: int = 100,
    sensitivity: Sensitivity | None = None,
    size_of: Callable[[Any], int] | None = None,
    callbacks: Sequence[Any] = (),
    folder: Any = None,
    say: Callable[[str], None] | None = print,
) -> SparsifyRecord:
    r"""Trains a model, prunes it round by round as far as a budget allows, and fine-tunes what is left.

    Three kinds of phases, all of them plain `fit`, in which the learning rate falls along a half cosine, from that of
    the compiled optimizer to a hundredth of it: the *dense* one; *rounds*; and the *fine-tuning* with the zeros kept.
    In the first half of a round, at the full rate, the rule shrinks the weights, and epoch by epoch those with the
    lowest $|w|$ of all tensors together go, until the share $q$ = `keep` of the living ones is left; in the second half
    these are trained. Then the validation error decides: within the budget, the next round follows; else the last
    good weights come back and smaller steps are tried, twice (see `keras_sensprune.planning.rounds`).

    If no weight carries a `SensitivityRegularizer`, all kernels are given one for the time of the call, whose strength
    takes $1 - e^{-1}$ = 63 % from an insensitive weight in a round. When the function returns or raises, the
    regularizers, the optimizer with its learning rate, and the compiled loss and metrics are as before. The weights are
    the last good ones.

    Args:
        model: a built and compiled Keras model; with an accuracy among its metrics the error is that of its answers.
        data: arrays (x, y) or (x, y, sample_weight), or a finite `tf.data.Dataset` of batches. Where a dataset does not
            know how many batches it has, they are counted once.
        budget: a `Budget`.
        validation_data: the same as `data`. None: the last tenth of the arrays, which then is not trained on.
        metric: name of the quantity that decides, `"loss"` or a compiled metric. None: the accuracy, or else the loss.
        mode: `"min"` if less of it is better, `"max"`, or `"auto"`: a loss falls, a metric says it itself, as in Keras.
            The error of what grows is 100 * (1 - value).
        dense_epochs: most epochs of the dense phase; 0 if the model is trained already.
        round_epochs: most epochs of a round.
        fine_epochs: most epochs of the fine-tuning; 0 for none.
        keep: $q$, the share of the weights that a round leaves, above 0 and below 1.
        batch_size: examples per step, for arrays.
        sensitivity: of the rule; None means `Sensitivity()`.
        size_of: function model -> bytes, for `Budget(bytes=...)`; see `SizeTarget`.
        callbacks: of `fit`, for every phase; epochs are counted through all phases.
        folder: where the progress is kept after every phase. A call that was killed goes on from there if it is
            called again with the same arguments and a model that is compiled alike, and one that was finished returns
            at once. The budget, all settings, the optimizer, the loss and the values of arrays must be the same.
        say: receives one line per phase; None is silent.

    Returns:
        A `SparsifyRecord`: every phase with its time, the final error and sparsity, and which budgets were not met.

    Raises:
        ArgumentError, ModelError: before training, if an argument is not allowed, or the model cannot become as sparse
            or small as asked; after the first epoch, if the minutes do not suffice for a second one.
        DataError: if what is in the folder is damaged or of another run, or the disk does not take it.
        TrainingError: if training diverges.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import Budget, sparsify
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
        >>> epochs = {"dense_epochs": 1, "round_epochs": 1, "fine_epochs": 1}
        >>> result = sparsify(model, (x, x[:, :1]), Budget(sparsity=0.75), say=None, **epochs)
        >>> result.sparsity, [phase.name for phase in result.phases]
        (0.75, ['dense', 'round 1', 'round 2', 'fine-tune'])

    Reference: Renda, Frankle and Carbin, "Comparing rewinding and fine-tuning", 2020, for the learning rate of a round.
    """
    plan = _plan(dense_epochs, round_epochs, fine_epochs, keep, sensitivity)
    if not isinstance(budget, Budget):
        raise argument_error("budget", "a Budget", budget, "For example Budget(error=0.5, minutes=10).")
    _check_callbacks(callbacks)
    if say is not None and not callable(say):
        raise argument_error("say", "a function that takes a text, or None", say)
    check_size_of(budget, size_of)
    check_compiled(model)
    feed = make_feed(data, validation_data, batch_size, say)
    with borrowed(model) as start:
        _mark(model, -math.expm1(-SHRUNK / (feed.steps * max(1, round_epochs // 2))))
        monitor = choose_monitor(feed.first_look(model), metric, mode, model)
        targets = prunable_weights(model)
        settings = {
            "budget": to_dict(budget),
            "metric": [monitor.name, monitor.percent],
            "epochs": [dense_epochs, round_epochs, fine_epochs],
            "keep": plan.keep,
            "sensitivity": {**vars(plan.sensitivity), "output_fn": plan.sensitivity.output_fn is not None},
            "optimizer": described(model.optimizer),
            "loss": described(model.loss),
            "batch_size": batch_size,
            "steps": feed.steps,
            "validation": feed.validation_text,
            "data": None if folder is None else feed.digest(),
            "weights": [[list(v.shape), str(v.dtype)] for v in model.weights],
            "layers": described_layers(model),
            "strengths": [[list(t.variable.shape), t.regularizer.strength] for t in targets],
        }
        begun_with = None if folder is None or dense_epochs else digest(model.get_weights())
        file = None if folder is None else ProgressFile(folder, settings, begun_with)
        trainer = Trainer(model, targets, feed, monitor, start, tuple(callbacks), PATIENCE)
        phases, stopped, unmet = Run(trainer, budget, plan, size_of=size_of, file=file, say=say).go()
    return SparsifyRecord(budget, monitor.name, monitor.percent, feed.validation_text, phases, stopped, unmet)


def _plan(dense_epochs: int, round_epochs: int, fine_epochs: int, keep: float, sensitivity: Sensitivity | None) -> Plan:
    integer_argument("dense_epochs", dense_epochs, 0)
    integer_argument("round_epochs", round_epochs, 1)
    integer_argument("fine_epochs", fine_epochs, 0)
    share = number_argument("keep", keep, "a fraction above 0 and below 1")
    if not 0 < share < 1:
        raise argument_error("keep", "a fraction above 0 and below 1", keep)
    if sensitivity is not None and not isinstance(sensitivity, Sensitivity):
        raise argument_error("sensitivity", "a Sensitivity or None", sensitivity)
    return Plan(dense_epochs, round_epochs, fine_epochs, share, sensitivity or Sensitivity())


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(c, keras.callbacks.Callback) for c in callbacks):
        raise argument_error("callbacks", "a list of callbacks of Keras", callbacks)
    if any(isinstance(callback, PruneAtEpochEnd) for callback in callbacks):
        raise argument_error("callbacks", "free of PruneAtEpochEnd, which sparsify adds itself", callbacks)


def _mark(model: keras.Model, strength: float) -> None:
    """Puts a regularizer on all kernels if there is none of ours."""
    if any(isinstance(variable.regularizer, SensitivityRegularizer) for variable in model.trainable_variables):
        return
    try:
        add_regularizer(model, SensitivityRegularizer(strength))
    except ArgumentError:
        others = [f"{v.path}: {type(v.regularizer).__name__}" for v in model.trainable_variables if v.regularizer]
        raise ModelError(
            f"Model {model.name!r} has weights with another regularizer ({', '.join(others)}), so sparsify does not "
            "put its own on all kernels. Remove that regularizer, or put a SensitivityRegularizer on the weights that "
            "shall be pruned: then the others are left alone."
        ) from None
