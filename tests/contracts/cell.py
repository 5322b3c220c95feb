"""One cell of the contract table: a model, trained by a route, must keep what the package promises.

python -m tests.contracts.cell "LSTM, two replicas" "LSTM, jit"      in a process with two logical CPUs, for which
                                                                    it is too late in one that runs TensorFlow
"""

import contextlib
import functools
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer, make_pruning_step
from keras_sensprune.training.step import SESSION
from tests.contracts.models import MODELS, examples, loss_of, model_of
from tests.contracts.routes import ROUTES, Route, batches
from tests.steps import with_step

EPOCHS, STEPS, BATCH = 2, 5, 4
STRENGTH = 0.02
CELLS = {f"{m}, {r}": (m, r) for m, case in MODELS.items() for r, route in ROUTES.items() if route.takes(case)}


@dataclass
class Run:
    """What a training said, and what was seen before the rule was taken off."""

    sparsity: list[float]
    record: Any
    masks: list[np.ndarray]
    sensitivities: list[np.ndarray]
    train_function: Any = None  # the model's own, when training began


def check(name: str, quick: bool = False) -> None:
    """Raises AssertionError, or whatever else goes wrong, if the cell breaks a promise.

    Args:
        name: of CELLS.
        quick: whether the decay is looked at in one update only, with its sensitivity.
    """
    model_name, route_name = CELLS[name]
    route, case = ROUTES[route_name], MODELS[model_name]
    keras.backend.clear_session()
    with _environment(route):
        _check_zeros(route, case)
        if not quick:
            _check_decay(route, case, Sensitivity("none"), EPOCHS, STEPS)
        _check_decay(route, case, Sensitivity(every=1), 1, _accumulated(route))  # one update: so its S is known


@functools.cache
def _strategy(replicas: int) -> Any:
    """One for all cells of a process: see docs/limits.md."""
    return tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(replicas)])


@contextlib.contextmanager
def _environment(route: Route) -> Iterator[None]:
    """The dtype policy and the strategy of a route."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(route.policy)
    scope = contextlib.nullcontext()
    if route.replicas > 1:
        scope = _strategy(route.replicas).scope()
    try:
        with scope:
            yield
    finally:
        keras.config.set_dtype_policy(policy)


def _compiled(route: Route, case: Any, rate: float, steps: int) -> tuple[Any, dict[str, Any]]:
    """(model, its examples for so many steps as `fit` takes them)."""
    model = model_of(case, STRENGTH, route.masked)
    if route.own is not None:  # the user's own class, whatever the model is otherwise
        with_step(model, route.own)
    x, y = examples(case, model, steps * BATCH)
    optimizer = keras.optimizers.Adam(rate, **route.optimizer)
    if route.policy == "mixed_float16":  # Keras's scale of 2^15 spoils the first ten steps of EfficientNetB0
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1.0)
    model.compile(optimizer, loss_of(y), **route.compile)
    return model, {"x": x, "y": y, "batch_size": BATCH, "epochs": 1}


def _regularized(model: Any) -> list[Any]:
    return [v for v in model.trainable_variables if isinstance(v.regularizer, SensitivityRegularizer)]


def _values(model: Any) -> list[np.ndarray]:
    return [v.numpy() for v in _regularized(model)]


def _zeros(model: Any) -> float:
    values = _values(model)
    return sum(int(np.sum(v == 0)) for v in values) / sum(v.size for v in values)


def _updates(model: Any) -> int:
    """How often the optimizer has changed the weights, by its own count."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


# The two ways to train


class Watch(keras.callbacks.Callback):
    """Listed before the pruner, so that it comes before the rule is attached and before it is taken off."""

    def __init__(self, pruner: PruneAtEpochEnd):
        super().__init__()
        self.pruner = pruner
        self.train_function: Any = None
        self.weights: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.train_function = self.model.train_function

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.weights = self.pruner._session.weights
        _held(self.weights)


def _held(weights: list[Any]) -> None:
    for weight in weights:
        assert not np.any(weight.variable.numpy()[weight.mask.numpy() == 0]), f"{weight.label}: a zero has moved"


def _train(route: Route, model: Any, data: dict[str, Any], threshold: float, sensitivity: Sensitivity) -> Run:
    if route.loop:
        return _looped(model, data, threshold, sensitivity)
    pruner = PruneAtEpochEnd(threshold, sensitivity)
    watch = Watch(pruner)
    history = _fit(route, model, data, watch, pruner)
    seen = [w.mask.numpy() for w in watch.weights], [w.sensitivity.numpy() for w in watch.weights]
    return Run(history["sparsity"], pruner.records[-1], *seen, watch.train_function)


def _fit(route: Route, model: Any, data: dict[str, Any], *callbacks: Any) -> dict[str, list[float]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SensitivityRegularizer does nothing without")
        warnings.filterwarnings("ignore", "Your input ran out of data")  # Keras says so of any unknown length
        return model.fit(**route.data(data), shuffle=False, verbose=0, callbacks=list(callbacks)).history


def _looped(model: Any, data: dict[str, Any], threshold: float, sensitivity: Sensitivity) -> Run:
    sparsity = []
    with make_pruning_step(model, sensitivity) as step:
        compiled, weights = tf.function(step), step._session.weights
        for _ in range(data["epochs"]):
            for batch in batches(data):
                compiled(keras.tree.map_structure(tf.constant, batch))
                _held(weights)
            record = step.prune(threshold)
            sparsity.append(record.sparsity)
    return Run(sparsity, record, [w.mask.numpy() for w in weights], [w.sensitivity.numpy() for w in weights])


# The promises


def _check_zeros(route: Route, case: Any) -> None:
    """What was pruned is zero, is what was logged, and the model comes back."""
    model, data = _compiled(route, case, 1e-3, STEPS)
    before = _state(model)
    # Half of the smallest tensor at most, so that none is emptied; what is below it exists in that tensor for sure.
    threshold = min(float(np.median(np.abs(value))) for value in _values(model))
    run = _train(route, model, data | {"epochs": EPOCHS}, threshold, Sensitivity())
    assert len(run.sparsity) == EPOCHS, f"{len(run.sparsity)} epochs"
    assert 0 < run.sparsity[-1] < 1, f"sparsity {run.sparsity}"
    assert run.sparsity[-1] == run.record.sparsity, "history and records differ"
    assert abs(_zeros(model) - run.sparsity[-1]) < 1e-12, f"{_zeros(model)} is zero, logged {run.sparsity[-1]}"
    for value, mask in zip(_values(model), run.masks, strict=True):
        assert np.array_equal(value == 0, mask == 0), "zeros and mask differ"
        assert not np.any(np.signbit(value[value == 0])), "-0.0"
        assert np.isfinite(value).all(), "not finite"
    assert _state(model) == before, "something is left on the model"
    # None: the next fit traces a new one, to warn if it loses the zeros
    assert vars(model).get("train_function") in (run.train_function, None), "another train_function"
    _check_further_training(route, model, data)


def _state(model: Any) -> Any:
    """All that pruning touches but the weights."""
    hooks = {"train_step", "compute_loss", SESSION} & set(vars(model))
    parts = [[id(vars(layer).get(name)) for name in ("call", "activation")] for layer in model._flatten_layers()]
    variables = [(id(v.constraint), id(v.regularizer)) for v in model.trainable_variables]
    return hooks, parts, variables, model.get_config()


def _check_further_training(route: Route, model: Any, data: dict[str, Any]) -> None:
    """A plain `fit` moves the zeros again; `evaluate` works."""
    zeros = _zeros(model)
    assert np.isfinite(_fit(route, model, data)["loss"]).all(), "plain fit: the loss is not finite"
    assert _zeros(model) < zeros, "the zeros are held after training"
    found = model.evaluate(data["x"], data["y"], batch_size=BATCH, verbose=0, return_dict=True)
    assert np.isfinite(found["loss"]), "evaluate: the loss is not finite"


def _accumulated(route: Route) -> int:
    """Steps per update."""
    return route.optimizer.get("gradient_accumulation_steps", 1)


def _check_decay(route: Route, case: Any, sensitivity: Sensitivity, epochs: int, steps: int) -> None:
    """With learning rate 0 the weights change by w <- w (1 - strength max(0, 1 - S)) alone, once per update."""
    model, data = _compiled(route, case, 0.0, steps)
    start, updates = _values(model), _updates(model)
    run = _train(route, model, data | {"epochs": epochs}, 0.0, sensitivity)
    most = epochs * steps // _accumulated(route)  # Keras counts one more for each end of data of unknown length
    updates = min(_updates(model) - updates, most)  # fewer: a part for validation, skips of the loss scale
    assert updates >= max(1, most // 2), f"only {updates} updates"
    # n float32 roundings of w, and some five in the share that is taken away; doubled.
    tolerance = 2 * (updates + 5) * 2**-24
    for value, w, s in zip(_values(model), start, run.sensitivities, strict=True):
        assert (s.max() > 0) == (sensitivity.kind != "none"), "the sensitivity is not what was asked for"
        expected = w.astype("float64") * (1 - STRENGTH * np.maximum(0, 1 - s.astype("float64"))) ** updates
        worst = np.max(np.abs(value - expected) / np.maximum(np.abs(expected), 1e-30))
        assert worst <= tolerance, f"after {updates} updates off by {worst:.1e}, {tolerance:.1e} is allowed"


# Cells in a process of their own


def outcome(name: str) -> dict[str, Any]:
    """ok, reason of a failure, and seconds."""
    begun, reason = time.perf_counter(), ""
    try:
        check(name)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).strip() or "no message")[:600]
        reason = f"{type(error).__name__}: {text} ({os.path.basename(place.filename)}:{place.lineno})"
    return {"cell": name, "ok": not reason, "reason": reason, "seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
    for name in sys.argv[1:]:
        print(json.dumps(outcome(name)), flush=True)


if __name__ == "__main__":
    main()
