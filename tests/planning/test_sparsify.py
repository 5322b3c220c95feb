"""`sparsify` on a small problem: what it does, what it gives back, and how it ends."""

import math
import time
import types
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import Budget, PruneAtEpochEnd, SensitivityRegularizer, sparsify, sparsify_text
from keras_sensprune.errors import ArgumentError, ModelError, TrainingError
from keras_sensprune.planning import run
from keras_sensprune.planning.phases import Monitor
from keras_sensprune.planning.rounds import ALLOWED, NO_TIME, REACHED
from keras_sensprune.records import from_json, to_json
from keras_sensprune.training.regularizer import SensitivityRegularizer as Regularizer
from keras_sensprune.training.session import attached
from tests.planning.two_classes import EPOCHS, Diary, assert_as_before, coded, network, problem, refused, state, zeros

layers = keras.layers


@pytest.fixture(scope="module")
def finished():
    """One whole run with a target and everything else by default."""
    model, diary = network(), Diary()
    model.optimizer.build(model.trainable_variables)
    before, said = state(model), []
    options = {**EPOCHS, "round_epochs": 2, "say": said.append}
    result = sparsify(model, problem(), Budget(sparsity=0.75), callbacks=[diary], **options)
    return model, result, diary, before, said


def test_the_phases_lead_to_the_exact_sparsity(finished):
    model, result, _, _, said = finished
    assert [phase.name for phase in result.phases] == ["dense", "round 1", "round 2", "fine-tune"]
    assert [phase.nonzero for phase in result.phases] == [140, 70, 35, 35]
    assert (result.sparsity, result.compression, result.stopped, result.unmet) == (0.75, 4.0, REACHED, ())
    assert zeros(model) == 105
    assert len(said) == 4
    assert said[1].startswith("round 1: 70 of 140 weights (2.0x), 2 epochs in ")


def test_the_model_is_as_before_apart_from_its_weights(finished):
    model, _, _, before, _ = finished
    assert_as_before(model, before)


def test_a_callback_of_the_user_sees_all_epochs_in_order(finished):
    _, result, diary, _, _ = finished
    assert diary.epochs == list(range(7))  # 2 + 2 + 2 + 1
    assert sum(phase.epochs for phase in result.phases) == 7
    assert {"val_accuracy", "sparsity", "compression"} <= diary.keys


def test_the_learning_rate_falls_in_each_phase_and_begins_anew(finished):
    _, _, diary, _, _ = finished
    # In a phase of n epochs the middle of the last one is at p = 1 - 1 / (2 n).
    ends = [0.02 * (0.01 + 0.99 * (1 + math.cos(math.pi * (1 - 1 / (2 * n)))) / 2) for n in (1, 2)]
    # Two dense epochs; two rounds of one epoch at the full rate and one in which it falls; one of fine-tuning
    expected = {1: ends[1], 2: 0.02, 3: ends[0], 4: 0.02, 5: ends[0], 6: ends[0]}
    # float32 of the rate: 2^-24 relative
    assert {n: diary.rates[n] for n in expected} == pytest.approx(expected, rel=1e-6)


def test_the_error_is_that_of_the_returned_model_on_the_last_tenth(finished):
    model, result, _, _, _ = finished
    x, y = problem()
    wrong = np.argmax(model.predict(x[270:], verbose=0), axis=1) != y[270:]
    assert result.error == pytest.approx(100 * np.mean(wrong), abs=1e-3)  # rounded to four decimals
    assert result.validation == "the last 30 of 300 training examples"


def test_the_record_survives_json_and_has_a_table(finished):
    _, result, _, _, _ = finished
    assert from_json(to_json(result)) == result
    text = sparsify_text(result)
    added = 100 * (result.seconds - result.phases[0].seconds) / result.phases[0].seconds
    assert f"all that followed added {added:.0f} % of the dense training time" in text
    assert "75.0 % sparse; validation error" in text


def regression():
    """(model, data for training, for validation): all inputs count, so that every weight that goes costs something."""
    x, _ = problem()
    data = tf.data.Dataset.from_tensor_slices((x, x @ np.linspace(1, 2, 12, dtype="f")[:, None])).batch(50)
    model = keras.Sequential([keras.Input((12,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model, data.take(5), data.skip(5)


@pytest.mark.parametrize(("size", "size_of"), [("sparsity", None), ("bytes", coded)])
def test_the_error_wins_over_a_size(size, size_of):
    model, data, validation = regression()
    epochs = {"dense_epochs": 8, "round_epochs": 1, "fine_epochs": 0, "say": None}
    budget = Budget(error=0.01, **{size: {"sparsity": 0.9, "bytes": 110}[size]})
    result = sparsify(model, data, budget, validation, size_of=size_of, **epochs)
    assert (result.metric, result.percent, result.unmet, result.stopped) == ("loss", False, (size,), ALLOWED)
    assert result.error <= result.dense_error + 0.01
    assert not all(phase.accepted for phase in result.phases)
    last_good = [phase for phase in result.phases if phase.accepted][-1]
    assert zeros(model) == 12 - last_good.nonzero
    assert "not kept" in sparsify_text(result)
    assert f"not met: {size}" in sparsify_text(result)


def test_the_fine_tuning_counts_also_where_the_file_stays_too_large():
    model, data, validation = regression()
    epochs = {"dense_epochs": 8, "round_epochs": 4, "fine_epochs": 3, "say": None}
    # Of the variance of the target its three least weights have 1.00 + 1.19 + 1.40, its six least 8.7.
    result = sparsify(model, data, Budget(error=7.0, bytes=110), validation, keep=0.75, size_of=coded, **epochs)
    assert (result.unmet, result.stopped) == (("bytes",), ALLOWED)
    assert [(phase.name, phase.accepted) for phase in result.phases][-1] == ("fine-tune", True)
    assert coded(model) > 110


def zipped(model):
    """Bytes of the compressed kernels: they depend on the values, so a target of weights is a guess."""
    return len(zlib.compress(b"".join(w.tobytes() for w in model.get_weights() if w.ndim == 2), 9))


def test_bytes_are_met_with_one_more_round_where_the_first_guess_was_too_large():
    model = network()

    def size_of(model):
        """A file that is a tenth larger after training than it was foreseen."""
        trained = np.count_nonzero(model.layers[0].bias.numpy()) > 0
        return round((1.1 if trained else 1.0) * zipped(model))

    result = sparsify(model, problem(), Budget(bytes=300), size_of=size_of, **{**EPOCHS, "dense_epochs": 0})
    assert (result.stopped, result.unmet) == (REACHED, ())
    assert 300 - 30 <= size_of(model) <= 300  # the last search ends within a few weights of some 5 bytes each
    rounds = [phase for phase in result.phases if phase.name.startswith("round")]
    assert len(rounds) > 2  # halves lead to the first guess in two


def test_the_time_that_is_spent_on_asking_for_bytes_counts(monkeypatch):
    slept = [0.0]

    def slow(model):
        slept[0] += 30.0
        return coded(model)

    clock = types.SimpleNamespace(perf_counter=lambda: time.perf_counter() + slept[0])
    monkeypatch.setattr(run, "time", clock)
    result = sparsify(network(), problem(), Budget(bytes=275, minutes=1), size_of=slow, **EPOCHS)
    assert result.unmet == ("bytes", "minutes")
    assert result.stopped == NO_TIME
    assert [phase.name for phase in result.phases] == ["dense"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_the_model_is_as_before_with_the_last_good_weights(kind):
    def stop(epoch):
        if epoch == 2:  # in the first round; the dense phase had 0 and 1
            weights.extend(good)
            raise kind("stop")
        good[:] = model.get_weights()

    weights, good = [], []
    mine = SensitivityRegularizer(1e-3)
    model = network(mine)
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    with pytest.raises(kind):
        sparsify(model, problem(), Budget(sparsity=0.5), callbacks=[Diary(stop)], **EPOCHS)
    assert_as_before(model, before)
    assert model.layers[0].kernel.regularizer is mine
    for now, then in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)
    with pytest.warns(UserWarning, match="without the PruneAtEpochEnd callback"):  # the user's own regularizer is back
        model.fit(*problem(), verbose=0)


def test_minutes_that_do_not_suffice_for_two_epochs_are_refused_after_the_first_one():
    model, diary = network(), Diary()
    with pytest.raises(ArgumentError) as caught:
        sparsify(model, problem(), Budget(sparsity=0.5, minutes=1e-4), callbacks=[diary], **EPOCHS)
    assert str(caught.value).startswith("Argument `minutes` must be time for a few epochs: one takes ")
    assert len(diary.epochs) <= 1
    assert attached(model) is None
    assert not any(isinstance(v.regularizer, Regularizer) for v in model.weights)


def test_a_trained_model_is_only_measured_and_its_zeros_stay(monkeypatch):
    asked, ask = [], run.weights_to_keep
    monkeypatch.setattr(run, "weights_to_keep", lambda *arguments: asked.append(1) or ask(*arguments))
    model = network()
    kernel = model.layers[0].kernel.numpy()
    kernel[:5] = 0.0
    model.layers[0].kernel.assign(kernel)
    result = sparsify(model, problem(), Budget(sparsity=0.6), **{**EPOCHS, "dense_epochs": 0, "fine_epochs": 0})
    dense, first = result.phases
    assert (dense.name, dense.epochs, dense.nonzero, first.nonzero) == ("dense", 0, 90, 56)
    assert result.added is None
    assert len(asked) == 1  # for bytes it means writing some ten files
    assert not model.layers[0].kernel.numpy()[:5].any()


@pytest.mark.parametrize("budget", [Budget(error=10.0, sparsity=0.5), Budget(sparsity=0.5)])
def test_a_round_that_diverges_is_not_kept_and_others_are_tried(budget):
    class Explode(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:  # after `sparsify` has set the rate
                self.model.optimizer.learning_rate.assign(1e30)

    model = network(optimizer=keras.optimizers.SGD(0.05))
    before, diary = state(model), Diary()
    settings = {**EPOCHS, "metric": "loss"}
    result = sparsify(model, problem(), budget, callbacks=[Explode(), diary], **settings)
    _, first, second, *_ = result.phases
    assert (first.error, first.nonzero, first.accepted) == (None, 70, False)
    assert (second.nonzero, second.accepted) == (98, True)  # between 140 and 70
    assert (result.stopped, result.unmet) == (ALLOWED, ("sparsity",))
    assert diary.epochs[:4] == [0, 1, 3, 4]  # epoch 2 had no end
    assert from_json(to_json(result)) == result
    assert "diverged" in sparsify_text(result)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert_as_before(model, {**before, "optimizer": state(model)["optimizer"]})


def test_an_error_in_small_units_is_not_rounded_away():
    monitor = Monitor("loss", percent=False)
    assert monitor.rounded(4e-7 + 1e-8) == 4e-7 + 1e-8
    assert Monitor("accuracy", percent=True).rounded(1.18 + 0.2) == 1.38


def test_a_run_that_diverges_says_so():
    model = network(optimizer=keras.optimizers.SGD(1e30))
    with pytest.raises(TrainingError, match=r"After the phase 'dense' the validation loss is (nan|inf)"):
        sparsify(model, problem(), Budget(sparsity=0.5), metric="loss", **EPOCHS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": 0.5}, "Argument `budget` must be a Budget. Received: 0.5."),
        ({"budget": Budget(bytes=100)}, "Argument `size_of` must be a function model -> bytes if the budget has"),
        ({"size_of": len}, "Argument `size_of` must be a function model -> bytes if the budget has"),
        ({"metric": "val_acc"}, "Argument `metric` must be one of "),
        ({"dense_epochs": -1}, "Argument `dense_epochs` must be an integer of at least 0. Received: -1."),
        ({"round_epochs": 0}, "Argument `round_epochs` must be an integer of at least 1. Received: 0."),
        ({"fine_epochs": 1.5}, "Argument `fine_epochs` must be an integer of at least 0. Received: 1.5."),
        ({"keep": 1.0}, "Argument `keep` must be a fraction above 0 and below 1. Received: 1.0."),
        ({"batch_size": 0}, "Argument `batch_size` must be an integer of at least 1. Received: 0."),
        ({"sensitivity": "raw"}, "Argument `sensitivity` must be a Sensitivity or None. Received: 'raw'."),
        ({"callbacks": [PruneAtEpochEnd()]}, "Argument `callbacks` must be free of PruneAtEpochEnd"),
        ({"data": 3}, "Argument `data` must be (x, y) or (x, y, sample_weight)"),
        ({"folder": 3}, "Argument `folder` must be the path of a folder that can be written to. Received: 3."),
        ({"budget": Budget(sparsity=0.99)}, "Argument `sparsity` must be at most 0.985714 for this model"),
    ],
)
def test_bad_input_is_refused_before_training(changed, message):
    assert refused(changed).startswith(message)


def test_models_that_cannot_be_trained_are_refused():
    bare = keras.Sequential([keras.Input((12,)), layers.Dense(2)])
    with pytest.raises(ModelError, match="is not compiled"):
        sparsify(bare, problem(), Budget(sparsity=0.5))
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    with pytest.raises(ModelError, match="has a learning rate schedule"):
        sparsify(network(optimizer=keras.optimizers.SGD(schedule)), problem(), Budget(sparsity=0.5))
    with pytest.raises(ModelError, match="12 parameters that are not pruned"):
        sparsify(network(), problem(), Budget(parameters=13), **EPOCHS)


def test_a_model_with_another_regularizer_is_refused_by_its_name():
    model = network(regularizer=keras.regularizers.L2(1e-4))
    with pytest.raises(ModelError, match=r"has weights with another regularizer \(.*hidden/kernel: L2\)"):
        sparsify(model, problem(), Budget(sparsity=0.5), **EPOCHS)
    model.layers[1].kernel.regularizer = SensitivityRegularizer(1e-3)
    assert sparsify(model, problem(), Budget(sparsity=0.5), **EPOCHS).phases[0].total == 20


def test_a_metric_says_itself_what_is_better():
    model, data, validation = regression()
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=[keras.metrics.R2Score(), Own(name="own")])
    settings = {"dense_epochs": 2, "round_epochs": 1, "fine_epochs": 0, "say": None}
    result = sparsify(model, data, Budget(sparsity=0.5), validation, metric="r2_score", **settings)
    assert result.percent
    assert result.dense_error == pytest.approx(0, abs=20) != 100
    assert result.error > result.dense_error  # every input counts
    with pytest.raises(ArgumentError, match="Argument `mode` must be 'min' or 'max' for 'own'"):
        sparsify(model, data, Budget(sparsity=0.5), validation, metric="own", **settings)


class Own(keras.metrics.Mean):
    """A metric that does not say what is better."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(keras.ops.mean(y_pred))


def test_a_budget_says_what_is_wrong_with_it():
    cases = [
        ({}, "A budget needs `error`, `bytes`, `parameters` or `sparsity`: a time alone"),
        ({"minutes": 5}, "A budget needs `error`, `bytes`, `parameters` or `sparsity`: a time alone"),
        ({"error": -1}, "Argument `error` must be a finite number of at least 0. Received: -1."),
        ({"error": math.inf}, "Argument `error` must be a finite number of at least 0. Received: inf."),
        ({"sparsity": 1.0}, "Argument `sparsity` must be a fraction in [0, 1). Received: 1.0. Percent are divided"),
        ({"bytes": 0}, "Argument `bytes` must be an integer of at least 1. Received: 0."),
        ({"parameters": 10.0}, "Argument `parameters` must be an integer of at least 1. Received: 10.0."),
        ({"error": 1, "minutes": 0}, "Argument `minutes` must be a finite number above 0. Received: 0."),
        ({"bytes": 10, "sparsity": 0.5}, "A budget has one size. Received: `bytes` and `sparsity`."),
    ]
    for arguments, message in cases:
        with pytest.raises(ArgumentError) as caught:
            Budget(**arguments)
        assert str(caught.value).startswith(message)
