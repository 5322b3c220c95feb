"""ToleranceThreshold: the largest threshold that the validation metric allows, against trying all of them."""

import copy

import keras
import numpy as np
import pytest

from keras_sensprune import NofM, PruneAtEpochEnd, SensitivityRegularizer, StrengthController, ToleranceThreshold
from keras_sensprune.errors import ArgumentError
from keras_sensprune.training.budget import direction

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 8)).astype("float32")
Y = np.argmax(X @ RNG.normal(size=(8, 3)), axis=1)
V = X[:32], Y[:32]


def network(regularizer=None):
    keras.utils.set_random_seed(0)
    sparse = regularizer or SensitivityRegularizer(1e-3)
    body = [keras.layers.Dense(n, "relu" if n > 3 else None, kernel_regularizer=sparse) for n in (12, 3)]
    model = keras.Sequential([keras.Input((8,)), *body])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def trained():
    model = network()
    model.fit(X, Y, epochs=20, verbose=0, callbacks=[PruneAtEpochEnd(0.0)])
    return model.get_weights()


def fit(rule, weights=None, epochs=1, rate=0.0, **options):
    """With a learning rate of 0 and no shrinkage the weights stay, so that nothing but the rule decides."""
    model = network(SensitivityRegularizer(0.0))
    if weights is not None:
        model.set_weights(weights)
    model.optimizer.learning_rate = rate
    prune = PruneAtEpochEnd(rule, **options)
    model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[prune])
    return model, prune


def kernels(model):
    return [v for v in model.trainable_variables if len(v.shape) == 2]


def metric_at(model, weights, threshold, metric):
    """By definition: everything below the threshold is zero; never a whole tensor."""
    model.set_weights(weights)
    for kernel in kernels(model):
        value = kernel.numpy()
        if (np.abs(value) >= threshold).any():
            kernel.assign(np.where(np.abs(value) < threshold, 0, value))
    return model.evaluate(*V, verbose=0, return_dict=True)[metric]


@pytest.mark.parametrize(("metric", "tolerance", "sign"), [("loss", 0.2, 1), ("accuracy", 0.07, -1)])
def test_it_stops_at_the_last_allowed_threshold(trained, metric, tolerance, sign):
    model, prune = fit(ToleranceThreshold(V, tolerance, metric, precision=0.0), trained)
    found, probe = prune.records[-1].threshold, network()
    magnitudes = np.unique(np.concatenate([np.abs(w).ravel() for w in trained if w.ndim == 2]))
    dense = metric_at(probe, trained, 0.0, metric)
    following = magnitudes[np.searchsorted(magnitudes, found, "right")]
    assert found > 0
    # evaluate adds float32 losses of a few batches: equal to some 1e-7
    assert sign * (metric_at(probe, trained, found, metric) - dense) <= tolerance + 1e-6
    assert sign * (metric_at(probe, trained, following, metric) - dense) > tolerance - 1e-6
    kept = [np.abs(k.numpy())[k.numpy() != 0].min() for k in kernels(model)]
    assert min(kept) >= np.float32(found)


def test_a_tolerance_of_the_current_metric_compounds_and_one_of_the_dense_metric_does_not(trained):
    sparsities = {}
    for reference in ("dense", "current"):
        _, prune = fit(ToleranceThreshold(V, 0.1, relative_to=reference, precision=0.0), trained, epochs=4)
        sparsities[reference] = [r.sparsity for r in prune.records]
    assert len(set(sparsities["dense"])) == 1
    assert sparsities["current"][-1] > sparsities["current"][0] == sparsities["dense"][0] > 0


def test_a_number_is_a_reference_and_a_network_that_is_worse_already_loses_nothing(trained):
    _, prune = fit(ToleranceThreshold(V, 0.0, relative_to=1e-6), trained)
    assert prune.records[-1].sparsity == 0
    _, prune = fit(ToleranceThreshold(V, 0.0, "accuracy", relative_to=0.5), trained)
    assert prune.records[-1].sparsity > 0.3


def test_per_layer_each_tensor_has_its_own_threshold_and_together_they_keep_to_the_tolerance(trained):
    model, prune = fit(ToleranceThreshold(V, 0.2, scope="layer", precision=0.0), trained)
    found = model.evaluate(*V, verbose=0)[0]
    probe = network()
    probe.set_weights(trained)
    dense = probe.evaluate(*V, verbose=0)[0]
    assert found <= dense + 0.2 + 1e-6  # float32 sums of a few batches
    lowest = [np.abs(k.numpy())[k.numpy() != 0].min() for k in kernels(model)]
    assert lowest[0] != lowest[1]
    assert 0 < prune.records[-1].sparsity < 1


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_searches_of_few_trials_reach_what_one_whole_search_finds(trained, monkeypatch, scope):
    calls, original = [], ToleranceThreshold.measure
    monkeypatch.setattr(ToleranceThreshold, "measure", lambda self, session: calls.append(1) or original(self, session))
    _, whole = fit(ToleranceThreshold(V, 0.2, scope=scope, precision=0.0), trained)
    few = ToleranceThreshold(V, 0.2, scope=scope, precision=0.0, max_trials=2)
    calls.clear()
    model, prune = fit(few, trained, epochs=20)
    turns = 1 if scope == "global" else 2
    assert len(calls) <= 1 + 20 * (1 + 2 * turns)  # the dense model; per epoch the model as it is, and the trials
    sparsities = [record.sparsity for record in prune.records]
    assert model.evaluate(*V, verbose=0)[0] <= metric_at(network(), trained, 0.0, "loss") + 0.2 + 1e-6
    assert sparsities == sorted(sparsities)
    if scope == "global":  # per layer, what comes first leaves another tolerance over than one whole search does
        assert sparsities[0] < whole.records[-1].sparsity
        assert sparsities[-1] == whole.records[-1].sparsity


def test_with_patience_nothing_goes_while_the_metric_becomes_better(trained):
    rule = ToleranceThreshold(V, 0.02, patience=2)
    _, prune = fit(rule, epochs=8, rate=0.05)
    sparsities = [r.sparsity for r in prune.records]
    assert sparsities[:3] == [0.0, 0.0, 0.0]  # a dense network that still learns
    _, prune = fit(rule, trained, epochs=8)  # one that does not learn: best at first, then 2 of waiting
    assert [r.threshold > 0 for r in prune.records] == [False, False, True, False, False, True, False, False]


def test_the_weights_of_a_search_that_is_broken_off_are_put_back(trained, monkeypatch):
    calls = iter(range(100))
    original = ToleranceThreshold.measure

    def measure(self, session):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return original(self, session)

    monkeypatch.setattr(ToleranceThreshold, "measure", measure)
    model = network(SensitivityRegularizer(0.0))
    model.set_weights(trained)
    model.optimizer.learning_rate = 0.0
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(ToleranceThreshold(V, 0.2))])
    for variable, value in zip(model.weights, trained, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_validation_inside_fit_describes_the_pruned_model(trained):
    model = network(SensitivityRegularizer(0.0))
    model.set_weights(trained)
    model.optimizer.learning_rate = 0.0
    rule = ToleranceThreshold(V, 0.2)
    history = model.fit(X, Y, verbose=0, validation_data=V, callbacks=[PruneAtEpochEnd(rule)]).history
    assert history["sparsity"][-1] > 0
    # the same weights, the same batches of 32: equal but for the order of float32 sums
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(*V, verbose=0)[0], rel=1e-6)


METRICS = {
    "mean_io_u": ("max", lambda: keras.metrics.MeanIoU(3, sparse_y_pred=False)),
    "r2_score": ("max", lambda: keras.metrics.R2Score(name="r2_score")),
    "acceleration_mae": ("min", lambda: keras.metrics.MeanAbsoluteError(name="acceleration_mae")),  # "acc" is in it
    "gain": (None, lambda: keras.metrics.MeanMetricWrapper(one, name="gain")),
}


def one(y, prediction):
    return keras.ops.ones_like(prediction[:, 0])


@pytest.mark.parametrize("name", METRICS)
def test_the_metric_itself_says_in_which_direction_it_is_better(name):
    """Of the dense model the metric is as good as it can be; so nothing may become worse, whatever that means."""
    expected, build = METRICS[name]
    x, y = X[:32], np.eye(3, dtype="float32")[Y[:32]]
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, kernel_regularizer=SensitivityRegularizer(0.0))])
    target = y if name != "mean_io_u" else Y[:32]
    loss = "mse" if name != "mean_io_u" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=[build()], run_eagerly=True)
    found = []
    rule = ToleranceThreshold((x, target), 0.0, name, relative_to=0.0)

    def compare(*_):
        signed = rule.measure(model._sensprune_session)
        found.append(signed / model.evaluate(x, target, verbose=0, return_dict=True)[name])

    watch = keras.callbacks.LambdaCallback(on_epoch_end=compare)
    if expected is None:
        with pytest.raises(ArgumentError, match="Argument `mode` must be 'min' or 'max' for 'gain'"):
            model.fit(x, target, verbose=0, callbacks=[PruneAtEpochEnd(rule)])
        rule = ToleranceThreshold((x, target), 0.0, name, relative_to=0.0, mode="max")
    model.fit(x, target, verbose=0, callbacks=[PruneAtEpochEnd(rule), watch])
    assert np.sign(found) == [{"max": -1, "min": 1, None: -1}[expected]]
    assert direction(f"val_{name}", "auto" if expected else "max", model) == (expected or "max")


def test_without_a_model_the_name_decides_and_several_outputs_have_their_own_metrics():
    names = ("accuracy", "val_loss", "f1_score", "mse", "sparsity", "accel_loss", "acc")
    assert [direction(name) for name in names] == ["max", "min", "max", "min", "max", "min", "max"]
    for name in ("quality", "accuracy_error", "inaccuracy", "accel"):
        with pytest.raises(ArgumentError, match=f"Argument `mode` must be 'min' or 'max' for '{name}'"):
            direction(name)
    into = keras.Input((8,))
    model = keras.Model(into, {name: keras.layers.Dense(3, name=name)(into) for name in "ab"})
    metrics = {"a": [keras.metrics.CosineSimilarity(name="quality")], "b": [keras.metrics.MeanSquaredError("quality")]}
    model.compile("sgd", "mse", metrics=metrics)
    model.evaluate(X, dict.fromkeys("ab", np.eye(3)[Y]), verbose=0)
    assert [direction(f"val_{name}_quality", model=model) for name in "ab"] == ["max", "min"]


def test_what_is_measured_before_training_is_not_in_the_metrics_of_the_first_epoch(trained):
    """Keras resets the metrics of an epoch before the callbacks of its begin."""
    expected = network(SensitivityRegularizer(0.0))
    expected.set_weights(trained)
    expected.optimizer.learning_rate = 0.0
    plain = expected.fit(X, Y, epochs=2, shuffle=False, verbose=0).history
    other = np.zeros((500, 8), "float32"), np.zeros(500, int)
    budget = {"validation_data": other, "tolerance": 0.0, "metric": "accuracy"}
    controller = StrengthController(**budget | {"tolerance": 0.1})
    out_of_reach = ToleranceThreshold(**budget, relative_to=2.0)  # nothing goes
    for options in ({"threshold": out_of_reach}, {"strength": controller}):
        model = network(SensitivityRegularizer(1e-9))
        model.set_weights(trained)
        model.optimizer.learning_rate = 0.0
        prune = PruneAtEpochEnd(**{"threshold": 0.0} | options)
        found = model.fit(X, Y, epochs=2, shuffle=False, verbose=0, callbacks=[prune]).history
        assert found["accuracy"] == plain["accuracy"]
        np.testing.assert_allclose(found["loss"], plain["loss"], rtol=1e-5)


def test_a_rule_that_was_used_can_be_copied(trained):
    _, prune = fit(ToleranceThreshold(V, 0.1), trained)
    again = copy.deepcopy(prune)
    model = network(SensitivityRegularizer(0.0))
    model.set_weights(trained)
    model.optimizer.learning_rate = 0.0
    model.fit(X, Y, verbose=0, callbacks=[again])
    assert again.records[-1].nonzero == prune.records[-1].nonzero


def test_the_evaluation_is_compiled_once_for_all_prunings_and_trials(trained):
    traces, asked = [], []

    class Counting(keras.Sequential):
        def test_step(self, data):
            traces.append(1)
            return super().test_step(data)

    class Asking(ToleranceThreshold):
        def measure(self, session):
            found = super().measure(session)
            asked.append(len(traces))
            return found

    model = Counting([keras.Input((8,)), *network().layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    model.set_weights(trained)
    prune = PruneAtEpochEnd(Asking(V, 0.05, relative_to="current"))
    model.fit(X, Y, epochs=4, verbose=0, callbacks=[prune])
    assert sum(r.nonzero < r.nonzero_before for r in prune.records) > 1
    assert len(asked) > 12
    assert set(asked) == {2}  # TensorFlow traces twice what makes variables at its first call, those of the metrics


def test_a_loss_that_contains_the_penalty_is_refused():
    """What goes would make room for itself: every zero lowers the penalty."""
    model = network(SensitivityRegularizer(1e-3, decoupled=False))
    with pytest.raises(ArgumentError, match="`metric` must be the name of a compiled metric where decoupled=False"):
        model.fit(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(ToleranceThreshold(V, 0.1))])
    model.fit(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(ToleranceThreshold(V, 0.0, "accuracy", 2.0))])


REFUSED = {
    "validation_data": {"validation_data": None},
    "tolerance": {"tolerance": -0.1},
    "metric": {"metric": None},
    "relative_to": {"relative_to": "best"},
    "mode": {"mode": "up"},
    "scope": {"scope": "unit"},
    "patience": {"patience": 1.5},
    "batch_size": {"batch_size": 0},
    "precision": {"precision": -1},
    "max_trials": {"max_trials": 0},
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_named(name):
    with pytest.raises(ArgumentError, match=f"Argument `{name}` must be"):
        ToleranceThreshold(**({"validation_data": V, "tolerance": 0.1} | REFUSED[name]))


def test_what_cannot_work_is_refused_before_training_starts(trained):
    with pytest.raises(ArgumentError, match="Argument `metric` must be one of 'accuracy', 'loss'"):
        fit(ToleranceThreshold(V, 0.1, "error"), trained)
    with pytest.raises(ArgumentError, match="NofM"):
        fit(ToleranceThreshold(V, 0.1), trained, structure=NofM(2, 4))
    with pytest.raises(ArgumentError, match="on which 'loss' is finite"):
        fit(ToleranceThreshold(V, 0.1), [*trained[:-1], trained[-1] * np.nan])


def test_a_resumed_training_remembers_the_dense_metric(trained, tmp_path):
    dense = []

    class Spy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            dense.append(self.model._sensprune_session.memory["dense loss"])

    model, options = network(SensitivityRegularizer(0.0)), {"state_path": tmp_path / "state"}
    model.set_weights(trained)
    rule = ToleranceThreshold(V, 0.3)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[PruneAtEpochEnd(rule, **options), Spy()])
    model.fit(X, Y, epochs=3, initial_epoch=2, verbose=0, callbacks=[PruneAtEpochEnd(rule, **options), Spy()])
    assert len(set(dense)) == 1
    assert model.evaluate(*V, verbose=0)[0] != pytest.approx(dense[0], rel=1e-3)  # it would have been another by now


def test_a_resumed_training_with_another_metric_asks_for_its_reference(trained, tmp_path):
    def train(rule, first):
        prune = PruneAtEpochEnd(rule, state_path=tmp_path / "state")
        model.fit(X, Y, epochs=first + 2, initial_epoch=first, verbose=0, callbacks=[prune])
        return prune

    model = network(SensitivityRegularizer(0.0))
    model.set_weights(trained)
    assert train(ToleranceThreshold(V, 0.3), 0).records[-1].sparsity > 0
    with pytest.raises(ArgumentError, match="`relative_to` must be a number where a training goes on that has pruned"):
        train(ToleranceThreshold(V, 0.01, "accuracy"), 2)
    before = np.count_nonzero(model.get_weights()[0])
    train(ToleranceThreshold(V, 0.0, "accuracy", relative_to=2.0), 2)  # no accuracy is as good as that
    assert np.count_nonzero(model.get_weights()[0]) == before
    train(ToleranceThreshold(V, 0.3), 4)  # the loss of the dense model is not forgotten


def test_a_resumed_training_that_has_pruned_nothing_measures_another_metric(trained, tmp_path):
    model, options = network(SensitivityRegularizer(0.0)), {"state_path": tmp_path / "state"}
    model.set_weights(trained)
    model.fit(
        X, Y, epochs=1, verbose=0, callbacks=[PruneAtEpochEnd(ToleranceThreshold(V, 0.3), start_epoch=5, **options)]
    )
    prune = PruneAtEpochEnd(ToleranceThreshold(V, 0.1, "accuracy"), **options)
    model.fit(X, Y, epochs=2, initial_epoch=1, verbose=0, callbacks=[prune])
    assert prune.records[-1].sparsity > 0
