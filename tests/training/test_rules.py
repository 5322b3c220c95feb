"""Rules of PruneAtEpochEnd: exact counts through `fit`, allocations as defined, limits, schedules of TF-MOT."""

import fnmatch

import keras
import numpy as np
import pytest

from keras_sensprune import Block, NofM, PruneAtEpochEnd, SensitivityRegularizer, SparsitySchedule, SparsityTarget
from keras_sensprune.errors import ArgumentError
from keras_sensprune.tfmot.importing import import_tfmot

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 12)).astype("float32")
Y = RNG.integers(0, 4, 32)
TOTAL = 12 * 20 + 20 * 8 + 8 * 4


def network():
    keras.utils.set_random_seed(0)
    sparse = SensitivityRegularizer(1e-3)
    body = [
        keras.layers.Dense(n, "relu" if n > 4 else None, kernel_regularizer=sparse, name=f"dense{n}")
        for n in (20, 8, 4)
    ]
    model = keras.Sequential([keras.Input((12,)), *body], name="net")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, run_eagerly=True)
    return model


def fit(rule, epochs=4, model=None, **options):
    model, prune = model or network(), PruneAtEpochEnd(rule, **options)
    history = model.fit(X, Y, epochs=epochs, batch_size=16, verbose=0, callbacks=[prune])
    return model, prune, history.history


def zeros(model):
    return [int(np.sum(v.numpy() == 0)) for v in model.trainable_variables if v.regularizer is not None]


@pytest.mark.parametrize("allocation", ["global", "uniform", "erdos_renyi", "relevance"])
def test_every_epoch_has_exactly_the_zeros_of_the_schedule(allocation):
    schedule = SparsitySchedule(0.83, initial=0.1, begin=1, end=4)
    model, prune, history = fit(SparsityTarget(schedule, allocation), epochs=5)
    expected = [round(schedule.at(t, 5) * TOTAL) for t in (1, 2, 3, 4, 5)]
    assert [r.total - r.nonzero for r in prune.records] == expected
    assert sum(zeros(model)) == expected[-1] == round(0.83 * TOTAL)
    # 1 - nonzero / total rounds once where zeros / total rounds
    assert history["sparsity"] == pytest.approx([count / TOTAL for count in expected], abs=1e-15)


def test_global_removes_the_smallest_weights_of_all():
    model = network()
    before = [v.numpy() for v in model.trainable_variables if v.regularizer is not None]
    model.optimizer.learning_rate = 0.0
    fit(SparsityTarget(SparsitySchedule(0.5, "constant")), epochs=1, model=model)
    after = [v.numpy() for v in model.trainable_variables if v.regularizer is not None]
    gone = np.concatenate([np.abs(b[a == 0]) for b, a in zip(before, after, strict=True)])
    kept = np.concatenate([np.abs(b[a != 0]) for b, a in zip(before, after, strict=True)])
    assert len(gone) == TOTAL // 2
    # 2 updates shrink by at most 2e-3 of a weight, so the order can change only between weights as near as that
    assert gone.max() * (1 - 2e-3) <= kept.min()


def test_uniform_and_erdos_renyi_are_their_definitions():
    model, _, _ = fit(SparsityTarget(SparsitySchedule(0.75, "constant"), "uniform"), epochs=1)
    assert zeros(model) == [180, 120, 24]
    model, _, _ = fit(SparsityTarget(SparsitySchedule(0.75, "constant"), "erdos_renyi"), epochs=1)
    kept = 432 // 4 * np.array([32, 28, 12]) / 72  # shares 12 + 20, 20 + 8, 8 + 4; 48, 42 and 18 of 240, 160 and 32
    assert zeros(model) == [240 - kept[0], 160 - kept[1], 32 - kept[2]]


def test_relevance_keeps_in_proportion_to_the_sum_of_w_times_s():
    shares = []

    class Spy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            shares.append(self.model._sensprune_session.relevances())

    model, prune = network(), PruneAtEpochEnd(SparsityTarget(SparsitySchedule(0.75, "constant", begin=2), "relevance"))
    model.optimizer.learning_rate = 0.0  # so that the shares after the first epoch are nearly those after the second
    model.fit(X, Y, epochs=2, batch_size=16, verbose=0, callbacks=[Spy(), prune])
    assert [r.nonzero for r in prune.records] == [TOTAL, 108]
    assert min(shares[0]) > 0
    kept = np.subtract([240, 160, 32], zeros(model))
    assert kept.sum() == 108
    expected = 108 * np.array(shares[0]) / sum(shares[0])
    # no refresh between the two epochs, so S is the same, and w has shrunk by at most 2e-3; rounding is below 1
    np.testing.assert_allclose(kept, expected, atol=1 + 2e-3 * 108)


def test_limits_hold_and_every_form_means_the_same():
    forms = [
        {"net/dense20/kernel": (0.0, 0.3), "*/dense8/*": (0.9, 1.0)},
        lambda label: {"net/dense20/kernel": (0.0, 0.3), "net/dense8/kernel": (0.9, 1.0)}.get(label),
    ]
    found = [zeros(fit(SparsityTarget(SparsitySchedule(0.5, "constant"), limits=f), epochs=1)[0]) for f in forms]
    assert found[0] == found[1]
    assert sum(found[0]) == TOTAL // 2
    assert found[0][0] <= 0.3 * 240
    assert found[0][1] >= 0.9 * 160


def test_zeros_that_exist_count_and_never_come_back():
    model = network()
    kernel = model.layers[0].kernel
    value = kernel.numpy()
    value[:, :10] = 0
    kernel.assign(value)
    model, prune, _ = fit(SparsityTarget(SparsitySchedule(0.6, end=4)), model=model)
    assert np.all(model.layers[0].kernel.numpy()[:, :10] == 0)
    assert next(r.total - r.nonzero for r in prune.records) >= 120
    assert sum(zeros(model)) == round(0.6 * TOTAL)


def test_a_group_structure_is_met_from_below_by_whole_groups():
    model, prune, _ = fit(SparsityTarget(SparsitySchedule(0.7, "constant")), epochs=1, structure=Block(1, 4))
    asked, got = round(0.7 * TOTAL), prune.records[-1].total - prune.records[-1].nonzero
    assert asked - 4 < got <= asked
    for v in model.trainable_variables:
        if v.regularizer is not None:
            blocks = (v.numpy() != 0).reshape(-1, 4, v.shape[1]).sum(1)
            assert set(np.unique(blocks)) <= {0, 4}


@pytest.mark.parametrize("frequency", [7, 100])
def test_a_schedule_of_tfmot_fires_if_it_was_true_at_any_step(frequency):
    tfmot = import_tfmot()
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.2, 0.8, begin_step=0, end_step=6, frequency=frequency)
    model, prune, _ = fit(SparsityTarget(schedule), epochs=4)
    expected = 0.0
    values = []
    for step in range(8):
        fires, sparsity = schedule(step)
        expected = float(sparsity) if bool(fires) else expected
        values.append(expected)
    assert [r.total - r.nonzero for r in prune.records] == [round(s * TOTAL) for s in values[1::2]]
    assert sum(zeros(model)) == round(expected * TOTAL) > 0


class Counted:
    """Like a schedule of TF-MOT: 0.1 more in each step; counts how often it is asked."""

    begin_step, frequency, asked = 0, 1, 0

    def __call__(self, step):
        self.asked += 1
        return True, 0.1 * (step + 1)


def test_all_steps_of_a_schedule_of_tfmot_are_asked_once_also_in_a_resumed_run(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    def train(name, *others, **settings):
        schedule = Counted()
        rule = SparsityTarget(schedule, limits={"net/dense20/kernel": (0.9, 1.0)})
        prune = PruneAtEpochEnd(rule, state_path=tmp_path / name)
        callbacks = [*others, prune]
        models[name].fit(X, Y, epochs=4, batch_size=16, shuffle=False, verbose=0, callbacks=callbacks, **settings)
        return schedule.asked, [r.total - r.nonzero for r in prune.records]

    models = {"whole": network(), "stopped": network()}
    expected = [round(s * TOTAL) for s in (0.2, 0.4, 0.6, 0.8)]
    assert train("whole") == (4 + 4, expected)  # the last step of each epoch, before training and when it is due
    assert train("stopped", Stop()) == (4 + 2, expected[:2])
    assert train("stopped", initial_epoch=2) == (4 + 2, expected)
    assert zeros(models["whole"])[0] >= 0.9 * 240
    for a, b in zip(*(model.get_weights() for model in models.values()), strict=True):
        np.testing.assert_array_equal(a, b)


class Firing:
    """Like a schedule of TF-MOT that is true at these steps, of which an epoch has two: 0.1 more with each step."""

    begin_step, frequency = 0, 1

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, step):
        return step in self.steps, 0.1 * (step + 1)


def test_the_epochs_that_are_due_decide_what_is_the_end():
    """Every third epoch from 1: after 1 and 4; what lies behind the last one need not be reached."""
    rule = SparsityTarget(SparsitySchedule(0.9, "linear", begin=0, end=5))
    _, prune, _ = fit(rule, epochs=6, start_epoch=1, frequency=3)
    assert [r.total - r.nonzero for r in prune.records] == [0, *[round(0.36 * TOTAL)] * 3, *[round(0.9 * TOTAL)] * 2]
    _, prune, _ = fit(SparsityTarget(Firing(1, 7)), start_epoch=0, frequency=3)
    assert [r.total - r.nonzero for r in prune.records] == [round(s * TOTAL) for s in (0.2, 0.2, 0.2, 0.8)]
    _, prune, _ = fit(SparsityTarget(SparsitySchedule(0.9, "constant")), start_epoch=3)
    assert prune.records[-1].nonzero == TOTAL - round(0.9 * TOTAL)


def later(rule, model, epochs, **options):
    """A `fit` that goes on at epoch 4."""
    prune = PruneAtEpochEnd(rule, **options)
    model.fit(X, Y, epochs=epochs, initial_epoch=4, batch_size=16, verbose=0, callbacks=[prune])
    return [r.total - r.nonzero for r in prune.records]


def test_a_later_fit_counts_its_own_epochs_unless_the_model_is_sparse_enough():
    rule = SparsityTarget(SparsitySchedule(0.503, end=3))
    with pytest.raises(ArgumentError, match="goes on in epoch 4"):
        later(rule, network(), 6)
    with pytest.raises(
        ArgumentError, match="`start_epoch` must be such that a pruning is due after one of the epochs 4 to 5"
    ):
        later(SparsityTarget(0.5), network(), 6, frequency=3)
    model, _, _ = fit(rule)
    assert later(rule, model, 6) == [217] * 2
    assert later(SparsityTarget(0.25), model, 5, frequency=9) == [217]
    model, prune, _ = fit(rule, structure=Block(1, 4))
    assert later(rule, model, 5, structure=Block(1, 4)) == [TOTAL - prune.records[-1].nonzero]


def test_a_resumed_run_counts_the_prunings_before(tmp_path):
    """Killed after the last pruning that is due, and after the end of the schedule."""
    rule, options = SparsityTarget(SparsitySchedule(0.5, end=3)), {"state_path": tmp_path / "state", "frequency": 3}

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 3

    model = network()
    callbacks = [Stop(), PruneAtEpochEnd(rule, **options)]
    model.fit(X, Y, epochs=6, batch_size=16, shuffle=False, verbose=0, callbacks=callbacks)
    assert later(rule, model, 6, **options)[-1] == TOTAL // 2


REFUSED = {
    "percent": (lambda: SparsityTarget(90), "schedule"),
    "a function": (lambda: SparsityTarget(lambda step: 0.5), "schedule"),
    "allocation": (lambda: SparsityTarget(0.5, "layerwise"), "allocation"),
    "limits": (lambda: SparsityTarget(0.5, limits=0.3), "limits"),
    "bounds": (lambda: SparsityTarget(0.5, limits={"*": (0.5, 0.2)}), "limits"),
    "no pair": (lambda: SparsityTarget(0.5, limits={"*": 0.5}), "limits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_named(name):
    build, argument = REFUSED[name]
    with pytest.raises(ArgumentError, match=f"Argument `{argument}` must be"):
        build()


AT_THE_START = {
    "no weight matches": (SparsityTarget(0.5, limits={"*/conv1/*": (0.0, 0.5)}), {}, "net/dense20/kernel"),
    "limits too narrow": (SparsityTarget(0.9, limits={"*": (0.0, 0.5)}), {}, "389 zeros of 432 weights"),
    "N of M": (SparsityTarget(0.5), {"structure": NofM(2, 4)}, "itself says how many go"),
    "never prunes": (SparsityTarget(SparsitySchedule(0.5, begin=5, end=9)), {}, "prunes within 4 epochs"),
    "no pruning is due": (
        SparsityTarget(0.9),
        {"start_epoch": 50},
        "`start_epoch` must be such that",
    ),
    "the last pruning comes too early": (
        SparsityTarget(0.9),
        {"frequency": 9},
        "one that is at 0.9 by the last pruning, after epoch 0 of 4 (from 0), not at 0.633333",
    ),
    "it ends after the training": (SparsityTarget(SparsitySchedule(0.9, "linear", end=8)), {}, "not at 0.45"),
    "over before the first pruning": (
        SparsityTarget(SparsitySchedule(0.9, end=2)),
        {"start_epoch": 2},
        "one that goes on in epoch 2 (from 0), the first after which a pruning is due",
    ),
    "TF-MOT fires in other epochs": (SparsityTarget(Firing(2, 3)), {"frequency": 2}, "prunes within 4 epochs"),
    "TF-MOT ends in other epochs": (
        SparsityTarget(Firing(0, 5)),
        {"frequency": 3},
        "after epoch 3 of 4 (from 0), not at 0.1",
    ),
    "schedule ends before it begins": (SparsityTarget(SparsitySchedule(0.5, begin=3, end=0.5)), {}, "of 4 epochs"),
}


@pytest.mark.parametrize("name", AT_THE_START)
def test_what_cannot_work_is_refused_before_training_starts(name):
    rule, options, message = AT_THE_START[name]
    model = network()
    before = [w.numpy() for w in model.weights]
    with pytest.raises(ArgumentError) as caught:
        fit(rule, model=model, **options)
    assert message in str(caught.value)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert not fnmatch.filter(vars(model), "*sensprune*")
