"""PruneAtEpochEnd: what the user passes to `fit`."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from keras_sensprune.errors import argument_error, number_argument
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.formulas.structures import Block, NofM, structure_argument
from keras_sensprune.records import PruneRecord
from keras_sensprune.training.session import attach, detach
from keras_sensprune.training.step import PruningSession
from keras_sensprune.training.targets import prunable_weights


class PruneAtEpochEnd(keras.callbacks.Callback):
    r"""Applies the sensitivity rule in every step of `fit` and sets small weights to zero after every epoch.

    After an epoch every regularized $|w| < T$ becomes 0 and stays 0 until the end of `fit`; weights that are zero
    when `fit` begins stay zero as well. If `fit` validates, the pruning happens just before, so that `val_*`
    describes the pruned model. The logs get `sparsity` (fraction of zeros), `compression` (weights / nonzero) and
    `penalty` (strength * sum of R over the decoupled weights), for History, the progress bar, TensorBoard and any
    other callback that is listed after this one.

    Args:
        threshold: $T \ge 0$ on $|w|$, or on the root mean square of a group.
        sensitivity: which sensitivity the rule uses; None means `Sensitivity()`.
        start_epoch: first epoch (from 0) after which weights are pruned; the shrinkage acts from the first step.
        frequency: prune after every so many epochs.
        keep_last_good: keep a copy of all weights and of the optimizer's state, of the start and then of the last
            good epoch, in host memory, and restore it when training meets a value that is not finite.
        structure: what is pruned together: `"weight"`, each weight alone; `"unit"`, all incoming weights of an output
            unit or filter (never of the model's output layers); `Block(1, 4)` or `Block(1, 16)`, consecutive inputs
            of a unit; `NofM(kept=2, of=4)`, where at each pruning every group of 4 inputs keeps its 2 largest weights
            whatever the threshold, if it is above 0. Weights to which it does not apply are pruned one by one.

    Returns:
        A Keras callback. Its attribute `records` holds one `PruneRecord` per epoch of the last `fit`, with threshold 0
        where no pruning was due.

    Raises:
        ArgumentError: if an argument is not allowed.
        ModelError: at the start of `fit`, if no weight of the model carries a `SensitivityRegularizer`, or the
            structure applies to none of them.
        TrainingError: at an epoch's end, if a step met NaN, infinity, or a class label out of range.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer
        >>> layer = keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(1e-4))
        >>> model = keras.Sequential([keras.Input((4,)), layer])
        >>> model.set_weights([np.linspace(-1, 1, 12).reshape(4, 3), np.zeros(3)])
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x, y = np.ones((6, 4), "float32"), np.array([0, 1, 2, 0, 1, 2])
        >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[PruneAtEpochEnd(threshold=0.2)])
        >>> history.history["sparsity"][-1] > 0
        True

    Reference: Tartaglione et al., NeurIPS 2018.
    """

    def __init__(
        self,
        threshold: float = 1e-3,
        sensitivity: Sensitivity | None = None,
        start_epoch: int = 0,
        frequency: int = 1,
        keep_last_good: bool = False,
        *,
        structure: str | Block | NofM = "weight",
    ):
        super().__init__()
        self.threshold = number_argument("threshold", threshold, "a finite number of at least 0")
        if sensitivity is not None and not isinstance(sensitivity, Sensitivity):
            raise argument_error("sensitivity", "a Sensitivity or None", sensitivity)
        for name, value, low in (("start_epoch", start_epoch, 0), ("frequency", frequency, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise argument_error(name, f"an integer of at least {low}", value)
        self.structure = structure_argument(structure)
        self.sensitivity = sensitivity or Sensitivity()
        self.start_epoch = start_epoch
        self.frequency = frequency
        self.keep_last_good = bool(keep_last_good)
        self.records: list[PruneRecord] = []
        self._session: PruningSession | None = None
        self._epoch: int | None = None  # the epoch that is running and not yet closed by a pruning
        self._begun = False
        self._start = 0
        self._good: list[Any] | None = None
        self._floored: set[str] = set()

    def set_model(self, model: Any) -> None:
        """Checks the model. Hooks left from a `fit` that broke off are taken off; `evaluate` attaches nothing."""
        super().set_model(model)
        detach(model)
        prunable_weights(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Attaches the rule to the model's train step."""
        self.records, self._floored, self._good, self._begun = [], set(), None, False
        self._session = attach(self.model, self.sensitivity, self.structure)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before the first epoch (when every other callback has restored what it restores) zeros become permanent."""
        if self._session is not None and not self._begun:
            for weight in self._session.weights:
                weight.take_zeros()
            self._session.silence()
            self._start = sum(weight.nonzero() for weight in self._session.weights)
            self._begun = True
            self._keep_good()
        self._epoch = epoch

    def on_test_begin(self, logs: Any = None) -> None:
        """The validation inside `fit`: prune first, so that it describes the pruned model."""
        if self._session is not None and self._epoch is not None:
            self._close_epoch(self._epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Prunes if validation has not done it, and writes the logs."""
        if self._session is None:
            return
        if self._epoch is not None:
            self._close_epoch(epoch)
        if logs is not None and self.records:
            last = self.records[-1]
            logs.update(sparsity=last.sparsity, compression=last.compression, penalty=last.penalty)

    def _close_epoch(self, epoch: int) -> None:
        session = self._session
        assert session is not None
        self._epoch = None
        try:
            session.raise_if_unhealthy()
        except Exception:
            if self._good is not None:
                for variable, value in self._good:
                    variable.assign(value)
            self._finish()
            raise
        due = epoch >= self.start_epoch and (epoch - self.start_epoch) % self.frequency == 0
        record = session.prune(self.threshold if due else 0.0, epoch)
        self.records.append(record)
        for label in set(record.kept_by_floor) - self._floored:
            self._floored.add(label)
            warnings.warn(
                f"All weights of {label!r} are below the threshold {self.threshold:g}; its largest one was kept so "
                "that the layer is not empty. Lower the threshold or the strength for this layer.",
                stacklevel=2,
            )
        self._keep_good()

    def _keep_good(self) -> None:
        """Copies the weights, and the state of the optimizer: with NaN there, the next step would spoil them again."""
        if not self.keep_last_good:
            return
        optimizer = self.model.optimizer
        if not optimizer.built:  # before the first step
            with self.model.distribute_strategy.scope():
                optimizer.build(self.model.trainable_variables)
        variables = [*self.model.weights, *optimizer.variables]
        self._good = [(variable, variable.numpy().copy()) for variable in variables]

    def on_train_end(self, logs: Any = None) -> None:
        """Applies the masks once more (EMA and restored weights come after the last epoch) and detaches."""
        session = self._session
        if session is None:
            return
        for weight in session.weights:
            weight.remask()
        session.silence()
        end = sum(weight.nonzero() for weight in session.weights)
        self._finish()
        pruned_at = [r for r in self.records if r.threshold > 0]
        if pruned_at and end == self._start and self.threshold > 0:
            warnings.warn(
                f"PruneAtEpochEnd(threshold={self.threshold:g}) pruned nothing in {len(pruned_at)} epoch(s): no "
                "regularized weight was that small. Train longer, or raise the threshold or the strength.",
                stacklevel=2,
            )

    def _finish(self) -> None:
        if self._session is not None:
            self._session.detach()
        self._session, self._epoch, self._good = None, None, None
