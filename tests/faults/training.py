"""Faults while a model is trained: after each, the model is as it was apart from its weights, and trains on."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_sensprune
from keras_sensprune import PruneAtEpochEnd, make_pruning_step, pruning
from keras_sensprune.errors import TrainingError
from tests.training.test_fit import MODELS, X, Y, compiled, fit, pristine, zeros
from tests.training.test_order import Failing

HOOKS = (
    *("on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_epoch_end"),
    *("on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end", "on_train_end"),
)
TRAINING = str(Path(keras_sensprune.__file__).parent / "training")


def fresh(run_eagerly: bool = True) -> Any:
    """Dense layers and Adam; eager, which needs no compilation, unless asked otherwise."""
    return compiled(MODELS["nested"], optimizer=keras.optimizers.Adam(0.01), run_eagerly=run_eagerly)


@functools.cache
def unharmed(run_eagerly: bool) -> Any:
    """A model that never met a fault or our callback: others are compared with it."""
    return fresh(run_eagerly)


def assert_as_before(model: Any) -> None:
    """No hook is left; and it trains as one that never met a fault, from the same weights and optimizer state."""
    assert pristine(model)
    other = unharmed(model.run_eagerly)
    for m in (model, other):
        if not m.optimizer.built:
            m.optimizer.build(m.trainable_variables)
    state = [[*m.weights, *m.optimizer.variables] for m in (model, other)]
    for mine, its in zip(*state, strict=True):
        assert np.all(np.isfinite(mine.numpy()))
        its.assign(mine)
    for m in (model, other):
        fit(m, epochs=1, batch_size=16, shuffle=False)
    for mine, its in zip(*state, strict=True):
        np.testing.assert_array_equal(mine.numpy(), its.numpy())
    assert fit(model, PruneAtEpochEnd(0.1), epochs=1, batch_size=16)["sparsity"][0] == zeros(model) > 0
    assert pristine(model)


@contextlib.contextmanager
def raises(kind: type[BaseException]) -> Iterator[None]:
    """As `pytest.raises`, for runs without pytest."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} came")


def in_a_hook(hook: str, error: BaseException, before: bool) -> Callable[[Path], None]:
    """An exception of another callback, listed before or after ours."""

    def run(folder: Path) -> None:
        model, failing = fresh(), Failing(hook, error)
        callbacks = [failing, PruneAtEpochEnd(0.1)] if before else [PruneAtEpochEnd(0.1), failing]
        with raises(type(error)), pruning(model):
            fit(model, *callbacks, epochs=1, batch_size=16, validation_data=(X, Y))
        assert_as_before(model)

    return run


def in_a_step(error: BaseException) -> Callable[[Path], None]:
    """An exception in the forward pass of the second step: nobody has to detach."""

    def run(folder: Path) -> None:
        model, calls = fresh(), iter(range(100))
        layer = model.layers[-1]
        original = layer.call

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) > 0 and fit_runs:
                raise error
            return original(*args, **kwargs)

        fit_runs = [True]
        layer.call = call
        with raises(type(error)):
            fit(model, PruneAtEpochEnd(0.1))
        fit_runs.clear()
        del layer.call
        assert_as_before(model)

    return run


def ctrl_c_at_line(number: int) -> Callable[[Path], None]:
    """Ctrl-C when line `number` of our training code is about to run, counted over a `fit` of two epochs."""

    def run(folder: Path) -> None:
        model, counted = fresh(), [0]

        def trace_line(frame: Any, event: str, argument: Any) -> Any:
            if event == "line":
                counted[0] += 1
                if counted[0] == number:
                    raise KeyboardInterrupt
            return trace_line

        def trace(frame: Any, event: str, argument: Any) -> Any:
            return trace_line if frame.f_code.co_filename.startswith(TRAINING) else None

        def interrupted() -> bool:
            try:
                with pruning(model):
                    sys.settrace(trace)
                    fit(model, PruneAtEpochEnd(0.1), epochs=2, batch_size=16, validation_data=(X, Y))
            except KeyboardInterrupt:
                return True
            finally:
                sys.settrace(None)
            return False

        # In a thread of its own: between the last line of `with tf.GradientTape()` and its exit, no code can prevent
        # that TensorFlow goes on recording in this thread.
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(interrupted).result() == (counted[0] >= number)
        assert_as_before(model)

    return run


def ctrl_c_from_the_keyboard(seconds: float) -> Callable[[Path], None]:
    """A real SIGINT while compiled steps run."""

    def run(folder: Path) -> None:
        model = fresh(run_eagerly=False)
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
        begin = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epoch == 1 and timer.start())
        # A shell lets what it starts in the background ignore SIGINT: then this training would not end.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with raises(KeyboardInterrupt), pruning(model):
                fit(model, PruneAtEpochEnd(0.01), begin, epochs=10**6)
        finally:
            signal.signal(signal.SIGINT, before)
        assert_as_before(model)

    return run


def bad_value(value: float, bad: int) -> Callable[[Path], None]:
    """A value that is not finite in batch `bad`, of four per epoch: the weights of the epoch before come back."""

    def run(folder: Path) -> None:
        model = fresh(run_eagerly=False)
        good = [model.get_weights()]

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for step in range(12):
                x = X[:8].copy()
                x[3, 5] = value if step == bad else 0.0
                yield x, Y[:8]

        shapes = tf.TensorSpec((8, 12), tf.float32), tf.TensorSpec((8,), tf.int64)
        data = tf.data.Dataset.from_generator(batches, output_signature=shapes)
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: good.append(model.get_weights()))
        callbacks = [PruneAtEpochEnd(0.1, keep_last_good=True), keep]
        with raises(TrainingError):
            model.fit(data, epochs=3, steps_per_epoch=4, verbose=0, callbacks=callbacks)
        assert len(good) == 1 + bad // 4
        for mine, its in zip(model.get_weights(), good[-1], strict=True):
            np.testing.assert_array_equal(mine, its)
        assert_as_before(model)

    return run


def data_that_ends_early(folder: Path) -> None:
    """Fewer batches than were announced: Keras warns and stops, the last epoch is pruned, the hooks are off."""
    model = fresh(run_eagerly=False)
    batches = ((X[:8], Y[:8]) for _ in range(6))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback = PruneAtEpochEnd(0.1)
        model.fit(batches, epochs=4, steps_per_epoch=4, verbose=0, callbacks=[callback])
    assert any("ran out of data" in str(warning.message) for warning in caught)
    assert callback.records[-1].sparsity == zeros(model) > 0
    assert_as_before(model)


def data_that_fails(folder: Path) -> None:
    """An error of the disk in the third batch passes through the step: nobody has to detach."""
    model = fresh(run_eagerly=False)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from [(X[:8], Y[:8])] * 2
        raise OSError(5, "Input/output error")

    with raises(Exception):
        model.fit(batches(), epochs=2, steps_per_epoch=4, verbose=0, callbacks=[PruneAtEpochEnd(0.1)])
    assert_as_before(model)


def custom_loop(folder: Path) -> None:
    """Ctrl-C in a loop of the user's own, inside the `with` block of the step."""
    model = fresh()
    model.optimizer.build(model.trainable_variables)
    with raises(KeyboardInterrupt), make_pruning_step(model) as step:
        step((X[:8], Y[:8]))
        step.prune(0.1)
        raise KeyboardInterrupt
    assert_as_before(model)


def saved_while_hooked(folder: Path) -> None:
    """After a fault in another callback, before anything is detached: saving, evaluating and plain `fit` work."""
    model = fresh(run_eagerly=False)
    with raises(RuntimeError):
        fit(model, PruneAtEpochEnd(0.1), Failing("on_epoch_end", RuntimeError("mine")), epochs=1)
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(pathlib.Path(folder) / "model.keras")
    for mine, its in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert model.evaluate(X, Y, verbose=0)[0] == loaded.evaluate(X, Y, verbose=0)[0]
    assert zeros(model) == zeros(loaded) > 0
    keras_sensprune.detach(model)
    assert_as_before(model)
