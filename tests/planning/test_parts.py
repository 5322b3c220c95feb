"""What `sparsify` is made of: data, targets, the pace of a phase, the quantity that is watched."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import Budget, Sensitivity, SensitivityRegularizer
from keras_sensprune.errors import ArgumentError, ModelError
from keras_sensprune.planning import phases
from keras_sensprune.planning.feed import make_feed
from keras_sensprune.planning.phases import Monitor, PhasePace, choose_monitor
from keras_sensprune.planning.target import weights_to_keep
from keras_sensprune.planning.trials import Examples, fit_settings, tried

X, Y = np.arange(40.0, dtype="float32").reshape(20, 2), np.arange(20) % 2


def test_the_last_tenth_is_held_out_and_not_trained_on():
    feed = make_feed((X, Y, np.ones(20)), None, batch_size=4)
    assert [len(part) for part in feed.train] == [18, 18, 18]
    np.testing.assert_array_equal(feed.validation[0], X[18:])
    assert (feed.steps, feed.validation_text) == (5, "the last 2 of 20 training examples")  # ceil(18 / 4)


def test_given_validation_data_leave_the_training_data_whole():
    feed = make_feed((X, Y), (X[:5], Y[:5]), batch_size=20)
    assert (len(feed.train[0]), len(feed.validation[0]), feed.steps, feed.validation_text) == (20, 5, 1, "as given")


def test_inputs_of_several_arrays_are_cut_alike():
    feed = make_feed(({"a": X, "b": Y}, Y), None, batch_size=100)
    assert [len(feed.validation[0][name]) for name in "ab"] == [2, 2]


def test_batches_of_a_dataset_are_counted_where_it_does_not_know_them():
    known = tf.data.Dataset.from_tensor_slices((X, Y)).batch(6)
    assert make_feed(known, known, 1).steps == 4
    assert make_feed(known.filter(lambda x, y: True), known, 1).steps == 4


@pytest.mark.parametrize(
    ("data", "validation", "message"),
    [
        ((X, Y[:3]), None, "Argument `data` must be (x, y) or (x, y, sample_weight), arrays with the same number"),
        ((X,), None, "Argument `data` must be (x, y) or (x, y, sample_weight), arrays with the same number"),
        ((X[:9], Y[:9]), None, "Argument `data` must be at least 10 examples, the last tenth for validation. Received"),
        ((X, Y), (X, Y[:2]), "Argument `validation_data` must be (x, y)"),
        ((X, Y), 0.1, "Argument `validation_data` must be (x, y)"),
        (
            tf.data.Dataset.from_tensor_slices((X, Y)).batch(5),
            None,
            "Argument `validation_data` must be given where `data` is a tf.data.Dataset. Received: None.",
        ),
        (
            tf.data.Dataset.from_tensor_slices((X, Y)).batch(5).repeat(),
            (X, Y),
            "Argument `data` must be a finite dataset with at least one batch.",
        ),
    ],
)
def test_data_that_cannot_be_used_are_refused(data, validation, message):
    with pytest.raises(ArgumentError) as caught:
        make_feed(data, validation, 4)
    assert str(caught.value).startswith(message)


def test_a_search_asks_the_metric_what_is_better():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_regularizer=SensitivityRegularizer(0.1))])
    overlap = keras.metrics.BinaryIoU(name="overlap")
    model.compile("sgd", "mse", metrics=[overlap, keras.metrics.MeanSquaredError(name="quality")])
    examples = Examples(X / 40, Y)
    plan = {"epochs": 1, "batch_size": 4, "sensitivity": None, "seed": 0}
    for metric, mode, expected in (("overlap", "auto", "max"), ("quality", "auto", "min"), ("quality", "max", "max")):
        settings = tried(model, fit_settings([examples], metric=metric, mode=mode, **plan), examples)
        assert (settings.mode, settings.weights) == (expected, 2)


def test_the_watched_quantity_is_the_accuracy_or_else_the_loss():
    assert choose_monitor({"loss": 1.0, "sparse_categorical_accuracy": 0.5}, None) == Monitor(
        "sparse_categorical_accuracy", True
    )
    assert choose_monitor({"loss": 1.0, "mae": 0.5}, None) == Monitor("loss", False)
    assert choose_monitor({"loss": 1.0, "mae": 0.5}, "mae") == Monitor("mae", False)
    assert choose_monitor({"loss": 1.0, "auc": 0.5}, "auc").error({"auc": 0.9}) == 10.0
    with pytest.raises(ArgumentError) as caught:
        choose_monitor({"loss": 1.0, "a_accuracy": 0.5, "b_accuracy": 0.5}, None)
    assert str(caught.value) == (
        "Argument `metric` must be one of 'loss', 'a_accuracy', 'b_accuracy'. Received: None. The model has several "
        "accuracies."
    )


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10), keras.layers.Dense(2)])
    for layer in made.layers:
        layer.kernel.regularizer = SensitivityRegularizer(0.0)
    made.compile("sgd", "mse")
    return made  # 120 prunable weights, 12 biases


def bytes_of(model):
    """As if a file held 4 bytes per nonzero weight and a header of 100."""
    return 100 + 4 * sum(int(np.count_nonzero(w)) for w in model.get_weights() if w.ndim == 2)


@pytest.mark.parametrize(
    ("budget", "target"),
    [
        (Budget(error=1.0), None),
        (Budget(sparsity=0.75), 30),
        (Budget(parameters=42), 30),  # the 12 biases count
        (Budget(parameters=1000), 120),
    ],
)
def test_a_budget_as_a_number_of_weights(model, budget, target):
    assert weights_to_keep(model, budget, None, Sensitivity()) == (target, 2)


def test_bytes_as_a_number_of_weights(model):
    before = model.get_weights()
    target, _ = weights_to_keep(model, Budget(bytes=220), bytes_of, Sensitivity())
    assert 29 <= target <= 30  # 30 weights are enough; the search ends within 1/256 of 120 weights
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    with pytest.raises(ModelError, match="`size_of` gives 108 for model"):  # two weights are left
        weights_to_keep(model, Budget(bytes=107), bytes_of, Sensitivity())


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def perf_counter(self):
        return self.now


def paced(monkeypatch, epochs, seconds, times):
    """The numbers of planned epochs after each of the epochs that take these times."""
    clock = Clock()
    monkeypatch.setattr(phases, "time", clock)
    pace = PhasePace(epochs, seconds, first=7)
    rate = keras.Variable(0.5)
    pace.set_model(types.SimpleNamespace(optimizer=types.SimpleNamespace(learning_rate=rate), stop_training=False))
    pace.on_train_begin()
    planned, rates = [], []
    for number, took in enumerate(times):
        pace.on_epoch_begin(7 + number)
        rates.append(float(rate.numpy()))
        clock.now += took
        pace.on_epoch_end(7 + number)
        planned.append(pace.epochs)
        if pace.model.stop_training:
            break
    return planned, rates, pace.done


def test_a_phase_with_time_trains_all_its_epochs_and_the_rate_is_a_half_cosine(monkeypatch):
    planned, rates, done = paced(monkeypatch, 3, float("inf"), [1.0] * 5)
    assert (planned, done) == ([3, 3, 3], 3)
    p = (np.arange(3) + 0.5) / 3
    # float32 of the rate: 2^-24 relative
    np.testing.assert_allclose(rates, 0.5 * (0.01 + 0.99 * (1 + np.cos(np.pi * p)) / 2), rtol=1e-6)


def test_a_phase_is_shortened_to_its_time_and_lengthened_again_when_epochs_become_faster(monkeypatch):
    # 3 s of 10 s per epoch: two more fit; then 1 s per epoch: 6 s are left, but ten epochs are the most
    planned, _, done = paced(monkeypatch, 10, 10.0, [3.0, 1.0, *[1.0] * 10])
    assert planned[:2] == [3, 8]
    assert done == 8


def test_the_first_epoch_is_always_finished(monkeypatch):
    planned, _, done = paced(monkeypatch, 10, 1.0, [5.0, 1.0])
    assert (planned, done) == ([1], 1)
