"""Rules of the strength: the factor in the compiled step, what each rule makes of it, and what is refused."""

import itertools

import keras
import numpy as np
import pytest

from keras_sensprune import (
    PruneAtEpochEnd,
    Sensitivity,
    SensitivityRegularizer,
    StrengthController,
    StrengthPlateau,
    StrengthRamp,
)
from keras_sensprune.errors import ArgumentError
from keras_sensprune.formulas.strength import spent_share
from keras_sensprune.training.step import SESSION
from tests.reference.strength_plant import Law
from tests.training.test_fit import pristine
from tests.training.test_resume import assert_same, compiled, dropout, train, unlabeled, values

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 8)).astype("float32")
Y = np.argmax(X @ RNG.normal(size=(8, 3)), axis=1)
V = X[:48], Y[:48]
ONE = StrengthRamp("constant", initial=1.0)
STRENGTH = 0.01


def network(regularizer=None, rate=0.1, **settings):
    keras.utils.set_random_seed(0)
    sparse = regularizer or SensitivityRegularizer(STRENGTH)
    body = [keras.layers.Dense(n, "relu" if n > 3 else None, kernel_regularizer=sparse) for n in (12, 3)]
    model = keras.Sequential([keras.Input((8,)), *body])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"], **settings)
    return model


def fit(model, strength, epochs=3, threshold=0.02, sensitivity=None, options=None, **settings):
    """16 examples are a batch, so 6 steps an epoch. Returns the callback and the history."""
    prune = PruneAtEpochEnd(threshold, sensitivity, strength=strength, **options or {})
    fitted = model.fit(X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=[prune], **settings)
    return prune, fitted.history


def slow_unless(fast, name):
    return pytest.param(name, marks=[] if fast else [pytest.mark.slow])


# The factor in the step

SAME = {
    "every step": (True, Sensitivity(every=1), {}),
    "every step, compiled": (True, Sensitivity(every=1, scale="relevance"), {"jit_compile": True}),
    "every 4 steps": (True, Sensitivity(every=4), {}),
    "coupled": (False, Sensitivity(every=4), {}),
    "coupled, compiled": (False, Sensitivity(every=4), {"jit_compile": True}),
    "eager": (True, Sensitivity("none", every=4), {"run_eagerly": True}),
}


@pytest.mark.parametrize("case", [slow_unless(case != "coupled, compiled", case) for case in SAME])
def test_a_factor_of_1_changes_no_bit(case):
    decoupled, sensitivity, settings = SAME[case]
    results = []
    for strength in (None, ONE):
        model = network(SensitivityRegularizer(STRENGTH, decoupled), **settings)
        prune, history = fit(model, strength, sensitivity=sensitivity)
        results.append((model.get_weights(), prune.records))
        assert ("strength_factor" in history) is (strength is not None)
    assert 0 < results[0][1][-1].sparsity < 1
    for a, b in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("every", [1, 4, 32])
def test_every_epoch_shrinks_by_its_own_factor(every):
    """No learning rate and S = 0: after each epoch of 6 steps w has been multiplied by (1 - strength f)^6."""
    model = network(rate=0.0)
    before = model.get_weights()[0].astype("float64")
    ramp = StrengthRamp("linear", begin=1, end=3, initial=0.5, final=2.0)
    _, history = fit(model, ramp, 5, threshold=0.0, sensitivity=Sensitivity("none", every=every))
    assert history["strength_factor"] == [0.5, 0.5, 1.25, 2.0, 2.0]
    shrunk = before * np.prod([(1 - STRENGTH * f) ** 6 for f in history["strength_factor"]])
    # 30 products in float32 of a factor near 1, each rounded twice: 60 roundings of 6e-8
    np.testing.assert_allclose(model.get_weights()[0], shrunk, rtol=4e-6)


def test_the_penalty_is_that_of_the_epoch():
    """The loss of a coupled regularizer contains the factor, in training and in the validation."""
    model = network(SensitivityRegularizer(STRENGTH, decoupled=False), rate=0.0)
    ramp = StrengthRamp("constant", begin=1, initial=0.0, final=1.0)
    _, history = fit(model, ramp, 2, threshold=0.0, sensitivity=Sensitivity("none"), validation_data=(X, Y))
    penalty = STRENGTH * sum(np.sum(w**2) / 2 for w in model.get_weights() if w.ndim == 2)
    for name in ("loss", "val_loss"):
        # two float32 losses of size 1, each a mean over 6 batches: some 16 roundings of 1.2e-7
        assert history[name][1] - history[name][0] == pytest.approx(penalty, abs=2e-6)
    model = network(rate=0.0)
    _, history = fit(model, StrengthRamp("constant", begin=1, initial=0.5), 2, 0.0, Sensitivity("none"))
    shrunk = (1 - STRENGTH) ** (2 * 6) * 2  # the second epoch has twice the factor
    assert history["penalty"][1] / history["penalty"][0] == pytest.approx(shrunk, rel=1e-5)  # float32 sums


def test_a_changing_factor_compiles_nothing_again():
    traces = []

    def loss(y, prediction):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(y, prediction, from_logits=True)

    counts = []
    for strength in (None, StrengthRamp(end=5)):
        model = network()
        model.compile("sgd", loss)
        traces.clear()
        fit(model, strength, 5)
        counts.append(len(traces))
    assert counts[0] == counts[1]


def test_without_a_rule_there_is_no_factor():
    seen = []

    def look(batch, logs=None):
        seen.append(vars(model)[SESSION].factor)

    spy = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    model = network()
    model.fit(X, Y, verbose=0, callbacks=[spy, PruneAtEpochEnd(0.02)])
    assert set(seen) == {None}


# The rules


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (StrengthRamp("linear", begin=1, end=5), [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]),
        (StrengthRamp("linear", begin=0, end=0.5, initial=1.0, final=0.2), [1.0, 0.84, 0.68, 0.52, 0.36, 0.2, 0.2]),
        (StrengthRamp("cosine", begin=0, end=4), [0.0, (1 - 0.5**0.5) / 2, 0.5, (1 + 0.5**0.5) / 2, 1.0, 1.0]),
        (StrengthRamp("polynomial", begin=2, end=4, initial=2.0, final=4.0), [2.0, 2.0, 2.0, 3.75, 4.0, 4.0]),
        (StrengthRamp("constant", begin=0.3, initial=0.1), [0.1, 0.1, 0.1, 1.0, 1.0]),
    ],
    ids=str,
)
def test_ramps(rule, expected):
    # a few roundings of values of size 1
    assert [rule.at(t, 10) for t in range(len(expected))] == pytest.approx(expected, abs=1e-14)


def test_a_plateau_of_the_sparsity_raises_the_strength_up_to_its_bound():
    model = network(rate=0.0)
    rule = StrengthPlateau("sparsity", by=2.0, patience=2, high=4.0)
    _, history = fit(model, rule, 9, threshold=0.0)
    assert history["strength_factor"] == [1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 4.0, 4.0]


def test_a_plateau_of_a_validation_metric_lowers_it():
    """No learning rate, so the accuracy stays as it is; nothing is logged in the epochs without a validation."""
    rule = StrengthPlateau("val_accuracy", by=0.5, patience=1, low=0.25)
    model = network(SensitivityRegularizer(1e-6), rate=0.0)
    settings = {"validation_data": V, "validation_freq": [1, 2, 4, 5]}
    _, history = fit(model, rule, 6, threshold=0.0, **settings)
    assert history["strength_factor"] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_an_epoch_without_a_validation_is_no_observation():
    """A learning rate of 0, so the loss stays nearly as it is; the first validation is after the second epoch."""
    rule = StrengthPlateau("val_loss", by=0.5, patience=1, least=0.01)
    model = network(SensitivityRegularizer(1e-6), rate=0.0)
    _, history = fit(
        model, rule, 6, threshold=0.0, sensitivity=Sensitivity("none"), validation_data=V, validation_freq=2
    )
    assert history["strength_factor"] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]


def test_the_direction_of_a_plateau_is_that_of_the_metric():
    """The R2 of constant predictions is the same in all epochs but negative; with a rate it becomes better."""
    model = network()
    metric = keras.metrics.R2Score(name="fit")
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=[metric])
    callback = PruneAtEpochEnd(0.0, strength=StrengthPlateau("fit", by=2.0, patience=1))
    targets = np.eye(3, dtype="float32")[Y]
    history = model.fit(X, targets, epochs=4, shuffle=False, verbose=0, callbacks=[callback]).history
    assert history["fit"] == sorted(history["fit"])
    assert history["strength_factor"] == [1.0] * 4


def by_the_law(shares):
    """The factors of all epochs and of the next one, from the shares of the tolerance."""
    factors, law = [1.0], Law()
    for spent in shares:
        factors.append(law(factors[-1], spent))
    return factors


def test_the_controller_follows_its_law_with_the_metric_of_the_pruned_network():
    model = network(rate=0.05)
    dense = model.evaluate(*V, verbose=0)[0]
    rule = StrengthController(V, 0.3, relative_to=dense - 0.2)
    prune, history = fit(model, rule, 6, validation_data=V)
    expected = by_the_law([spent_share(loss, dense - 0.2, 0.3) for loss in history["val_loss"]])[:6]
    # the validation of `fit` has other batches than that of the rule: float32 means in another order, over 0.3
    assert history["strength_factor"] == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == 6
    assert prune.records[-1].sparsity > 0


def test_the_controller_skips_a_pruning_when_the_network_is_far_over_the_tolerance(monkeypatch):
    # dense; then before each pruning that is due, and once more after one in which something went
    script = iter([1.0, 1.05, 1.08, 1.2, 1.3, 1.105, 1.06])
    monkeypatch.setattr(StrengthController, "measure", lambda self, session: next(script))
    model, sensitivity = network(rate=0.0), Sensitivity("none")
    prune, history = fit(model, StrengthController(V, 0.1), 4, threshold=0.1, sensitivity=sensitivity)
    assert [r.threshold > 0 for r in prune.records] == [True, False, False, True]
    assert [r.nonzero < r.nonzero_before for r in prune.records] == [True, False, False, True]
    expected = by_the_law([0.8, 2.0, 2.0])
    assert history["strength_factor"] == pytest.approx(expected, rel=1e-12)  # (1.08 - 1) / 0.1 is rounded
    assert next(script, None) is None


def test_accuracy_is_better_when_it_is_larger(monkeypatch):
    accuracies = itertools.chain([0.9], itertools.repeat(0.88))  # 2 points worse
    monkeypatch.setattr(keras.Model, "evaluate", lambda *_, **__: {"accuracy": next(accuracies)})
    prune, history = fit(network(), StrengthController(V, 0.01, "accuracy"), 2, threshold=0.1)
    assert [r.threshold for r in prune.records] == [0.0, 0.0]
    assert history["strength_factor"][1] < 1.0


# Stopped and resumed

RULES = {
    "ramp": StrengthRamp("cosine", begin=0, end=4, initial=0.5, final=2.0),
    "plateau": StrengthPlateau("loss", by=2.0, patience=1, least=0.2),
    "controller": StrengthController((X[:, [0] * 12], Y), 0.5),
}


@pytest.mark.filterwarnings("ignore:All weights of")  # some layers of these small networks die but for one unit
@pytest.mark.parametrize("name", [slow_unless(name == "controller", name) for name in RULES])
def test_a_resumed_run_is_the_uninterrupted_run(name, tmp_path):
    settings = {"sensitivity": Sensitivity(every=5), "strength": RULES[name]}
    factors = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: factors.append(logs["strength_factor"]))
    whole = compiled(dropout)
    expected = train(whole, tmp_path / "whole", 4, note, **settings)
    stopped = compiled(dropout)
    train(stopped, tmp_path / "stopped", 2, note, **settings)
    stopped.save(tmp_path / "model.keras")
    keras.utils.set_random_seed(99)
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    records = train(resumed, tmp_path / "stopped", 4, note, initial_epoch=2, **settings)
    assert_same((values(resumed), unlabeled(records)), (values(whole), unlabeled(expected)))
    assert factors[4:] == factors[:4]
    assert len(set(factors[:4])) > 1


@pytest.mark.filterwarnings("ignore:All weights of")
def test_a_resumed_run_with_another_rule_does_not_use_what_the_old_one_remembers(tmp_path):
    """The loss of the dense network, about 1, is no accuracy; the best loss is none either."""
    model = network(rate=0.0)
    options = {"state_path": tmp_path / "state"}
    fit(model, StrengthController(V, 0.5), 2, threshold=0.2, options=options)
    for rule in (StrengthController(V, 0.01, "accuracy"), StrengthController(V, 0.01, "accuracy", mode="max")):
        with pytest.raises(ArgumentError, match="`relative_to` must be a number where a training goes on"):
            fit(model, rule, 4, 0.2, options=options, initial_epoch=2)
    fit(model, StrengthController(V, 0.01, "accuracy", relative_to=0.0), 4, 0.2, options=options, initial_epoch=2)
    fit(model, StrengthPlateau("loss", by=0.5, patience=2), 6, 0.2, options=options, initial_epoch=4)
    plateau = StrengthPlateau("accuracy", by=0.5, patience=2)
    _, history = fit(model, plateau, 8, 0.2, options=options, initial_epoch=6)
    assert history["strength_factor"][1] == history["strength_factor"][0]  # the first accuracy is the best so far


# What is refused

REFUSED = [
    (StrengthRamp, {}, "shape", "quadratic"),
    (StrengthRamp, {}, "begin", -1),
    (StrengthRamp, {"begin": 3}, "end", 3),
    (StrengthRamp, {}, "initial", -0.1),
    (StrengthRamp, {}, "final", float("nan")),
    (StrengthPlateau, {"by": 2}, "monitor", ""),
    (StrengthPlateau, {"monitor": "loss"}, "by", 1),
    (StrengthPlateau, {"monitor": "loss"}, "by", 0.0),
    (StrengthPlateau, {"monitor": "loss", "by": 2}, "patience", 0),
    (StrengthPlateau, {"monitor": "loss", "by": 2}, "least", -1),
    (StrengthPlateau, {"monitor": "loss", "by": 2}, "mode", "up"),
    (StrengthPlateau, {"monitor": "loss", "by": 2}, "low", 2),
    (StrengthPlateau, {"monitor": "loss", "by": 2}, "high", 0.5),
    (StrengthController, {"tolerance": 0.1}, "validation_data", None),
    (StrengthController, {"tolerance": 0.1}, "validation_data", (X,)),
    (StrengthController, {"validation_data": V}, "tolerance", 0),
    (StrengthController, {"validation_data": V, "tolerance": 0.1}, "relative_to", "current"),
    (StrengthController, {"validation_data": V, "tolerance": 0.1}, "mode", "down"),
    (StrengthController, {"validation_data": V, "tolerance": 0.1}, "low", 0),
    (StrengthController, {"validation_data": V, "tolerance": 0.1}, "batch_size", 0),
]


@pytest.mark.parametrize(("rule", "given", "name", "value"), REFUSED, ids=lambda v: getattr(v, "__name__", None))
def test_bad_arguments_are_named(rule, given, name, value):
    with pytest.raises(ArgumentError, match=f"Argument `{name}` must be"):
        rule(**{**given, name: value})


def test_a_number_is_no_rule():
    with pytest.raises(ArgumentError, match=r"`strength` must be a StrengthRamp.*argument of SensitivityRegularizer"):
        PruneAtEpochEnd(0.1, strength=1e-3)


UNWORKABLE = {
    "over when it begins": (StrengthRamp(begin=5, end=9), {}, "`begin` must be before the end of a training of 3"),
    "ends before it begins": (
        StrengthRamp(begin=2, end=0.5),
        {},
        "`end` must be later than begin=2 in a training of 3",
    ),
    "nothing to multiply": (ONE, {"strength": 0.0}, "`strength` must be None where the strength of every regularizer"),
    "more than a whole weight": (StrengthRamp(final=200.0), {}, "`final` must be at most 100, 1 / strength"),
    "a bound above a whole weight": (
        StrengthPlateau("loss", by=2.0),
        {"strength": 0.1},
        "`high` must be at most 10, 1 / strength",
    ),
    "no such metric": (StrengthController(V, 0.1, "error"), {}, "`metric` must be one of 'accuracy', 'loss'"),
    "a loss with the penalty": (
        StrengthController(V, 0.1),
        {"strength": STRENGTH, "decoupled": False},
        "`metric` must be the name of a compiled metric where decoupled=False",
    ),
    "not finite": (StrengthController((*V, np.full(48, np.nan)), 0.1), {}, "data on which 'loss' is finite"),
}


@pytest.mark.parametrize("case", UNWORKABLE)
def test_what_cannot_work_is_refused_before_training_starts(case, tmp_path):
    rule, regularizer, message = UNWORKABLE[case]
    model = network(SensitivityRegularizer(**{"strength": STRENGTH, **regularizer}))
    before = model.get_weights()
    with pytest.raises(ArgumentError, match=message):
        fit(model, rule, options={"state_path": tmp_path / "state"})
    assert pristine(model)
    assert not list(tmp_path.iterdir())
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("monitor", "epochs", "settings"),
    [("error", 1, {}), ("val_error", 1, {"validation_data": V}), ("val_loss", 3, {})],
)
def test_a_quantity_that_will_not_be_logged_is_named_with_those_that_are(monitor, epochs, settings):
    """After the first epoch; what a validation may still bring is waited for, to the last epoch at most."""
    model, begun = network(), []
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.append(epoch))
    prune = PruneAtEpochEnd(0.02, strength=StrengthPlateau(monitor, by=0.5))
    with pytest.raises(ArgumentError) as caught:
        model.fit(X, Y, epochs=3, verbose=0, callbacks=[prune, count], **settings)
    assert len(begun) == epochs
    val = "'val_accuracy', 'val_loss', " if settings else ""
    known = f"which have 'accuracy', 'loss', {val}'sparsity'"
    assert f"Argument `monitor` must be a quantity in the logs, {known}" in str(caught.value)
    assert pristine(model)
