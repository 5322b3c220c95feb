"""BestAtSparsity: which epoch it chooses, what it restores and writes, and what it says when it cannot."""

import copy
import functools

import keras
import numpy as np
import pytest

from keras_sensprune import BestAtSparsity, PruneAtEpochEnd, SensitivityRegularizer
from keras_sensprune.errors import ArgumentError, ModelError
from tests.training import test_fit
from tests.training.test_fit import X, Y, pristine, zeros
from tests.training.test_revived import eager, said

fit = functools.partial(test_fit.fit, batch_size=16)
ROUNDING = 1e-12  # of 1 - nonzero / total in float64


class Script(keras.callbacks.Callback):
    """Writes given numbers into the logs, and notes the weights of each epoch."""

    def __init__(self, *values, name="score"):
        super().__init__()
        self.values, self.name, self.weights = values, name, []

    def on_epoch_end(self, epoch, logs=None):
        if self.values[epoch] is not None:
            logs[self.name] = self.values[epoch]
        self.weights.append(self.model.get_weights())


def target_of(epoch):
    """The sparsity of an epoch of `fit(eager(), PruneAtEpochEnd(0.1), epochs=4)`."""
    if not _SPARSITIES:
        _SPARSITIES.extend(fit(eager(), PruneAtEpochEnd(0.1), epochs=4)["sparsity"])
        assert len(set(_SPARSITIES)) == 4  # every epoch prunes something
    return _SPARSITIES[epoch]


_SPARSITIES: list[float] = []


@pytest.mark.parametrize(
    ("target", "mode", "values", "best"),
    [
        (None, "max", (9, 8, 7, 6), 0),  # any epoch will do
        (1, "max", (9, 2, 5, 4), 2),  # epoch 0 is the best one, but not sparse enough
        (1, "min", (0, 2, 5, 4), 1),
        (0, "max", (1, 5, 5, 5), 1),  # of equally good ones the first
        (1, "max", (9, float("nan"), 3, float("inf")), 2),
        (1, "max", (9, None, None, 1), 3),  # epochs without the quantity
    ],
)
def test_the_best_of_the_epochs_that_are_sparse_enough_is_restored(target, mode, values, best, tmp_path):
    model, script, path = eager(), Script(*values), tmp_path / "best.keras"
    callback = BestAtSparsity(0.0 if target is None else target_of(target), "score", mode, path)
    history = fit(model, script, callback, PruneAtEpochEnd(0.1), epochs=4)
    assert (callback.best_epoch, callback.best) == (best, values[best])
    assert callback.best_sparsity == history["sparsity"][best]
    for restored, then in zip(model.get_weights(), script.weights[best], strict=True):
        np.testing.assert_array_equal(restored, then)
    assert zeros(model) == pytest.approx(history["sparsity"][best], abs=ROUNDING)
    saved = keras.models.load_model(path)
    for written, then in zip(saved.get_weights(), script.weights[best], strict=True):
        np.testing.assert_array_equal(written, then)
    assert [file.name for file in tmp_path.iterdir()] == ["best.keras"]
    assert pristine(model)


def test_the_validation_describes_what_is_restored():
    model = eager()
    callback = BestAtSparsity(target_of(1), "val_accuracy", "auto")
    history = fit(model, callback, PruneAtEpochEnd(0.1), epochs=4, validation_data=(X, Y))
    now = model.evaluate(X, Y, verbose=0, return_dict=True, batch_size=16)
    assert callback.best == max(history["val_accuracy"][1:])
    assert now["accuracy"] == pytest.approx(callback.best, abs=1e-6)  # a mean of 32 zeros and ones in float32
    # the same weights in the same batches: equal up to the float32 sums of 32 examples
    assert now["loss"] == pytest.approx(history["val_loss"][callback.best_epoch], rel=1e-5)


def test_averages_that_are_swapped_in_are_what_is_restored():
    model = eager(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    callback = BestAtSparsity(0.01, "val_loss", "max")
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    history = fit(model, swap, callback, PruneAtEpochEnd(0.1), validation_data=(X, Y))
    now = model.evaluate(X, Y, verbose=0, return_dict=True, batch_size=16)
    # the averages go back and forth by sums, which costs an ulp per weight
    assert now["loss"] == pytest.approx(history["val_loss"][callback.best_epoch], rel=1e-5)
    assert zeros(model) == pytest.approx(callback.best_sparsity, abs=ROUNDING)


def test_a_target_that_is_met_exactly_is_met():
    layer = keras.layers.Dense(1, kernel_regularizer=SensitivityRegularizer(0.0))
    model = keras.Sequential([keras.Input((5,)), layer])
    model.set_weights([np.array([[0.9], [0.8], [0.7], [0.6], [0.1]]), np.zeros(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    callback = BestAtSparsity(0.2, "loss")
    model.fit(np.ones((4, 5)), np.ones((4, 1)), verbose=0, callbacks=[PruneAtEpochEnd(0.4), callback])
    assert callback.best_sparsity == 1 - 4 / 5 < 0.2  # in binary floating point


@pytest.mark.parametrize(
    ("sparsity", "values", "why"),
    [
        (0.99, (1, 2), "no epoch reached this sparsity; the sparsest was epoch 1 with {:.4g}"),
        (0.0, (None, None), "'val_score' was never in the logs"),
        (0.0, (float("nan"),) * 2, "'val_score' was finite in no epoch that reached this sparsity"),
    ],
)
def test_where_nothing_can_be_restored_it_says_why_and_leaves_the_model(sparsity, values, why, tmp_path, recwarn):
    model, script = eager(), Script(*values, name="val_score")
    callback = BestAtSparsity(sparsity, "val_score", "max", tmp_path / "best.keras")
    history = fit(model, PruneAtEpochEnd(0.1), script, callback, epochs=2)
    messages = said(recwarn)
    if values[0] is None:
        assert messages.pop(0) == (
            "BestAtSparsity(monitor='val_score') finds no validation in epoch 0: only epochs after which `fit` "
            "validates can be chosen. Pass `validation_data` to `fit`, or another `monitor`."
        )
    why = why.format(history["sparsity"][-1])
    assert messages == [
        f"BestAtSparsity(sparsity={sparsity:g}) restores nothing: {why}. The model is as training left it."
    ]
    assert (callback.best_epoch, callback.best, callback.best_sparsity) == (None, None, None)
    assert zeros(model) == pytest.approx(history["sparsity"][-1], abs=ROUNDING)
    for left, last in zip(model.get_weights(), script.weights[-1], strict=True):
        np.testing.assert_array_equal(left, last)
    assert not list(tmp_path.iterdir())


def test_best_weights_restored_by_another_callback_afterwards_are_told():
    stopping = keras.callbacks.EarlyStopping("score", mode="min", patience=9, restore_best_weights=True)
    model, callback = eager(), BestAtSparsity(target_of(2), "score", "max")
    with pytest.warns(UserWarning, match="Another callback has restored weights with the zeros of epoch 0"):
        fit(model, Script(1, 2, 3, 4), callback, stopping, PruneAtEpochEnd(0.1), epochs=4)
    assert zeros(model) == pytest.approx(target_of(0), abs=ROUNDING)


def test_each_fit_chooses_anew_and_a_copy_chooses_alike():
    callback, pruner = BestAtSparsity(0.0, "score", "max"), PruneAtEpochEnd(0.1)
    twin = copy.deepcopy(callback)
    for chosen, values, best in ((callback, (5, 4), 0), (callback, (1, 2), 1), (twin, (1, 2), 1)):
        model = eager()
        fit(model, Script(*values), chosen, copy.deepcopy(pruner), epochs=2)
        assert (chosen.best_epoch, chosen.best) == (best, max(values))


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path, monkeypatch):
    path = tmp_path / "best.keras"
    path.write_bytes(b"old")
    model = eager()

    def broken(file, **settings):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(model, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        fit(model, PruneAtEpochEnd(0.1), BestAtSparsity(0.0, "loss", path=path), epochs=1)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["best.keras"]
    assert pristine(model)


def test_without_pruning_it_is_refused():
    model = eager(strength=0.0)
    with pytest.raises(ModelError) as caught:
        fit(model, BestAtSparsity(0.5, "loss"), epochs=1)
    assert str(caught.value) == (
        "BestAtSparsity finds no `sparsity` in the logs. Put a PruneAtEpochEnd in the callbacks of this `fit`."
    )


def test_a_quantity_of_unknown_direction_is_refused_in_the_first_batch():
    model = eager()
    with pytest.raises(ArgumentError) as caught:
        fit(model, PruneAtEpochEnd(0.1), BestAtSparsity(0.5, "val_accuracyy"))
    assert str(caught.value) == (
        "Argument `monitor` must be a loss or metric of the model if mode is \"auto\". Received: 'val_accuracyy'. "
        'For anything else pass mode="min" or mode="max".'
    )
    assert int(model.optimizer.iterations.numpy()) == 1
    assert pristine(model)


@pytest.mark.parametrize(("monitor", "validated"), [("accuracyy", False), ("val_accuracyy", True)])
def test_a_quantity_that_is_not_logged_is_refused_after_the_first_epoch(monitor, validated):
    model = eager()
    settings = {"validation_data": (X, Y)} if validated else {}
    with pytest.raises(ArgumentError) as caught:
        fit(model, PruneAtEpochEnd(0.1), BestAtSparsity(0.5, monitor, "max"), **settings)
    names = sorted(
        ["accuracy", "loss", "sparsity", "compression", "penalty", *["val_accuracy", "val_loss"] * validated]
    )
    assert str(caught.value) == f"Argument `monitor` must be one of {', '.join(names)}. Received: {monitor!r}."
    assert pristine(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0,), "Argument `sparsity` must be a fraction in [0, 1). Received: 1.0. Percent are divided by 100."),
        ((90,), "Argument `sparsity` must be a fraction in [0, 1). Received: 90. Percent are divided by 100."),
        ((-0.1,), "Argument `sparsity` must be a fraction in [0, 1). Received: -0.1."),
        ((0.9, None), "Argument `monitor` must be the name of a quantity in the logs. Received: None."),
        ((0.9, "loss", "best"), "Argument `mode` must be one of 'auto', 'min', 'max'. Received: 'best'."),
        (
            (0.9, "loss", "min", "best.h5"),
            "Argument `path` must be a file name that ends in .keras, or None. Received: 'best.h5'.",
        ),
        (
            (0.9, "loss", "min", "no/such/best.keras"),
            "Argument `path` must be in a folder that exists. Received: 'no/such/best.keras'. Create the folder first.",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        BestAtSparsity(*arguments)
    assert str(caught.value) == message
