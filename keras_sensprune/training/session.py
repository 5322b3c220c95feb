"""Attach the pruning rule to a model, and detach it again; the step function for custom loops."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_sensprune.errors import argument_error
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.formulas.structures import Block, NofM
from keras_sensprune.records import PruneRecord
from keras_sensprune.training.moment import Moment
from keras_sensprune.training.rules import PruningRule
from keras_sensprune.training.sidecar import SideCar, path_argument
from keras_sensprune.training.step import SESSION, PruningSession


def attach(
    model: Any, sensitivity: Sensitivity, structure: str | Block | NofM = "weight", *, with_factor: bool = False
) -> PruningSession:
    """Attaches a new session to a model's `train_step`, for `fit`."""
    detach(model)
    session = PruningSession(model, sensitivity, structure=structure, with_factor=with_factor)
    session.attach(in_fit=True)
    session.retrace()
    return session


def attached(model: Any) -> PruningSession | None:
    """The session on a model, if it is being pruned now."""
    return vars(model).get(SESSION) if isinstance(model, keras.Model) else None


def detach(model: Any) -> bool:
    """Takes the pruning hooks off a model; its weights stay as they are.

    `fit` does this at its end and when an exception passes through a training step or a callback. One that is raised
    elsewhere (a Ctrl-C in between, an error in the validation) reaches no hook; then this function (or
    `with pruning(model)`) restores the model.

    Args:
        model: any object; a model that is not attached is left alone.

    Returns:
        Whether there was something to take off.

    Raises:
        Nothing.

    Example:
        >>> import keras
        >>> from keras_sensprune import detach
        >>> detach(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        False
    """
    session = attached(model)
    if session is None:
        return False
    session.detach()
    return True


@contextlib.contextmanager
def pruning(model: Any) -> Iterator[Any]:
    """A block after which the model is guaranteed to be free of pruning hooks, however it is left.

    Args:
        model: a Keras model that is trained with `PruneAtEpochEnd` inside the block.

    Returns:
        A context manager that yields the model.

    Raises:
        ArgumentError: if `model` is no Keras model.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, pruning
        >>> layer = keras.layers.Dense(1, kernel_regularizer=SensitivityRegularizer(1e-4))
        >>> model = keras.Sequential([keras.Input((2,)), layer])
        >>> model.set_weights([np.array([[0.5], [0.01]]), np.zeros(1)])
        >>> model.compile(keras.optimizers.SGD(1e-6), "mse")
        >>> x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
        >>> with pruning(model):
        ...     history = model.fit(x, y, verbose=0, callbacks=[PruneAtEpochEnd(threshold=0.1)])
        >>> history.history["compression"]
        [2.0]
    """
    if not isinstance(model, keras.Model):
        raise argument_error("model", "a Keras model", model)
    try:
        yield model
    finally:
        detach(model)


class PruningStep:
    """A training step with the pruning rule, for custom loops; made by `make_pruning_step`.

    Attributes:
        records: one `PruneRecord` per pruning, those before a loaded state included.
    """

    def __init__(self, session: PruningSession):
        self._session = session
        self.records: list[PruneRecord] = []
        self._sidecars: dict[str, SideCar] = {}
        detach(session.model)
        session.attach(in_fit=False)
        for weight in session.weights:
            weight.take_zeros()
        session.silence()

    def __call__(self, data: Any) -> Any:
        """One step on a batch; safe inside `tf.function` and `strategy.run`."""
        return self._session.rule.step(data)

    def prune(self, threshold: float | PruningRule, moment: Moment | None = None) -> PruneRecord:
        """Sets every prunable |w| (or group) below the threshold to zero; raises TrainingError after a bad step.

        Args:
            threshold: T >= 0, or a rule such as `SparsityTarget`.
            moment: what the rule's schedule needs: `Moment(epoch, epochs, steps_per_epoch)`.
        """
        self._session.raise_if_unhealthy()
        self.records.append(self._session.prune(threshold, moment))
        return self.records[-1]

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Writes what no checkpoint of the model holds, as `PruneAtEpochEnd(state_path=...)` does.

        Call it once before the first step and then after each pruning, before the model is saved: the file keeps the
        last two states, so that one of them belongs to the saved model whenever the process dies.

        Args:
            path: a file; replaced as a whole, never written half.

        Raises:
            ArgumentError: if no file can be made there.
            DataError: if there is a file that this step has neither saved nor loaded, or the disk does not take it.
        """
        self._sidecar(path).save(self._session, len(self.records), self.records)

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """Puts back the state that belongs to the model, which must have been restored before.

        Args:
            path: a file that `save_state` wrote.

        Returns:
            How many prunings lie before the state; `records` holds their records.

        Raises:
            ArgumentError: if `path` is no path of a file.
            DataError: if the file is missing, damaged, of another model, or none of its states has as many updates as
                the model's optimizer.

        Example:
            >>> import keras
            >>> from keras_sensprune import SensitivityRegularizer, make_pruning_step
            >>> layer = keras.layers.Dense(1, kernel_regularizer=SensitivityRegularizer(1e-4))
            >>> model = keras.Sequential([keras.Input((2,)), layer])
            >>> model.compile("sgd", "mse")
            >>> with make_pruning_step(model) as step:
            ...     record = step.prune(threshold=10.0)
            ...     step.save_state("pruning.state")
            >>> with make_pruning_step(model) as step:
            ...     step.load_state("pruning.state")
            1
        """
        self.records = list(self._sidecar(path).restore(self._session) or ())
        self._session.silence()
        return len(self.records)

    def _sidecar(self, path: str | os.PathLike[str]) -> SideCar:
        key = os.path.abspath(path_argument("path", path))
        if key not in self._sidecars:
            self._sidecars[key] = SideCar(path, name="path")
        return self._sidecars[key]

    def close(self) -> None:
        """Takes the hooks off the model."""
        self._session.detach()

    def __enter__(self) -> PruningStep:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def make_pruning_step(
    model: Any,
    sensitivity: Sensitivity | None = None,
    train_step: Callable[[Any], Any] | None = None,
    structure: str | Block | NofM = "weight",
) -> PruningStep:
    """A step for custom training loops: the very function that `fit` uses.

    Args:
        model: a built and compiled Keras model with a `SensitivityRegularizer` on at least one weight.
        sensitivity: the configuration; None means `Sensitivity()`.
        train_step: `train_step(data) -> logs`, one update of the model's weights; None means
            `model.train_step`. If it computes its loss through `model.compute_loss`, the forward pass is shared.
        structure: what is pruned together, as in `PruneAtEpochEnd`.

    Returns:
        A callable `step(data) -> logs` with `step.prune(threshold)`, `step.records`, `step.save_state(path)` and
        `step.load_state(path)` (see docs/resume.md), and `step.close()`; also a context manager.
        `data` is what `model.train_step` takes: x, (x, y) or (x, y, sample_weight).

    Raises:
        ArgumentError, ModelError, BackendError: if the model cannot be pruned as it is.

    Example:
        >>> import keras, numpy as np, tensorflow as tf
        >>> from keras_sensprune import SensitivityRegularizer, make_pruning_step
        >>> layer = keras.layers.Dense(1, kernel_regularizer=SensitivityRegularizer(1e-4))
        >>> model = keras.Sequential([keras.Input((2,)), layer])
        >>> model.compile("sgd", "mse")
        >>> batch = tf.ones((8, 2)), tf.ones((8, 1))
        >>> with make_pruning_step(model) as step:
        ...     compiled = tf.function(step)
        ...     for _ in range(3):
        ...         logs = compiled(batch)
        ...     record = step.prune(threshold=10.0)
        >>> record.nonzero
        1
    """
    if train_step is not None and not callable(train_step):
        raise argument_error("train_step", "a function data -> logs, or None", train_step)
    return PruningStep(PruningSession(model, sensitivity or Sensitivity(), train_step, structure))
