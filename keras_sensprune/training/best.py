"""BestAtSparsity: the best epoch among those that are sparse enough."""

from __future__ import annotations

import math
import os
import pathlib
import secrets
import warnings
from typing import Any

import keras
import numpy as np
from keras.src.callbacks.monitor_callback import MonitorCallback  # private; tests/test_seams.py names it

from keras_sensprune.errors import ModelError, argument_error, choice_argument, fraction_argument
from keras_sensprune.training.session import attached

_ROUNDING = 1e-12  # of 1 - nonzero / total, which is at most 2^-53; one weight of 10^12 is this fraction


class BestAtSparsity(MonitorCallback):  # type: ignore[misc, unused-ignore]
    """Keeps the weights of the best epoch whose sparsity reaches a target, and restores them at the end of training.

    `EarlyStopping(restore_best_weights=True)` and `ModelCheckpoint(save_best_only=True)` mostly choose an early, dense
    epoch, because nothing is lost there. This callback compares only the epochs that are sparse enough. It needs
    `PruneAtEpochEnd` in the same `fit`, wherever in the list, and `val_*` describes the pruned weights that are kept.
    Of equally good epochs the first one is kept; an epoch whose value is not finite is not. The state of the optimizer
    is not restored.

    Args:
        sparsity: the target, a fraction of zeros in [0, 1), not percent; compared with `sparsity` in the logs.
        monitor: the quantity in the logs that is to be best.
        mode: `"min"`, `"max"`, or `"auto"`: a loss falls, and a compiled metric says it itself, as in Keras.
        path: a file name that ends in `.keras`. The model is written there at each improvement; the file gets its name
            when it is complete. None writes nothing.

    Returns:
        A Keras callback. After `fit` it has `best_epoch` (from 0), `best` (its value of `monitor`) and `best_sparsity`;
        all are None if no epoch reached the target. Then a warning says which one came closest, and the model stays as
        training left it.

    Raises:
        ArgumentError: if an argument is not allowed; after the first batch, if the direction of `monitor` is not
            known; after the first epoch, if it is not in the logs.
        ModelError: after the first epoch, if the logs have no `sparsity`.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import BestAtSparsity, PruneAtEpochEnd, SensitivityRegularizer
        >>> layer = keras.layers.Dense(1, kernel_regularizer=SensitivityRegularizer(0.1))
        >>> model = keras.Sequential([keras.Input((4,)), layer])
        >>> model.set_weights([np.array([[0.9], [0.6], [0.3], [0.1]]), np.zeros(1)])
        >>> model.compile(keras.optimizers.SGD(1e-6), "mse")
        >>> x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
        >>> best = BestAtSparsity(0.5, monitor="loss")
        >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[PruneAtEpochEnd(0.4), best])
        >>> best.best_sparsity, float(np.mean(model.get_weights()[0] == 0))
        (0.5, 0.5)
    """

    def __init__(self, sparsity: float, monitor: str = "val_loss", mode: str = "auto", path: Any = None):
        self.sparsity = fraction_argument("sparsity", sparsity, "Percent are divided by 100.")
        if not isinstance(monitor, str) or not monitor:
            raise argument_error("monitor", "the name of a quantity in the logs", monitor)
        super().__init__(monitor, choice_argument("mode", mode, ("auto", "min", "max")))
        self.path = None if path is None else _checked_path(path)
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.best_sparsity: float | None = None
        self.monitor_op: Any = None
        self._weights: list[np.ndarray] | None = None
        self._sparsest: tuple[float, int] = (-1.0, -1)  # sparsity, epoch
        self._seen = False  # whether `monitor` has been in the logs
        self._looked = False  # whether the logs of an epoch have been seen

    def on_train_begin(self, logs: Any = None) -> None:
        """Forgets an earlier `fit`."""
        self._forget()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """In the first batch Keras has built the metrics: refuses a quantity whose direction they do not tell."""
        if self.monitor_op is None and type(self.model).train_step is keras.Model.train_step:
            self._find_direction()

    def _find_direction(self) -> None:
        if self.monitor_op is not None:
            return
        try:
            self._set_monitor_op()
        except ValueError:
            raise argument_error(
                "monitor",
                'a loss or metric of the model if mode is "auto"',
                self.monitor,
                'For anything else pass mode="min" or mode="max".',
            ) from None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps the weights if this epoch is sparse enough and better than those before."""
        logs = logs or {}
        self._check(epoch, logs)
        self._find_direction()
        sparsity, value = logs["sparsity"], logs.get(self.monitor)
        self._sparsest = max(self._sparsest, (sparsity, epoch))
        self._seen |= value is not None
        if value is None or not math.isfinite(value) or sparsity < self.sparsity - _ROUNDING:
            return
        if self._is_improvement(value, self.best):
            self.best, self.best_epoch, self.best_sparsity = float(value), epoch, float(sparsity)
            self._weights = [weight.copy() for weight in self.model.get_weights()]
            self._write()

    def _check(self, epoch: int, logs: dict[str, Any]) -> None:
        """What is missing in the logs of the first epoch is said at once, not when training is over."""
        if self._looked:
            return
        self._looked = True
        if "sparsity" not in logs:
            raise ModelError(
                "BestAtSparsity finds no `sparsity` in the logs. Put a PruneAtEpochEnd in the callbacks of this `fit`."
            )
        if self.monitor in logs:
            return
        names = ", ".join(sorted(logs))
        validated = any(name.startswith("val_") for name in logs)
        if validated or not self.monitor.startswith("val_"):
            raise argument_error("monitor", f"one of {names}", self.monitor)
        warnings.warn(
            f"BestAtSparsity(monitor={self.monitor!r}) finds no validation in epoch {epoch}: only epochs after which "
            "`fit` validates can be chosen. Pass `validation_data` to `fit`, or another `monitor`.",
            stacklevel=2,
        )

    def _write(self) -> None:
        if self.path is None:
            return
        file = self.path.with_name(f".sensprune-{secrets.token_hex(8)}.keras")
        try:
            self.model.save(file)
            os.replace(file, self.path)
        finally:
            file.unlink(missing_ok=True)

    def on_train_end(self, logs: Any = None) -> None:
        """Restores the best weights, or says why there are none."""
        if self._weights is not None:
            self.model.set_weights(self._weights)
            session = attached(self.model)
            if session is not None:
                session.chosen = self.best_epoch
            self._weights = None
        elif self._looked:
            sparsity, epoch = self._sparsest
            if sparsity < self.sparsity - _ROUNDING:
                why = f"no epoch reached this sparsity; the sparsest was epoch {epoch} with {sparsity:.4g}"
            elif self._seen:
                why = f"{self.monitor!r} was finite in no epoch that reached this sparsity"
            else:
                why = f"{self.monitor!r} was never in the logs"
            warnings.warn(
                f"BestAtSparsity(sparsity={self.sparsity:g}) restores nothing: {why}. The model is as training "
                "left it.",
                stacklevel=2,
            )


def _checked_path(path: Any) -> pathlib.Path:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).endswith(".keras"):
        raise argument_error("path", "a file name that ends in .keras, or None", path)
    target = pathlib.Path(os.fspath(path))
    if not target.parent.is_dir():
        raise argument_error("path", "in a folder that exists", str(path), "Create the folder first.")
    if target.is_dir():
        raise argument_error("path", "the name of a file, not of a folder", str(path))
    return target
