"""One training step with the pruning rule: the user's step, the refresh of the sensitivities, the shrinkage."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_sensprune.errors import ModelError
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.training.batch import forward_terms, loss_terms, own_forward_is_cheaper
from keras_sensprune.training.conversion import conversion, unconverted
from keras_sensprune.training.gradients import SensitivityTape
from keras_sensprune.training.health import StepHealth
from keras_sensprune.training.outputs import Terms, model_terms
from keras_sensprune.training.pace import Pace
from keras_sensprune.training.refresh import Refresh, Sensed
from keras_sensprune.training.shrinkage import Shrinkage, shrink_in_place, shrinkages, subtract
from keras_sensprune.training.state import PrunedWeight
from keras_sensprune.training.targets import Target
from keras_sensprune.training.updates import looks_at_weights, real_updates

_LOSS_ARGUMENTS = ("x", "y", "y_pred", "sample_weight", "training")


class _Step(threading.local):
    """What one training step of one thread (= replica) has found so far."""

    convert: Callable[[Any], Any] = staticmethod(unconverted)  # to the user's functions: as where the step is called
    tape: SensitivityTape | None = None  # set while the user's train step runs under the tape
    active = False  # whether a training step is running at all
    probing = False  # whether a custom step is only traced, to see if it computes its loss through compute_loss
    calls = 0  # how often the loss was computed in this step
    in_place = False  # whether the shrinkage is subtracted where the loss is computed
    due: Any = False  # whether this step refreshes: a tensor, True or False
    batch: list[Any] | None = None  # its tensors
    shrinkages: list[Shrinkage] | None = None  # what is to be subtracted after the update


class RuleStep:
    """A training step: the user's own, with three things around it.

    An outer persistent tape, from which the sensitivities are taken where the loss is computed (so the forward pass is
    shared); the shrinkage, taken from the weights before the update; and flags for values that are not finite. The
    shrinkage is subtracted in place where the loss is computed, when the forward pass has read the weights and before
    they are updated. Where that is not known to come to the same (a `train_step` or `compute_loss` of the user's own,
    an update that may be skipped or that looks at the weights, several replicas), it is kept and subtracted after the
    update: the same rule at the price of one more copy of the weights during the step.

    Args:
        model: a built and compiled Keras model.
        targets: its prunable weights, and `weights` their states in the same order.
        sensitivity: the configuration.
        train_step: the user's step; it and `model.compute_loss` are read now, before hooks are installed.
    """

    def __init__(
        self,
        model: Any,
        targets: Sequence[Target],
        weights: Sequence[PrunedWeight],
        sensitivity: Sensitivity,
        train_step: Callable[[Any], Any],
    ):
        self.model, self.targets, self.weights = model, targets, weights
        self.sensitivity = sensitivity
        _refuse_compiled(train_step)
        self._user_step = train_step
        self._user_compute_loss = model.compute_loss
        self._losses: int | None = self._known_losses()
        own_loss = getattr(model.compute_loss, "__func__", None) is not getattr(keras.Model, "compute_loss", None)
        self._stock = self._losses == 1 and not own_loss
        self._apart = self._losses == 1 and self._replicas() == 1 and own_forward_is_cheaper(model, sensitivity)
        self._refresher = Refresh(model, weights, sensitivity)
        self._step = _Step()
        self.health = StepHealth()
        self.pace = Pace(sensitivity.every)
        self._programs: dict[bool, Any] | None = None  # refreshes -> the step, where these are two programs

    def _known_losses(self) -> int | None:
        """How often the user's step calls `compute_loss`: None means that it must be tried."""
        if self.sensitivity.output_fn is not None:
            return 0
        stock = getattr(keras.Model, "train_step", None)
        return 1 if getattr(self._user_step, "__func__", None) is stock else None

    def step(self, data: Any) -> Any:
        """The hooked train step: the user's step, with the refresh and the shrinkage where they are due.

        Args:
            data: one batch, as `train_step` takes it.

        Returns:
            What the user's step returns.
        """
        self._step.convert = conversion()
        return unconverted(self._program)(data)

    def _program(self, data: Any) -> Any:
        due = self.pace.due()
        if self._programs is None:
            return self._one_step(data, due)
        return tf.cond(due, lambda: self._programs[True](data), lambda: self._programs[False](data))

    def compile_apart(self, compiled: bool) -> bool:
        """From the next trace on compiles steps that refresh and steps that do not, as two programs of XLA.

        In one program the refresh would stand in a condition, and there XLA leaves convolutions on a CPU as they are:
        many times slower than the same ones outside. Where every step refreshes, there is one program anyway.

        Args:
            compiled: whether Keras would compile the steps with XLA.

        Returns:
            Whether the steps compile themselves now.
        """
        several = self._replicas() > 1
        if not compiled or several or self.pace.every == 1 or self.sensitivity.kind == "none":
            self._programs = None
        else:
            self._programs = {
                due: tf.function(functools.partial(self._one_step, due=due), autograph=False, jit_compile=True)
                for due in (True, False)
            }
        return self._programs is not None

    def _one_step(self, data: Any, due: Any) -> Any:
        losses = self._losses_of_step(data)
        self.health.begin(data)
        optimizer = getattr(self.model, "optimizer", None)  # a custom step may have one of its own
        state, updates = self._step, real_updates(optimizer)
        user_step = state.convert(self._user_step)
        state.active, state.calls, state.shrinkages = True, 0, None
        state.in_place = self._stock and updates is None and self._replicas() == 1
        state.in_place = state.in_place and not looks_at_weights(optimizer)
        state.due = due
        state.batch = [v for v in tf.nest.flatten(data, expand_composites=True) if tf.is_tensor(v)]
        try:
            if self.sensitivity.kind == "none":
                if not state.in_place:
                    self._take_shrinkages()
                logs = user_step(data)
            elif losses and not self._apart:
                with self._new_tape() as tape:
                    state.tape = tape
                    logs = user_step(data)
            else:
                x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
                self.health.check_labels(self._refresh(lambda: self._own_forward(x, y, sample_weight)))
                if not state.in_place:
                    self._take_shrinkages()
                logs = user_step(data)
            after = real_updates(optimizer)
            real = None if updates is None or after is None else ops.not_equal(updates, after)
            with self._with_batch():
                subtract(self.model.distribute_strategy, state.shrinkages or [], real)
                self.pace.end(state.due, real)
                self.health.end()
        finally:
            state.active, state.tape, state.due, state.shrinkages, state.batch = False, None, False, None, None
        return logs

    def _with_batch(self) -> Any:
        """For what is not computed from the batch, but must not run when there is none.

        Where data of unknown length end, a step of the graph is begun and fails; all that does not need its batch may
        have been done by then (so Keras itself counts one iteration more).
        """
        return tf.control_dependencies(self._step.batch or [])

    def _losses_of_step(self, data: Any) -> int:
        """How often `compute_loss` is called by the user's step; a custom step is traced once, unexecuted, to know."""
        if self._losses is None:
            self._step.active = self._step.probing = True
            self._step.calls = 0
            try:
                tf.function(self._step.convert(self._user_step), autograph=False).get_concrete_function(data)
            except Exception:  # what comes after the loss (an update under several replicas) need not be traceable
                pass
            finally:
                self._losses = self._step.calls
                self._step.active = self._step.probing = False
        if not self._losses and self.sensitivity.kind == "loss":
            raise ModelError(
                "Sensitivity(kind='loss') needs a train_step that calls `self.compute_loss(...)`. "
                "Call it there, or use another kind."
            )
        return self._losses

    def _replicas(self) -> int:
        return int(self.model.distribute_strategy.num_replicas_in_sync)

    def _new_tape(self) -> SensitivityTape:
        return SensitivityTape(self.model, self.targets, self.sensitivity.reduction)

    def _own_forward(self, x: Any, y: Any, sample_weight: Any) -> tuple[SensitivityTape, list[Terms]]:
        """A forward pass of our own, in inference mode."""
        self._step.active = False  # a loss that is computed here is not that of the user's step
        try:
            with self._new_tape() as tape:
                return tape, forward_terms(self.model, x, y, sample_weight, self.sensitivity)
        except NotImplementedError as error:
            raise ModelError(
                f"The sensitivities need a forward pass of model {self.model.name!r}, which it does not have: {error} "
                "Compute the loss in `train_step` through `self.compute_loss(...)`, say what the outputs are with "
                "Sensitivity(output_fn=...), or do without sensitivities: Sensitivity('none')."
            ) from error
        finally:
            self._step.active = True

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for `model.compute_loss`; outside of a training step it only passes the call on."""
        user_loss = conversion()(self._user_compute_loss)
        if not self._step.active:
            return user_loss(*args, **kwargs)
        return unconverted(self._loss_of_step)(user_loss, args, kwargs)

    def _loss_of_step(self, user_loss: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._step.calls += 1
        if self._step.probing:
            return user_loss(*args, **kwargs)
        tape, kind = self._step.tape, self.sensitivity.kind
        if kind == "loss" and tape is not None:
            with self._silent():
                loss = user_loss(*args, **kwargs)
            replicas = self._replicas()  # Keras has divided the loss by it
            terms = [loss_terms(loss * replicas)]
            self._refresh_and_shrink(tape, terms)
            coupled = [w.coupled_penalty() for w in self.weights if not w.regularizer.decoupled]
            loss = loss + sum(coupled) / replicas if coupled else loss
        else:
            given = dict(zip(_LOSS_ARGUMENTS, args, strict=False)) | kwargs
            if tape is not None:
                y, y_pred, sample_weight = (given.get(name) for name in ("y", "y_pred", "sample_weight"))
                self._refresh_and_shrink(tape, model_terms(self.model, y, y_pred, sample_weight, self.sensitivity))
            elif self._step.in_place and any(w.shrinks for w in self.weights):
                self._when_due(self._shrink_in_place)
            loss = user_loss(*args, **kwargs)
        self.health.check_loss(loss)
        return loss

    @contextlib.contextmanager
    def _silent(self) -> Iterator[None]:
        for weight in self.weights:
            weight.silent = True
        try:
            yield
        finally:
            for weight in self.weights:
                weight.silent = False

    def _refresh(self, sensed: Sensed, shrink: bool = False) -> Any:
        """Where it is due, stores the sensitivities of this batch, and shrinks in place if asked to.

        Returns:
            Whether a class number was out of range in a step that refreshes, a boolean tensor.
        """
        refresh, due = ops.convert_to_tensor(self.pace.refreshes), self._step.due
        if self._replicas() > 1:
            bad = self._refresher.together(sensed, refresh, due)
            with self._with_batch():
                self.pace.count_refresh(due)
            return bad

        def alone() -> Any:
            bad = self._refresher.alone(sensed, refresh)
            with self._with_batch():
                self.pace.count_refresh()
            if shrink:
                self._shrink_in_place()
            return bad

        return self._when_due(alone)

    def _refresh_and_shrink(self, tape: SensitivityTape, outputs: list[Terms]) -> None:
        """Both from a forward pass that is shared with the user's step; labels are checked in every step."""
        for output in outputs:
            self.health.check_labels(output.bad_labels)
        self._refresh(lambda: (tape, outputs), shrink=self._step.in_place)
        if not self._step.in_place:
            self._take_shrinkages()

    def _when_due(self, work: Callable[[], Any]) -> Any:
        """Does the work in the steps that refresh: a condition of the graph, unless every step does."""
        if self._step.due is True:
            return work()
        if self._step.due is False:
            return tf.constant(False)
        if self._apart and not tf.executing_eagerly():  # one node in other steps, where its loops would be hundreds
            work = tf.function(work, autograph=False, experimental_attributes={"_noinline": True})
        return tf.cond(self._step.due, work, lambda: tf.constant(False))

    def _shrink_in_place(self) -> Any:
        """The forward pass has read the weights; the optimizer's update comes after it."""
        with self._with_batch():
            shrink_in_place(self.weights, self.pace.steps())
        return tf.constant(False)

    def _take_shrinkages(self) -> None:
        """From the weights as they are before the update."""
        self._step.shrinkages = shrinkages(self.weights, self.pace.steps(), self._step.due)


def _refuse_compiled(train_step: Any) -> None:
    """A function that is compiled already may have been so before the hooks were there, and keeps them afterwards.

    Raises:
        ModelError: if the step is a `tf.function`.
    """
    if isinstance(train_step, tf.types.experimental.PolymorphicFunction):
        raise ModelError(
            "The train step is a tf.function of its own, into which pruning cannot be put. Take @tf.function off it: "
            "`fit` compiles the step, and in a loop of your own compile what `make_pruning_step` returns."
        )
