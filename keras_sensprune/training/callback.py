"""PruneAtEpochEnd: what the user passes to `fit`."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_sensprune.errors import ModelError, argument_error, integer_argument
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.formulas.structures import Block, NofM, structure_argument
from keras_sensprune.records import PruneRecord
from keras_sensprune.training.machines import refuse_several_machines
from keras_sensprune.training.moment import Moment
from keras_sensprune.training.order import stand_first
from keras_sensprune.training.revived import EpochPatterns
from keras_sensprune.training.rules import PruningRule, rule_argument
from keras_sensprune.training.session import attach, attached, detach
from keras_sensprune.training.sidecar import SideCar, path_argument
from keras_sensprune.training.step import PruningSession
from keras_sensprune.training.strength import StrengthRule, strength_argument
from keras_sensprune.training.targets import prunable_weights


class PruneAtEpochEnd(keras.callbacks.Callback):
    r"""Applies the sensitivity rule in every step of `fit` and sets small weights to zero after every epoch.

    After an epoch every regularized $|w| < T$ becomes 0 and stays 0 until the end of `fit`; weights that are zero
    when `fit` begins stay zero as well. If `fit` validates, the pruning happens just before, so that `val_*`
    describes the pruned model. The logs get `sparsity` (fraction of zeros), `compression` (weights / nonzero),
    `penalty` (strength * sum of R over the decoupled weights) and, where a rule changes the strength,
    `strength_factor` (the factor in this epoch), for History, the progress bar, TensorBoard and any other callback.

    The place in the list of callbacks does not matter: this one moves to its front, so that checkpoints and best
    weights are taken after the pruning, and has the last word at the end of training. Then zeros that something else
    has overwritten (moving averages, a dense snapshot) are set once more. The weights of an earlier epoch, as
    `EarlyStopping(restore_best_weights=True)` restores them, are kept with the zeros of that epoch, and a warning
    says so; `BestAtSparsity` restores the best epoch that is sparse enough. Inside a callback of your own that calls
    others the place cannot be chosen: call this one first.

    Args:
        threshold: $T \ge 0$ on $|w|$, or on the root mean square of a group; or a rule that decides after each epoch
            what goes: `SparsityTarget`.
        sensitivity: which sensitivity the rule uses; None means `Sensitivity()`.
        start_epoch: first epoch (from 0) after which weights are pruned; the shrinkage acts from the first step.
        frequency: prune after every so many epochs.
        keep_last_good: keep a copy of all weights and of the optimizer's state, of the start and then of the last
            good epoch, in host memory, and restore it when training meets a value that is not finite.
        structure: what is pruned together: `"weight"`, each weight alone; `"unit"`, all incoming weights of an output
            unit or filter (never of the model's output layers); `Block(1, 4)` or `Block(1, 16)`, consecutive inputs
            of a unit; `NofM(kept=2, of=4)`, where at each pruning every group of 4 inputs keeps its 2 largest weights
            whatever the threshold, if it is above 0. Weights to which it does not apply are pruned one by one.
        state_path: a file beside Keras's checkpoints, for runs that can be stopped and resumed; None for none. At the
            start of `fit` and after every epoch it is given what no checkpoint holds: masks, sensitivities, counters,
            records, seeds. If the file exists when training begins, the model must have been restored to one of the
            two states in it (by BackupAndRestore, or loaded and trained with `initial_epoch`), and training goes on
            exactly from there. If it does not exist, training must begin at epoch 0, whatever the model was trained for
            before. Anything else is an error, and nothing is overwritten. Threshold, start epoch, frequency and the
            rule of the strength may be changed; docs/resume.md has a recipe.
        strength: a rule by which all strengths change from epoch to epoch: `StrengthRamp`, `StrengthPlateau` or
            `StrengthController`; None leaves them as they are.

    Returns:
        A Keras callback. Its attribute `records` holds one `PruneRecord` per epoch of the last `fit`, with threshold 0
        where no pruning was due, or a rule of the strength skipped it.

    Raises:
        ArgumentError: if an argument is not allowed; at the start of `fit`, if no file can be made at `state_path` or a
            rule cannot work.
        DataError: before the first step, if the file at `state_path` is damaged, missing though epochs have gone
            before, or does not belong to this model at this time; after an epoch, if it cannot be written.
        ModelError: at the start of `fit`, if no weight of the model carries a `SensitivityRegularizer`, or the
            structure applies to none of them, or if a second PruneAtEpochEnd is in the list; at once, in a process
            that trains on several machines.
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
        threshold: float | PruningRule = 1e-3,
        sensitivity: Sensitivity | None = None,
        start_epoch: int = 0,
        frequency: int = 1,
        keep_last_good: bool = False,
        *,
        structure: str | Block | NofM = "weight",
        state_path: str | os.PathLike[str] | None = None,
        strength: StrengthRule | None = None,
    ):
        super().__init__()
        refuse_several_machines()
        self.threshold = threshold
        self._rule = rule_argument(threshold)
        if sensitivity is not None and not isinstance(sensitivity, Sensitivity):
            raise argument_error("sensitivity", "a Sensitivity or None", sensitivity)
        self.start_epoch = integer_argument("start_epoch", start_epoch, 0)
        self.frequency = integer_argument("frequency", frequency, 1)
        self.structure = structure_argument(structure)
        self.sensitivity = sensitivity or Sensitivity()
        self.keep_last_good = bool(keep_last_good)
        self.state_path = None if state_path is None else path_argument("state_path", state_path)
        self.strength = strength_argument(strength)
        self.records: list[PruneRecord] = []
        self._session: PruningSession | None = None
        self._sidecar: SideCar | None = None
        self._epoch: int | None = None  # the epoch that is running and not yet closed by a pruning
        self._begun = False
        self._ordered = False  # whether we stand first and a closing callback last
        self._start = 0
        self._resumed = False
        self._due: tuple[int, ...] | None = None
        self._patterns = EpochPatterns()
        self._good: list[Any] | None = None
        self._floored: set[str] = set()

    def set_model(self, model: Any) -> None:
        """Checks the model. Hooks left from a `fit` that broke off are taken off; `evaluate` attaches nothing."""
        super().set_model(model)
        detach(model)
        prunable_weights(model)
        refuse_several_machines(model.distribute_strategy)
        self._ordered = stand_first(self, self._close, self._finish)

    def on_train_begin(self, logs: Any = None) -> None:
        """Attaches the rule to the model's train step."""
        if attached(self.model) not in (None, self._session):
            detach(self.model)
            raise ModelError(
                "Two PruneAtEpochEnd callbacks are in the list of one `fit`. Pass one; it prunes all weights with a "
                "SensitivityRegularizer."
            )
        self._patterns = EpochPatterns()
        self.records, self._floored, self._good, self._begun = [], set(), None, False
        number = getattr(self._rule, "threshold", None)
        self._sidecar = None if self.state_path is None else SideCar(self.state_path, number)
        self._session = attach(self.model, self.sensitivity, self.structure, with_factor=self.strength is not None)

    def _moment(self, epoch: int) -> Moment:
        """A moment of this `fit`."""
        params = self.params or {}  # a CallbackList that the user has made may have none
        return Moment(epoch, params.get("epochs"), params.get("steps"), self._due, self._resumed)

    def _is_due(self, epoch: int) -> bool:
        return epoch >= self.start_epoch and (epoch - self.start_epoch) % self.frequency == 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before the first epoch (when every other callback has restored what it restores) zeros become permanent."""
        if self._session is not None and not self._begun:
            with self._detached_by_errors():
                self._begin(self._session, epoch)
        self._epoch = epoch

    def _begin(self, session: PruningSession, epoch: int) -> None:
        """Takes up the state of the file, or makes today's zeros permanent."""
        before = None if self._sidecar is None else self._sidecar.begin(session, epoch)
        self._resumed = before is not None
        if before is None:
            for weight in session.weights:
                weight.take_zeros()
        session.silence()
        epochs = range(0 if self._resumed else epoch, self._moment(epoch).epochs or 0)
        self._due = tuple(filter(self._is_due, epochs)) if epochs else None
        self._start = sum(weight.nonzero() for weight in session.weights)
        if before is not None:
            self._take_up(before)
        self._rule.check(session, self._moment(epoch))
        if self.strength is not None:
            session.set_factor(self.strength.start(session, self._moment(epoch)))
        if self._sidecar is not None and before is None:
            self._sidecar.save(session, epoch, ())
        self._keep_good()
        self._begun = True

    def _take_up(self, records: Sequence[PruneRecord]) -> None:
        """Those of the epochs before the stop, at least one."""
        self.records = list(records)
        self._floored = {label for record in records for label in record.kept_by_floor}
        self._start = records[0].nonzero_before

    @contextlib.contextmanager
    def _detached_by_errors(self) -> Iterator[None]:
        """Nothing of ours stays on the model when the state cannot be read or written."""
        try:
            yield
        except BaseException:
            self._finish()
            raise

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
        logs = {} if logs is None else logs
        if self.records:
            last = self.records[-1]
            logs.update(sparsity=last.sparsity, compression=last.compression, penalty=last.penalty)
        with self._detached_by_errors():
            self._change_strength(self._session, epoch, logs)
            if self._sidecar is not None:
                self._sidecar.save(self._session, epoch + 1, self.records)

    def _change_strength(self, session: PruningSession, epoch: int, logs: dict[str, Any]) -> None:
        """Logs the factor of the epoch that is over and sets that of the next."""
        if self.strength is not None:
            logs["strength_factor"] = session.memory["factor"]
            session.set_factor(self.strength.after(session, self._moment(epoch), self.records[-1], logs))

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
        due = self._is_due(epoch)
        if due and self.strength is not None:
            session.settle()  # what is measured is what would be pruned
            due = self.strength.may_prune(session)
        record = session.prune(self._rule if due else 0.0, self._moment(epoch))
        self.records.append(record)
        self._patterns.note(record, session.weights)
        for label in set(record.kept_by_floor) - self._floored:
            self._floored.add(label)
            warnings.warn(
                f"All weights of {label!r} are below the threshold {record.threshold:g}; its largest one was kept so "
                "that the layer is not empty. Lower the threshold or the strength for this layer.",
                stacklevel=2,
            )
        self._keep_good()

    def _keep_good(self) -> None:
        """Copies the weights, and the state of the optimizer: with NaN there, the next step would spoil them again."""
        if not self.keep_last_good:
            return
        optimizer = self.model.optimizer  # None for a train_step with one of its own
        if optimizer is not None and not optimizer.built:  # before the first step
            with self.model.distribute_strategy.scope():
                optimizer.build(self.model.trainable_variables)
        variables = [*self.model.weights, *([] if optimizer is None else optimizer.variables)]
        self._good = [(variable, variable.numpy().copy()) for variable in variables]

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the pruning, unless a closing callback does it when all others have restored what they restore."""
        if not self._ordered:
            self._close()

    def _close(self) -> None:
        """Sees to the zeros of the weights that `fit` will return, and detaches."""
        session = self._session
        if session is None:
            return
        try:
            if not self._begun and self._sidecar is not None and self._sidecar.exists():  # no epoch was left to train
                before = self._sidecar.restore(session)
                if before:
                    self._take_up(before)
            came_back = self._patterns.find(session.weights)
            if came_back is None or came_back is self.records[-1]:  # averages, a snapshot of another time; or nothing
                session.remask()
            elif came_back.nonzero not in {r.nonzero for r in self.records if r.epoch == session.chosen}:
                self._tell_restored(came_back)
        finally:
            self._finish()
        pruned_at = [r for r in self.records if r.threshold > 0]
        if pruned_at and pruned_at[-1].nonzero == self._start:
            warnings.warn(
                f"PruneAtEpochEnd(threshold={self.threshold}) pruned nothing in {len(pruned_at)} epoch(s): no "
                "regularized weight was that small. Train longer, or raise the threshold or the strength.",
                stacklevel=2,
            )

    def _tell_restored(self, record: PruneRecord) -> None:
        last = self.records[-1]
        warnings.warn(
            f"Another callback has restored weights with the zeros of epoch {record.epoch} (counted from 0). The model "
            f"keeps them: its sparsity is {100 * record.sparsity:.1f} %, not the {100 * last.sparsity:.1f} % of the "
            f"last epoch, {last.epoch}. For the best epoch that is sparse enough use BestAtSparsity(sparsity=...).",
            stacklevel=2,
        )

    def _finish(self) -> None:
        if self._session is not None:
            self._session.detach()
        self._session, self._epoch, self._good = None, None, None
