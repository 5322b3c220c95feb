"""A run that was stopped and resumed is, bit for bit, the run that was not."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer, epoch_data, make_pruning_step
from keras_sensprune.errors import ArgumentError, DataError, ModelError
from keras_sensprune.training.snapshot import seed_generators
from tests.training.resume_runs import STEPS, blocks, data
from tests.training.test_fit import pristine

ROOT = Path(__file__).resolve().parents[2]
X, Y, *_ = data().values()
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
D = keras.layers.Dense
# All that look at the same killed processes run in one worker of the test runner.
TOGETHER = pytest.mark.xdist_group("killed runs")


# Processes that are killed


def killed_runs(folder, *scenarios):
    """Runs the recipe of the page, see resume_runs.py."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(ROOT / "tests" / "training" / "resume_runs.py"), str(folder), *scenarios]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr


def outcome(folder):
    """Weights, optimizer state and records that a run left; its script has cleared up behind it."""
    assert sorted(os.listdir(folder)) == ["records.json", "sparse.keras"]
    model = keras.saving.load_model(folder / "sparse.keras")
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]], (folder / "records.json").read_text()


def assert_same(found, expected):
    for a, b in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert found[1] == expected[1]


def test_a_killed_process_is_resumed_bit_for_bit_by_the_same_script(tmp_path):
    killed_runs(tmp_path, "whole", "batch")
    expected = outcome(tmp_path / "whole")
    records = json.loads(expected[1])
    assert [record["epoch"] for record in records] == list(range(12))
    assert 0 < records[5]["nonzero"] < records[1]["nonzero"] < records[0]["total"]
    assert_same(outcome(tmp_path / "batch"), expected)


SCENARIOS = (
    "other order: batch",
    "first batch",
    "last batch+validation",
    "before first backup",
    "before backup",
    "torn backup",
    "inside our file",
    "before our file has its name",
    "before the model is saved",
)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    killed_runs(folder, "whole", "backup without epoch", *SCENARIOS)
    return folder


@TOGETHER
@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_does_not_matter_where_the_process_was_killed(whole_run, scenario):
    assert_same(outcome(whole_run / scenario), outcome(whole_run / "whole"))


@TOGETHER
@pytest.mark.slow
def test_a_backup_whose_epoch_is_not_that_of_its_weights_is_refused_with_the_repair(whole_run):
    folder = whole_run / "backup without epoch"
    metadata = json.loads((folder / "backup" / "training_metadata.json").read_text())
    assert metadata["epoch"] == 3
    assert (folder / "error.txt").read_text() == (
        f"DataError: pruning.state: its state after {4 * STEPS} updates, as many as the model has made, belongs to the "
        "beginning of epoch 4, but training starts at epoch 3. To go on, train with fit(..., initial_epoch=4); for "
        "another run, delete the file or choose another path. If "
        'BackupAndRestore chose the epoch, the process died between its two files: write "epoch": 4 into its '
        "training_metadata.json."
    )
    (folder / "backup" / "training_metadata.json").write_text(json.dumps({**metadata, "epoch": 4}))
    (folder / "error.txt").unlink()
    killed_runs(whole_run, "again: backup without epoch")
    assert_same(outcome(folder), outcome(whole_run / "whole"))


# Saved, loaded, and trained on


def dropout():
    r = SensitivityRegularizer(1e-2)
    layers = [D(8, "relu", kernel_regularizer=r), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
    return keras.Sequential([keras.Input((12,)), *layers, D(10, kernel_regularizer=r)])


def recurrent():
    r = SensitivityRegularizer(8e-2)
    gru = keras.layers.GRU(6, kernel_regularizer=r, recurrent_regularizer=r, dropout=0.2, bias_initializer="ones")
    return keras.Sequential([keras.Input((12,)), keras.layers.Reshape((3, 4)), gru, D(10)])


def smooth():
    r = SensitivityRegularizer(1e-2, order=2)
    layers = [D(8, "gelu", kernel_regularizer=r), keras.layers.GaussianNoise(0.1), D(10, kernel_regularizer=r)]
    return keras.Sequential([keras.Input((12,)), *layers])


def coupled():
    r = SensitivityRegularizer(1e-2, decoupled=False)
    return keras.Sequential([keras.Input((12,)), D(8, "tanh", kernel_regularizer=r), D(10, kernel_regularizer=r)])


def schedule():
    return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 4 * STEPS), momentum=0.9)


# Refreshes every 5 of 7 steps, so that one falls on another step in every epoch; the rest is pending when it ends.
CASES = {
    "dropout": (dropout, "adam", Sensitivity(every=5), {}),
    "recurrent units": (recurrent, "adam", Sensitivity(every=5), {"structure": "unit", "threshold": 0.2}),
    "averaged sampled outputs": (dropout, schedule, Sensitivity("unspecific", every=3, scale="relative"), {}),
    "smooth, second order": (smooth, "rmsprop", Sensitivity("loss", every=5), {"frequency": 2}),
    "coupled, every step": (coupled, "nadam", Sensitivity(every=1), {"start_epoch": 1}),
    "accumulated gradients": (
        dropout,
        lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
        Sensitivity(every=5),
        {},
    ),
    "scaled loss": (
        dropout,
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
        Sensitivity(every=5),
        {},
    ),
}
FAST = ("dropout",)
SHOWN = [pytest.param(case, marks=[] if case in FAST else [pytest.mark.slow]) for case in CASES]


def compiled(build, optimizer="adam"):
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(optimizer() if callable(optimizer) else optimizer, LOSS, metrics=["accuracy"])
    return model


def train(model, path, epochs, *others, initial_epoch=0, threshold=0.05, sensitivity=None, **settings):
    """Trains with a state file; others are callbacks before ours. Returns the records."""
    pruner = PruneAtEpochEnd(threshold, sensitivity, state_path=path, **settings)
    batches = epoch_data(X, Y, 32, 0, model)
    callbacks = [*others, pruner]
    model.fit(batches, epochs=epochs, initial_epoch=initial_epoch, shuffle=False, verbose=0, callbacks=callbacks)
    return pruner.records


def values(model):
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


@pytest.mark.filterwarnings("ignore:All weights of")  # some layers of these small networks die but for one unit
@pytest.mark.parametrize("case", SHOWN)
def test_saved_loaded_and_trained_on_is_the_uninterrupted_run(case, tmp_path):
    build, optimizer, sensitivity, settings = CASES[case]
    settings = {"sensitivity": sensitivity, **settings}
    whole = compiled(build, optimizer)
    expected = train(whole, tmp_path / "whole", 4, **settings)
    assert expected[-1].nonzero < expected[-1].total
    stopped = compiled(build, optimizer)
    train(stopped, tmp_path / "stopped", 2, **settings)
    stopped.save(tmp_path / "model.keras")
    keras.utils.set_random_seed(99)  # as in a process that knows nothing of the first
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    records = train(resumed, tmp_path / "stopped", 4, initial_epoch=2, **settings)
    assert_same((values(resumed), unlabeled(records)), (values(whole), unlabeled(expected)))


def unlabeled(records):
    """Paths are labels, which change when a model is loaded."""
    return [dataclasses.replace(r, kept_by_floor=("",) * len(r.kept_by_floor)) for r in records]


@pytest.mark.parametrize("position", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_model_checkpoints_are_those_of_the_state_file_wherever_the_callback_stands(tmp_path, position):
    whole = compiled(dropout)
    expected = train(whole, tmp_path / "whole", 4)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    stopped, pruner = compiled(dropout), PruneAtEpochEnd(0.05, state_path=tmp_path / "stopped")
    callbacks = [checkpoint, pruner] if position == "before" else [pruner, checkpoint]
    stopped.fit(epoch_data(X, Y, 32, 0, stopped), epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    records = train(resumed, tmp_path / "stopped", 4, initial_epoch=3)
    assert_same((values(resumed), records), (values(whole), expected))


def test_what_keras_saves_does_not_hold_the_seeds_that_our_file_holds(tmp_path):
    model = compiled(dropout)
    train(model, tmp_path / "state", 1)
    model.save(tmp_path / "model.keras")
    drawn = [generator.state.numpy().tolist() for generator in seed_generators(model)]
    keras.utils.set_random_seed(99)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [generator.state.numpy().tolist() for generator in seed_generators(loaded)] != drawn
    with make_pruning_step(loaded) as step:
        step.load_state(tmp_path / "state")
    assert [generator.state.numpy().tolist() for generator in seed_generators(loaded)] == drawn
    assert drawn[0][1] == STEPS  # one draw per step


# Beginnings that are refused


def refused(model, path, **settings):
    """The message; model and files are as before."""
    before, files = model.get_weights(), {p: p.read_bytes() for p in path.parent.iterdir()}
    with pytest.raises(DataError) as caught:
        train(model, path, 4, **settings)
    assert pristine(model)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == files
    return str(caught.value)


def test_fit_refuses_to_begin_with_a_file_that_does_not_belong_to_it(tmp_path):
    path, model = tmp_path / "state", compiled(dropout)
    assert "there is no such file, but training starts at epoch 1" in refused(model, path, initial_epoch=1)
    train(model, path, 2)
    assert f"train with fit(..., initial_epoch={2})" in refused(model, path)
    new = compiled(dropout)
    assert "To begin anew, delete the file or choose another path." in refused(new, path)
    assert "this run has {'kind': 'none'" in refused(model, path, initial_epoch=2, sensitivity=Sensitivity("none"))
    path.write_bytes(path.read_bytes()[:-1])
    assert "it is damaged" in refused(model, path, initial_epoch=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*without the PruneAtEpochEnd callback")
def test_a_dense_fit_may_come_before_and_a_first_epoch_that_was_broken_off(tmp_path):
    def dense():
        model = compiled(dropout)
        model.fit(epoch_data(X, Y, 32, 0, model), epochs=2, shuffle=False, verbose=0)
        return model

    expected = dense(), tmp_path / "whole"
    records = train(*expected, 2)
    broken = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(dense(), tmp_path / "broken", 2, broken)
    assert (tmp_path / "broken").exists()
    again = dense()
    assert_same((train(again, tmp_path / "broken", 2), values(again))[::-1], (records, values(expected[0]))[::-1])


def test_records_logs_and_copies_of_good_weights_go_on_where_they_were(tmp_path):
    model, path = compiled(dropout), tmp_path / "state"
    pruner = PruneAtEpochEnd(0.05, state_path=path, keep_last_good=True)
    settings = dict(shuffle=False, verbose=0, callbacks=[pruner])
    model.fit(epoch_data(X, Y, 32, 0, model), epochs=2, **settings)
    first = list(pruner.records)
    good = model.get_weights()
    bad = epoch_data(np.full_like(X, np.nan), Y, 32, 0, model)
    with pytest.raises(Exception, match="not finite"):  # the first epoch after the resumption
        model.fit(bad, initial_epoch=2, epochs=3, **settings)
    assert pruner.records == first
    for a, b in zip(model.get_weights(), good, strict=True):
        np.testing.assert_array_equal(a, b)


# Custom loops


def test_a_custom_loop_that_was_broken_off_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    def loop(folder, script):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        names = {"model": compiled(dropout), "x": X, "y": Y}
        exec(compile(script, "docs/resume.md", "exec"), names)
        return values(names["model"]), names["step"].records

    script = blocks()[1]
    expected = loop(tmp_path / "whole", script)
    assert len(expected[1]) == 6
    short = script.replace("for epoch in range(start, 6)", "for epoch in range(start, 2)")
    loop(tmp_path / "broken", short)
    # dies after our file is written, before the model is saved
    cut = short.replace("range(start, 2)", "range(start, 3)").replace('model.save_weights("new', 'raise OSError("new')
    with pytest.raises(OSError, match="new"):
        loop(tmp_path / "broken", cut)
    assert_same(loop(tmp_path / "broken", script), expected)


def test_a_custom_loop_refuses_a_missing_file_and_one_that_it_has_not_written(tmp_path):
    path = tmp_path / "state"
    with make_pruning_step(compiled(dropout)) as step:
        with pytest.raises(DataError) as caught:
            step.load_state(path)
        assert str(caught.value) == f"{path}: there is no such file. Save a state there before it is loaded."
        step.save_state(path)
        step.prune(0.05)
        step.save_state(path)
    with make_pruning_step(compiled(dropout)) as other:
        with pytest.raises(DataError, match=r"belongs to another run\. Load it, delete it, or choose another path"):
            other.save_state(path)
        assert other.load_state(path) == 1
        other.save_state(path)
        assert other.records == step.records
    with pytest.raises(ArgumentError, match="Argument `path` must be the path of a file"):
        other.save_state(tmp_path)


# The order of the data


def rows(batches):
    return [int(np.flatnonzero((row == X).all(axis=1))[0]) for x, _ in batches for row in x]


def test_the_order_is_a_function_of_seed_and_updates():
    model = compiled(dropout)
    first = rows(epoch_data(X, Y, 32, 0, model))
    assert sorted(first) == list(range(len(X)))
    assert first != sorted(first)
    assert rows(epoch_data(X, Y, 32, 0, model)) == first
    assert rows(epoch_data(X, Y, 50, 0, model)) == first
    assert rows(epoch_data(X, Y, 32, 1, model)) != first
    data_of_model = epoch_data(X, Y, 32, 0, model)
    model.optimizer.iterations.assign(STEPS)
    assert rows(data_of_model) != first
    model.optimizer.iterations.assign(0)
    assert rows(data_of_model) == first


@pytest.mark.parametrize("settings", [{}, {"steps_per_execution": 3}], ids=str)
def test_fit_gives_each_epoch_its_own_order(settings):
    seen = []

    class Watching(keras.layers.Layer):
        def call(self, x):
            return tf.ensure_shape(tf.py_function(lambda v: seen.append(v.numpy()) or v, [x], x.dtype), x.shape)

        def compute_output_shape(self, shape):
            return shape

    model = keras.Sequential([keras.Input((12,)), Watching(), D(10)])
    model.compile("sgd", LOSS, **settings)
    model.fit(epoch_data(X, Y, 32, 5, model), epochs=2, shuffle=False, verbose=0)
    for epoch in range(2):
        model.optimizer.iterations.assign(epoch * STEPS)
        expected = np.concatenate([x for x, _ in epoch_data(X, Y, 32, 5, model)])
        np.testing.assert_array_equal(np.concatenate(seen[epoch * STEPS : (epoch + 1) * STEPS]), expected)


def test_data_may_be_nested_and_weighted():
    model = compiled(dropout)
    weight = np.arange(len(X), dtype="float32")
    x, y, w = next(iter(epoch_data({"a": X, "b": (X, weight)}, Y, 8, 0, model, sample_weight=weight)))
    taken = w.astype(int)
    np.testing.assert_array_equal(x["a"], X[taken])
    np.testing.assert_array_equal(x["b"][1], weight[taken])
    np.testing.assert_array_equal(y, Y[taken])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"batch_size": 0}, "Argument `batch_size` must be an integer of at least 1. Received: 0."),
        ({"seed": -1}, "Argument `seed` must be an integer of at least 0. Received: -1."),
        ({"seed": 1.5}, "Argument `seed` must be an integer of at least 0. Received: 1.5."),
        ({"y": Y[:5]}, f"Received: [{X.shape}, (5,)]."),
        ({"x": X[:0], "y": Y[:0]}, "Received: [(0, 12), (0,)]."),
        ({"x": np.float32(3)}, "Received: [(), "),
    ],
)
def test_data_that_cannot_be_ordered_is_refused(changed, told):
    with pytest.raises(ArgumentError) as caught:
        epoch_data(**{"x": X, "y": Y, "batch_size": 8, "seed": 0, "model": compiled(dropout), **changed})
    assert told in str(caught.value)


def test_data_of_a_model_without_an_optimizer_is_refused():
    with pytest.raises(ModelError, match=r"has no optimizer that counts its updates\. Compile it first"):
        epoch_data(X, Y, 8, 0, dropout())
