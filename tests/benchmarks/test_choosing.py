"""The studies behind docs/choosing.md: curves by their definition, scripts in quick mode, sentences that follow."""

import importlib
import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer, SparsitySchedule
from keras_sensprune.training.session import attached

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """name -> the module of a benchmark."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


# Curves


def straight(factor, compressions=(1, 20, 40, 80, 160)):
    """A curve on which the error is log2(compression / factor) + 3, reached `factor` times later."""
    return [(c, math.log2(c / factor) + 3) for c in compressions]


def test_the_gain_of_a_curve_is_the_factor_by_which_it_is_sparser(script):
    curves = script("curves")
    control = straight(1)
    for factor in (0.7, 1.0, 1.3, 1.9):
        for _, error in control[2:-1]:
            # the interpolation is exact where the error is linear in the logarithm; a dozen roundings of 1e-16
            assert curves.gain(straight(factor), control, error) == pytest.approx(factor, rel=1e-13)


def test_a_point_that_a_sparser_one_beats_does_not_count(script):
    curves = script("curves")
    bumpy = [(1, 3.0), (10, 2.0), (20, 2.5), (40, 2.2), (80, 4.0)]
    assert curves.frontier(bumpy) == [(10, 2.0), (40, 2.2), (80, 4.0)]
    assert curves.compression_at(bumpy, 2.2) == pytest.approx(40)
    assert curves.compression_at(bumpy, 2.1) == pytest.approx(20)  # halfway between log 10 and log 40
    # brute force: no point of the curve is both sparser and better than what is read off
    for error in np.linspace(2.0, 4.0, 21):
        reached = max(c for c, e in bumpy if e <= error)
        assert curves.compression_at(bumpy, error) >= reached * (1 - 1e-12)


def test_nothing_is_extrapolated(script):
    curves = script("curves")
    assert curves.compression_at(straight(1), -5.0) == pytest.approx(1)
    assert curves.compression_at(straight(1), 50.0) == pytest.approx(160)
    assert curves.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


# Forms


def test_a_search_stops_when_both_neighbors_of_the_best_are_known(script):
    search, asked = script("study").best_half_decade, []

    def error(value):
        asked.append(value)
        return abs(math.log10(value / 3.2e-3))

    assert search(1e-3, error, tried=6) == 3.2e-3
    assert asked == [1e-3, 3.2e-4, 3.2e-3, 1e-2]
    assert search(1e-3, error, tried=1) == 1e-3


def test_a_falling_strength_is_in_proportion_to_what_is_left_of_the_budget(script):
    left = script("forms").strength_left
    assert [left(2.0, error, 3.0, 0.5) for error in (2.0, 3.0, 3.125, 3.25, 3.475, 9.0)] == pytest.approx(
        [2.0, 2.0, 1.5, 1.0, 0.2, 0.2]
    )


def test_all_forms_are_allowed_configurations(script):
    for form in script("forms").FORMS.values():
        Sensitivity(**form.sensitivity, every=8)
        assert form.score in ("magnitude", "sensitivity")


def test_the_sensitivity_target_removes_the_least_w_times_s_with_exact_counts(script):
    rng = np.random.default_rng(0)
    sparse = SensitivityRegularizer(0.0)
    body = [keras.layers.Dense(n, "relu" if n > 4 else None, kernel_regularizer=sparse) for n in (12, 4)]
    model = keras.Sequential([keras.Input((10,)), *body])
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before, stored = [layer.kernel.numpy().ravel() for layer in body], []

    class Spy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            stored.extend(w.sensitivity.numpy().ravel() for w in attached(self.model).weights)

    rule = script("forms").SensitivityTarget(SparsitySchedule(0.6, "constant"))
    prune = PruneAtEpochEnd(rule, Sensitivity("specific", scale="relative", every=1))
    x, y = rng.normal(size=(32, 10)).astype("float32"), rng.integers(0, 4, 32)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[prune, Spy()])
    score = np.abs(np.concatenate(before)) * np.concatenate(stored)
    gone = np.concatenate([layer.kernel.numpy().ravel() == 0 for layer in body])
    assert gone.sum() == round(0.6 * gone.size)
    assert score[gone].max() <= score[~gone].min()
    size = np.abs(np.concatenate(before))
    assert size[gone].max() > size[~gone].min()  # by magnitude it would be another choice


@pytest.mark.slow
def test_a_run_of_the_forms_is_exact_and_not_run_twice(script, tmp_path, monkeypatch):
    forms = script("forms")
    said: list[str] = []
    study = forms.FormStudy("forms", forms.QUICK, tmp_path, lambda words, flush: said.append(words))
    study.run(["l2-score", "relevance-falling"], [0], 1)
    for name in ("l2-score", "relevance-falling"):
        record = json.loads(study.path(name).read_text())
        assert {"command", "versions", "seed", "seconds", "data", "protocol"} <= set(record)
        assert [row["part"] for row in record["rows"]] == ["validation", "test"]
        for row in record["rows"]:
            # 266,200 weights; at 4x and 8x the number of zeros is whole
            assert [c for c, _ in row["curve"]] == [4.0, 8.0]
            assert all(0 <= e <= 100 for e in [row["dense"], *(e for _, e in row["curve"])])
    assert len(said) == 4
    monkeypatch.setattr(study, "fit", None)  # would fail if anything were trained again
    study.run(["l2-score", "relevance-falling"], [0], 1)
    assert len(said) == 4
    study.path("l2-score").unlink()  # rows can be made again from the trained weights
    study.run(["l2-score"], [0], 1)
    assert len(said) == 6


def test_rows_of_another_protocol_are_not_mixed(script, tmp_path):
    forms = script("forms")
    study = forms.FormStudy("forms", forms.QUICK, tmp_path)
    study.path("l2").write_text(json.dumps({"protocol": {"network": "lenet-300-100"}, "rows": []}))
    with pytest.raises(SystemExit, match="made with another protocol"):
        study.rows("l2")


@pytest.mark.parametrize(
    ("name", "arguments", "rows"),
    [
        ("generalize", ["--rules", "l2", "--seeds", "0"], 2),
        pytest.param("surface", ["--networks", "lenet-300-100"], 2, marks=pytest.mark.slow),
        pytest.param("forms", ["--forms", "none", "--seeds", "0"], 2, marks=pytest.mark.slow),
    ],
)
def test_the_quick_mode_runs(name, arguments, rows, script, capsys):
    script(name).main(["--quick", *arguments])
    assert capsys.readouterr().out.count(", part ") == rows


# The page


def runs(factor, seeds=3):
    points = straight(factor)
    return [
        {"seed": n, "strength": 1e-3, "dense": points[0][1], "curve": [list(p) for p in points[1:]]}
        for n in range(seeds)
    ]


ASKS = ").** The goal asks LeNet-5 as well: "


@pytest.mark.parametrize(
    ("dense", "convolutional", "words"),
    [
        ({}, {}, "Not measured yet"),
        ({"l2": runs(1)}, {}, "Not measured yet"),
        (
            {"l2": runs(1), "raw": runs(1.1), "score": runs(0.8)},
            {},
            "best of 2 on LeNet-300-100 is raw, specific: 1.10 (1.10 to 1.10) over 3 seeds",
        ),
        (
            {"l2": runs(1), "raw": runs(1.1), "relevance": runs(1.2)},
            {"l2": runs(1, 1), "relevance": runs(1.25, 1)},
            "At 160x the best form is relevance: 1.20 (1.20 to 1.20) times fewer weights than L2, 1.25 on LeNet-5;",
        ),
        ({"l2": runs(1), "raw": runs(1.5, 1)}, {}, "**No form is shown to keep 1.3 times"),  # one seed is not enough
        ({"l2": runs(1), "none": runs(1.4)}, {}, "Not measured yet"),  # without a sensitivity it is no form of the rule
        ({"l2": runs(1), "none": runs(1.2), "raw": runs(1.5)}, {}, "raw, specific keeps 1.25 (1.25 to 1.25) times"),
        ({"l2": runs(1), "raw": runs(1.5)}, {}, f"LeNet-5 has not been run{ASKS}not confirmed"),
        ({"l2": runs(1), "raw": runs(1.5)}, {"l2": runs(1, 1), "raw": runs(1.2, 1)}, f"LeNet-5: 1.20{ASKS}not confirm"),
        ({"l2": runs(1), "raw": runs(1.5)}, {"l2": runs(1, 1), "raw": runs(1.4, 1)}, f"LeNet-5: 1.40{ASKS}confirmed"),
    ],
)
def test_the_verdict_follows_from_the_rows(dense, convolutional, words, script):
    assert words in script("choosing_tables").verdict(dense, convolutional)


def test_rows_say_what_the_runs_say(script):
    tables = script("choosing_tables")
    forms = {"l2": runs(1), "raw": runs(1.25)}
    assert tables.form_rows(forms)[1][-4:] == ["1.25 (1.25 to 1.25)", "1.25 (1.25 to 1.25)", "", "3"]
    assert tables.last_gains(runs(0.8), runs(1)) == pytest.approx([0.8] * 3)  # at the error of the better one
    surface = {"strength": 1e-3, "before": 3.0, "dense": 2.5, "thresholds": [0.1, 0.2, 0.3, 0.4]}
    surface |= {"sparsities": [0.5, 0.75, 0.9, 0.95], "errors": [3.0, 3.4, 9.0, 3.0]}
    assert tables.largest_rows([surface]) == [["0.001", "0.2", "4.0x"]]
    assert tables.largest_rows([surface, {**surface, "strength": 0.0, "before": 1.5}])[0] == ["0.001", "none", ""]
    assert tables.surface_rows([surface])[0][:3] == ["0.001", "3.00", "50.0: 3.00"]
    unpruned = {
        name: [{"seed": 0, "strength": 1e-3, "test_error": error, "test_loss": 0.1, "validation_error": 3.0}]
        for name, error in (("l2", 2.5), ("raw", 2.25))
    }
    for rows in unpruned.values():
        rows[0] |= {"validation_loss": 0.2, "train_error": 1.0, "train_loss": 0.05}
    assert tables.unpruned_rows(unpruned)[1][2:5] == ["2.00", "0.150", "2.25"]
    assert "raw, specific -0.25 points beside L2, in one seed" in tables.unpruned_verdict(unpruned)
    twice = {name: [rows[0], {**rows[0], "seed": 1}] for name, rows in unpruned.items()}
    assert "raw, specific is below L2 in all seeds (-0.25 points" in tables.unpruned_verdict(twice)
