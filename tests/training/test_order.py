"""Where PruneAtEpochEnd stands among other callbacks, and what is left when one of them raises."""

import functools

import keras
import numpy as np
import pytest

from keras_sensprune import PruneAtEpochEnd, SensitivityRegularizer, detach, pruning
from keras_sensprune.errors import ModelError
from keras_sensprune.training import order
from keras_sensprune.training.session import attached
from tests.training import test_fit
from tests.training.test_fit import LOSS, X, Y, pristine, regularized, zeros
from tests.training.test_revived import eager

fit = functools.partial(test_fit.fit, batch_size=16)

HOOKS = [
    f"on_{phase}_{end}" for phase in ("train", "epoch", "train_batch", "test", "test_batch") for end in ("begin", "end")
]


class Watch(keras.callbacks.Callback):
    """Notes the logs and the zeros at the end of each epoch, and whether the pruning was over when training ended."""

    def __init__(self):
        super().__init__()
        self.seen, self.attached_at_end = [], None

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((logs.get("sparsity"), zeros(self.model)))

    def on_train_end(self, logs=None):
        self.attached_at_end = attached(self.model) is not None


class Forwarding(keras.callbacks.Callback):
    """A callback that calls others, of which Keras knows nothing."""

    def __init__(self, *inner):
        super().__init__()
        for name in ("set_model", "set_params", *HOOKS):
            setattr(self, name, lambda *args, name=name, **kwargs: [getattr(c, name)(*args, **kwargs) for c in inner])


class Failing(keras.callbacks.Callback):
    """Raises in one hook."""

    def __init__(self, hook, error):
        super().__init__()

        def fail(*args, **kwargs):
            raise error

        setattr(self, hook, fail)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_other_callback_sees_the_pruned_weights_and_our_logs(place):
    model = eager()
    others = [Watch(), Watch()]
    given = [*others[:place], PruneAtEpochEnd(0.1), *others[place:]]
    as_given = list(given)
    history = model.fit(X, Y, epochs=3, batch_size=16, verbose=0, callbacks=given).history
    assert given == as_given  # the user's own list is left alone
    assert 0 < history["sparsity"][0] < history["sparsity"][-1]
    for watch in others:
        assert [logged for logged, _ in watch.seen] == history["sparsity"]
        np.testing.assert_allclose([there for _, there in watch.seen], history["sparsity"], atol=1e-12)  # rounding
        assert watch.attached_at_end
    assert pristine(model)


@pytest.mark.parametrize("prepared", [True, False])
def test_the_same_callback_serves_several_fits(prepared):
    model, pruner, watch = eager(), PruneAtEpochEnd(0.1), Watch()
    callbacks = [watch, pruner]
    if prepared:
        callbacks = keras.callbacks.CallbackList(callbacks, add_history=True, model=model, epochs=2)
    for _ in range(2):
        model.fit(X, Y, epochs=2, batch_size=16, verbose=0, callbacks=callbacks)
        assert watch.seen[-1][0] == pruner.records[-1].sparsity > 0
        assert zeros(model) == pytest.approx(pruner.records[-1].sparsity, abs=1e-12)  # rounding
        assert pristine(model)
    assert len(watch.seen) == 4
    if prepared:
        assert sum(isinstance(c, order.Closing) for c in callbacks.callbacks) == 1


@pytest.mark.parametrize("way", ["inside another callback", "a list that is not found"])
def test_where_the_list_is_out_of_reach_pruning_works_as_before(way, monkeypatch):
    model, pruner, watch = eager(), PruneAtEpochEnd(0.1), Watch()
    if way == "inside another callback":
        callbacks = [Forwarding(pruner, watch)]
    else:
        monkeypatch.setattr(order, "_list_of", lambda callback: None)
        callbacks = [pruner, watch]
    history = fit(model, *callbacks)
    assert watch.seen[-1][0] == history["sparsity"][-1] > 0
    assert zeros(model) == pytest.approx(history["sparsity"][-1], abs=1e-12)  # rounding
    assert watch.attached_at_end is False  # nothing closes after the other callbacks
    assert pristine(model)


def test_two_of_them_in_one_fit_are_refused_and_one_named_twice_is_one():
    model = eager()
    for first in (PruneAtEpochEnd(0.1), Forwarding(PruneAtEpochEnd(0.1))):
        with pytest.raises(ModelError) as caught:
            fit(model, first, PruneAtEpochEnd(0.2))
        assert str(caught.value) == (
            "Two PruneAtEpochEnd callbacks are in the list of one `fit`. Pass one; it prunes all weights with a "
            "SensitivityRegularizer."
        )
        assert pristine(model)
    pruner = PruneAtEpochEnd(0.1)
    history = fit(model, pruner, pruner)
    assert len(pruner.records) == len(history["sparsity"]) == 3


def test_an_exception_in_any_hook_of_another_callback_takes_our_hooks_off():
    keras.utils.set_random_seed(0)
    constraint = keras.constraints.MaxNorm(3.0)
    layer = keras.layers.Dense(4, kernel_regularizer=SensitivityRegularizer(1e-2), kernel_constraint=constraint)
    model = keras.Sequential([keras.Input((12,)), layer])
    model.compile("sgd", LOSS, run_eagerly=True)
    fit(model, PruneAtEpochEnd(0.0), epochs=1, validation_data=(X, Y))
    before = set(vars(model))
    for number, hook in enumerate(HOOKS):
        error = (RuntimeError("mine"), KeyboardInterrupt())[number // 2 % 2]  # each at begins and ends
        callbacks = [Failing(hook, error), PruneAtEpochEnd(0.1)]
        with pytest.raises(type(error)):
            fit(model, *callbacks[:: (-1) ** number], epochs=1, validation_data=(X, Y))
        assert attached(model) is None, hook
        assert not {"train_step", "compute_loss"} & set(vars(model)), hook
        assert layer.kernel.constraint is constraint, hook
    assert set(vars(model)) - before <= {"_eval_epoch_iterator"}  # of Keras


def test_an_exception_while_closing_takes_the_hooks_off(monkeypatch):
    model, pruner = eager(), PruneAtEpochEnd(0.1)
    monkeypatch.setattr(pruner._patterns.__class__, "find", lambda self, weights: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(model, pruner)
    assert pristine(model)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_end"])
def test_out_of_reach_an_exception_is_cleaned_up_by_pruning_detach_or_the_next_fit(hook, monkeypatch):
    monkeypatch.setattr(order, "_list_of", lambda callback: None)
    for clean_up in ("pruning", "detach", "fit"):
        model = eager()
        callbacks = [Failing(hook, RuntimeError("mine")), PruneAtEpochEnd(0.1)]
        if clean_up == "pruning":
            with pytest.raises(RuntimeError, match="mine"), pruning(model):
                fit(model, *callbacks)
        else:
            with pytest.raises(RuntimeError, match="mine"):
                fit(model, *callbacks)
            assert detach(model) if clean_up == "detach" else fit(model, PruneAtEpochEnd(0.1))["sparsity"]
        assert pristine(model)
        assert all(v.constraint is None for v in regularized(model))
