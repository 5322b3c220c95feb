"""Whatever overwrites or moves pruned weights: the zeros after `fit` are those of a logged epoch."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import (
    PruneAtEpochEnd,
    Sensitivity,
    SensitivityRegularizer,
    add_regularizer,
    make_pruning_step,
)
from tests.steps import OwnStep, with_step
from tests.training import test_fit
from tests.training.test_fit import LOSS, X, Y, compiled, pristine, regularized, zeros

fit = functools.partial(test_fit.fit, batch_size=16)
ROUNDING = 1e-12  # of 1 - nonzero / total in float64


def small(strength=1e-2):
    r = SensitivityRegularizer(strength)
    layers = [keras.layers.Dense(8, "relu", kernel_regularizer=r), keras.layers.Dense(4, kernel_regularizer=r)]
    return keras.Sequential([keras.Input((12,)), *layers])


def eager(optimizer=None, strength=1e-2):
    return compiled(small, strength, optimizer, run_eagerly=True)


def validated(model, *callbacks, **settings):
    return fit(model, *callbacks, validation_data=(X, Y), **settings)


def assert_describes(model, history, epoch):
    """`val_*` of an epoch is what the model gives now, and it has the zeros of that epoch."""
    now = model.evaluate(X, Y, verbose=0, return_dict=True, batch_size=16)
    for name, value in now.items():
        # the same weights in the same batches; SwapEMAWeights exchanges by sums, which costs an ulp per weight
        assert history[f"val_{name}"][epoch] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert zeros(model) == pytest.approx(history["sparsity"][epoch], abs=ROUNDING)
    assert pristine(model)


def said(caught):
    """The warnings for users among those that were caught; catching sets the filters for Keras's own aside."""
    return [str(w.message) for w in caught if w.category is UserWarning]


class AtEpochEnd(keras.callbacks.Callback):
    """Calls a function with the model in one hook."""

    def __init__(self, work, hook="on_epoch_end"):
        super().__init__()
        setattr(self, hook, lambda *args, **kwargs: work(self.model))


def placed(other, position):
    pruner = PruneAtEpochEnd(0.1)
    return [other, pruner] if position == "before" else [pruner, other]


def slow(*values):
    """A case that is much like a faster one."""
    return pytest.param(*values, marks=pytest.mark.slow)


BOTH = pytest.mark.parametrize("position", ["before", "after"])


# Averages of weights


@pytest.mark.parametrize(("momentum", "overwrite"), [(0.0, None), (0.99, None), (1.0, None), (0.5, 1), (0.9, 2)])
def test_averaged_weights_have_the_zeros_of_the_last_epoch(momentum, overwrite):
    settings = dict(use_ema=True, ema_momentum=momentum, ema_overwrite_frequency=overwrite)
    model = eager(keras.optimizers.SGD(0.05, **settings))
    history = fit(model, PruneAtEpochEnd(0.1))
    assert zeros(model) == pytest.approx(history["sparsity"][-1], abs=ROUNDING)
    assert history["sparsity"][-1] > 0
    averages = model.optimizer._model_variables_moving_average
    for variable, average in zip(model.optimizer._trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(variable, average)  # Keras puts the averages into the model
    assert not any(np.any(np.signbit(v.numpy()[v.numpy() == 0])) for v in regularized(model))  # +0.0, never -0.0


WRAPPED = {
    "loss scaling": lambda inner: keras.optimizers.LossScaleOptimizer(inner),
    "several optimizers": lambda inner: keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(inner)),
    "both": lambda inner: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(inner))
    ),
}


@pytest.mark.parametrize(
    ("wrapper", "swap_on_epoch", "position"),
    [
        (None, False, "before"),
        (None, True, "before"),
        (None, True, "after"),
        slow("loss scaling", True, "before"),
        slow("several optimizers", False, "before"),
        ("both", True, "after"),
    ],
)
def test_swapped_averages_are_validated_pruned(wrapper, swap_on_epoch, position):
    optimizer = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5)
    model = eager(WRAPPED[wrapper](optimizer) if wrapper else optimizer)
    during = []
    watch = AtEpochEnd(lambda model: during.append(zeros(model)), "on_test_batch_begin")
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)
    history = validated(model, *placed(swap, position), watch, validation_batch_size=32)
    assert history["sparsity"][-1] > history["sparsity"][0] > 0
    np.testing.assert_allclose(during, history["sparsity"], atol=ROUNDING)  # the averages, while they are validated
    assert_describes(model, history, -1)


def test_averages_without_swapping_are_not_what_was_validated():
    """As in Keras itself: `val_*` describes the weights, and the averages replace them when training ends."""
    seen = []
    model = eager(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    history = validated(model, PruneAtEpochEnd(0.1), AtEpochEnd(lambda model: seen.append(model.get_weights())))
    averages = model.get_weights()
    assert zeros(model) == pytest.approx(history["sparsity"][-1], abs=ROUNDING)
    model.set_weights(seen[-1])
    assert_describes(model, history, -1)
    assert any(np.any(a != b) for a, b in zip(averages, seen[-1], strict=True))


# Weights of an earlier epoch


@BOTH
@pytest.mark.parametrize("averaging", [False, True])
def test_best_weights_are_those_of_their_epoch(position, averaging):
    optimizer = keras.optimizers.SGD(0.05, use_ema=averaging, ema_momentum=0.5)
    model, weights = eager(optimizer), []
    stopping = keras.callbacks.EarlyStopping("val_loss", mode="max", patience=5, restore_best_weights=True)
    swap = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if averaging else []
    watch = AtEpochEnd(lambda model: weights.append(model.get_weights()))
    with pytest.warns(UserWarning, match="Another callback") as caught:
        history = validated(model, *swap, *placed(stopping, position), watch)
    assert stopping.best_epoch == 0
    assert_describes(model, history, 0)
    for now, then in zip(model.get_weights(), weights[0], strict=True):
        np.testing.assert_array_equal(now, then)
    percent = [f"{100 * s:.1f} %" for s in history["sparsity"]]
    assert percent[0] != percent[-1]
    same = max(epoch for epoch in range(3) if percent[epoch] == percent[0])  # the last epoch with these zeros is named
    assert said(caught) == [
        f"Another callback has restored weights with the zeros of epoch {same} (counted from 0). The model keeps them: "
        f"its sparsity is {percent[0]}, not the {percent[-1]} of the last epoch, 2. For the best epoch that is sparse "
        "enough use BestAtSparsity(sparsity=...)."
    ]


def test_an_epoch_before_anything_was_pruned_comes_back_dense_and_only_that_is_said():
    model = eager()
    stopping = keras.callbacks.EarlyStopping("val_loss", mode="max", patience=5, restore_best_weights=True)
    with pytest.warns(UserWarning, match="its sparsity is 0.0 %, not the") as caught:
        history = validated(model, stopping, PruneAtEpochEnd(0.1, start_epoch=1))
    assert len(said(caught)) == 1
    assert history["sparsity"][0] == 0 < history["sparsity"][1]
    assert_describes(model, history, 0)


def test_restored_weights_of_an_epoch_as_sparse_as_the_last_one_need_no_warning():
    model = eager()
    stopping = keras.callbacks.EarlyStopping("val_loss", mode="max", patience=5, restore_best_weights=True)
    history = validated(model, PruneAtEpochEnd(0.1, frequency=5), stopping)
    assert stopping.best_epoch < 2
    assert_describes(model, history, stopping.best_epoch)


@BOTH
def test_a_checkpoint_holds_the_weights_that_its_metric_describes(position, tmp_path):
    path = str(tmp_path / "best.keras")
    model = eager()
    checkpoint = keras.callbacks.ModelCheckpoint(path, "val_loss", mode="max", save_best_only=True)
    history = validated(model, *placed(checkpoint, position))
    saved = keras.models.load_model(path)
    assert_describes(saved, history, int(np.argmax(history["val_loss"])))
    assert zeros(saved) > 0


@pytest.mark.parametrize("position", [slow("before"), "after"])
def test_a_checkpoint_of_averages_holds_what_its_metric_describes(position, tmp_path):
    path = str(tmp_path / "{epoch}.keras")
    model = eager(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    pruner = PruneAtEpochEnd(0.1)
    callbacks = [swap, checkpoint, pruner] if position == "before" else [pruner, swap, checkpoint]
    history = validated(model, *callbacks)
    for epoch in range(3):
        assert_describes(keras.models.load_model(path.format(epoch=epoch + 1)), history, epoch)


def test_a_backup_continues_with_the_zeros_that_it_saved(tmp_path):
    def stop(model):
        raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)
    first = eager()
    with pytest.raises(KeyboardInterrupt):
        fit(first, backup, PruneAtEpochEnd(0.1), AtEpochEnd(stop))
    assert pristine(first)
    second = eager()
    callback = PruneAtEpochEnd(0.0)
    history = fit(second, backup, callback)
    assert [r.epoch for r in callback.records] == [1, 2]
    assert history["sparsity"] == [pytest.approx(zeros(first), abs=ROUNDING)] * 2
    assert zeros(second) == pytest.approx(zeros(first), abs=ROUNDING)
    assert zeros(first) > 0


# A dense snapshot


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_end", "on_epoch_end", "on_train_end"])
def test_a_dense_snapshot_gets_the_masks(hook, tmp_path):
    model = eager()
    path = str(tmp_path / "dense.weights.h5")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(path)
    assert zeros(model) == 0
    loader = AtEpochEnd(lambda model: model.load_weights(path), hook)
    history = fit(model, loader, PruneAtEpochEnd(0.1))
    assert zeros(model) == pytest.approx(history["sparsity"][-1], abs=ROUNDING)
    assert history["sparsity"][-1] > 0


# What optimizers keep

KEEP = {  # optimizers that move a weight further after its gradient has become zero
    "SGD": dict(learning_rate=0.05, momentum=0.9),
    "Adam": {},
    "Adamax": {},
    "Nadam": {},
    "Lamb": {},
    "Lion": {},
    "RMSprop": dict(momentum=0.9),
    "Ftrl": dict(learning_rate=0.1),
    "ScheduleFreeAdamW": {},
}
FORGET = {"Adagrad": {}, "Adafactor": {}}


def single(optimizer):
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(4, kernel_regularizer=SensitivityRegularizer(1e-2))
    model = keras.Sequential([keras.Input((12,)), layer])
    model.compile(optimizer, LOSS, run_eagerly=True)
    return model


SELDOM = {"Nadam", "Lamb", "ScheduleFreeAdamW", "Adafactor"}


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        *(slow(name, None) if name in SELDOM else (name, None) for name in KEEP | FORGET),
        *(slow("Adam", name) for name in ("loss scaling", "several optimizers")),
        ("Adam", "both"),
    ],
)
def test_when_the_mask_is_lifted_no_memory_of_the_optimizer_moves_a_dead_weight(name, wrapper):
    optimizer = getattr(keras.optimizers, name)(**(KEEP | FORGET)[name])
    model = single(WRAPPED[wrapper](optimizer) if wrapper else optimizer)
    fit(model, PruneAtEpochEnd(0.1), epochs=2)
    kernel = model.layers[0].kernel
    before = kernel.numpy()
    dead = before == 0
    assert 0 < dead.mean() < 1
    with pytest.warns(UserWarning, match="just pruned may grow again"):
        model.fit(np.zeros_like(X), Y, batch_size=8, verbose=0)  # inputs of zero: the kernel has no gradient
    after = kernel.numpy()
    assert np.all(after[dead] == 0)
    assert np.all(np.isfinite(after))
    if name in KEEP:
        assert np.mean(after[~dead] != before[~dead]) > 0.9


@pytest.mark.parametrize("settings", [dict(use_ema=True, ema_momentum=0.9), dict(gradient_accumulation_steps=5)])
def test_averages_and_accumulated_gradients_of_dead_weights_are_zero_at_the_end_of_an_epoch(settings):
    model, found = single(keras.optimizers.Muon(0.01, **settings)), []

    def look(model):
        optimizer, kernel = model.optimizer, model.layers[0].kernel.numpy()
        slots = [v.numpy() for v in optimizer.variables if tuple(v.shape) == kernel.shape]
        kept = [s for s in slots if np.any(s[kernel != 0])]
        found.append((len(kept), [bool(np.any(s[kernel == 0])) for s in kept]))

    fit(model, PruneAtEpochEnd(0.1), AtEpochEnd(look), batch_size=16)
    assert len(found) == 3  # after 2, 4 and 6 steps
    assert found[-1][0] == 2  # the momentum, and the average or the sum of gradients
    for kept, alive in found:
        assert kept > 0
        assert not any(alive)


# Constraints of the user

CONSTRAINTS = {
    "MaxNorm": (keras.constraints.MaxNorm(0.5), lambda norms, w: np.all(norms <= 0.5 * (1 + 1e-6))),
    "NonNeg": (keras.constraints.NonNeg(), lambda norms, w: np.all(w >= 0)),
    # 12 squares are summed in float32: relative error about 12 * 6e-8, and Keras adds 1e-7 to the norm
    "UnitNorm": (keras.constraints.UnitNorm(), lambda norms, w: np.all(np.abs(norms[norms > 0] - 1) < 2e-6)),
}


@pytest.mark.parametrize("own", [False, True], ids=["stock step", "own step"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_zeros_and_the_users_constraint_hold_together(name, own):
    constraint, holds = CONSTRAINTS[name]
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(4, kernel_regularizer=SensitivityRegularizer(1e-2), kernel_constraint=constraint)
    inputs = keras.Input((12,))
    model = keras.Model(inputs, layer(inputs))
    if own:
        with_step(model, OwnStep)
    model.compile(keras.optimizers.SGD(0.05), LOSS, run_eagerly=True)
    seen = []

    def look(model):
        w = layer.kernel.numpy()
        seen.append((bool(holds(np.linalg.norm(w, axis=0), w)), float(np.mean(w == 0))))

    history = fit(model, PruneAtEpochEnd(0.1), AtEpochEnd(look), AtEpochEnd(look, "on_train_batch_end"))
    at_end = [seen[i] for i in (2, 5, 8)]  # two steps, then the end of the epoch
    assert all(held for held, _ in seen)
    np.testing.assert_allclose([zero for _, zero in at_end], history["sparsity"], atol=ROUNDING)
    assert all(zero >= at_end[0][1] for _, zero in seen[3:])  # zeros stay zero in the steps
    assert 0 < history["sparsity"][-1] < 1
    assert layer.kernel.constraint is constraint


def test_a_constraint_that_sets_zeros_to_something_does_not_bring_them_back():
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(
        4, kernel_regularizer=SensitivityRegularizer(1e-2), kernel_constraint=lambda w: keras.ops.maximum(w, 0.05)
    )
    model = keras.Sequential([keras.Input((12,)), layer])
    model.compile("sgd", LOSS, run_eagerly=True)
    history = fit(model, PruneAtEpochEnd(0.1))
    assert zeros(model) == pytest.approx(history["sparsity"][-1], abs=ROUNDING)
    assert history["sparsity"][-1] > 0


# A second fit without the callback


@pytest.mark.parametrize("strength", [1e-2, 0.0])
def test_training_that_loses_the_zeros_warns_once_also_with_a_cached_train_function(strength, recwarn):
    model = compiled(small, strength)
    fit(model, epochs=1)  # traces the train function
    recwarn.clear()
    fit(model, PruneAtEpochEnd(0.1), epochs=1)
    assert zeros(model) > 0
    for _ in range(2):
        fit(model, epochs=1)
    assert said(recwarn) == [
        "SensitivityRegularizer does nothing without the PruneAtEpochEnd callback, and the weights that it has just "
        "pruned may grow again. Pass `callbacks=[PruneAtEpochEnd(...)]` to `fit`, or use `make_pruning_step` in a "
        "custom loop."
    ]
    assert zeros(model) < 0.05


def broken_off(model):
    def interrupt(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, PruneAtEpochEnd(0.1), keras.callbacks.LambdaCallback(on_epoch_end=interrupt))


def in_a_loop(model):
    with make_pruning_step(model) as step:
        step(next(iter(tf.data.Dataset.from_tensor_slices((X, Y)).batch(16))))
        step.prune(0.1)


def with_another_regularizer(model):
    fit(model, PruneAtEpochEnd(0.1), epochs=1)
    add_regularizer(model, SensitivityRegularizer(0.0))


@pytest.mark.parametrize("pruned", [broken_off, in_a_loop, with_another_regularizer])
def test_however_the_pruning_ended_training_that_loses_the_zeros_warns(pruned, recwarn):
    model = compiled(small, 1e-2)
    fit(model, epochs=1)  # the regularizer has warned once
    pruned(model)
    assert zeros(model) > 0
    recwarn.clear()
    fit(model, epochs=1)
    assert len([text for text in said(recwarn) if "may grow again" in text]) == 1


def test_a_model_that_was_fine_tuned_saved_and_loaded_warns_when_its_zeros_go(tmp_path, recwarn):
    model = compiled(small, 0.0)
    fit(model, PruneAtEpochEnd(0.1), epochs=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert zeros(loaded) > 0
    recwarn.clear()
    loaded.evaluate(X, Y, verbose=0)
    assert not said(recwarn)
    fit(loaded, epochs=1)
    assert len([text for text in said(recwarn) if "may grow again" in text]) == 1


def test_fine_tuning_with_the_callback_keeps_the_zeros_and_does_not_warn():
    model = eager()
    fit(model, PruneAtEpochEnd(0.1))
    dead = zeros(model)
    history = fit(model, PruneAtEpochEnd(0.0, Sensitivity("none")))
    assert history["sparsity"] == [pytest.approx(dead, abs=ROUNDING)] * 3
