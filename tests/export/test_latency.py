"""`benchmark_tflite`: ratios of rounds, processes that fail, arguments. Times are compared with wide bounds only."""

import keras
import numpy as np
import pytest

from keras_sensprune import benchmark_tflite
from keras_sensprune.errors import ArgumentError, DataError, ExportError
from keras_sensprune.export import convert, latency
from keras_sensprune.records import from_json, to_json


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Dense layers of 16 and of 3 times 512 units; an embedding; a file with a fixed batch."""
    folder = tmp_path_factory.mktemp("latency")
    embedding = [keras.Input((4,), dtype="int32"), keras.layers.Embedding(2, 3, name="embedding")]
    models = {
        "small": keras.Sequential([keras.Input((64,)), keras.layers.Dense(16, name="a")]),
        "big": keras.Sequential([keras.Input((512,)), *(keras.layers.Dense(512, name=f"b{i}") for i in range(3))]),
        "indices": keras.Sequential(embedding),
        "fixed": keras.Sequential([keras.Input(batch_shape=(3, 8)), keras.layers.Dense(2, name="c")]),
    }
    paths = {name: folder / f"{name}.tflite" for name in models}
    for name, model in models.items():
        paths[name].write_bytes(convert.convert_dense(model, convert.model_inputs(model, None)))
    return paths


def test_a_bigger_network_is_slower_and_a_file_is_as_fast_as_itself(files):
    paths = [files["small"], files["small"], files["big"]]
    calls = []
    options = {"threads": (1,), "pairs": 3, "seconds": 0.05}
    same, bigger = latency.benchmark_files(paths, **options, progress=lambda *state: calls.append(state))
    # 1.3 million multiply-adds more: 50 times the small one's time. Noise of a busy machine is below a factor of 3.
    assert bigger.results[0].ratio_low > 3
    assert same.results[0].ratio_low < 3
    assert same.results[0].ratio_high > 1 / 3
    assert calls == [(i, 9) for i in range(1, 10)]
    result = bigger.results[0]
    assert result.ratio_low <= result.ratio <= result.ratio_high
    # weights of 3 MB must be somewhere; libraries and buffers take less than 100 MB
    assert 3e6 < result.candidate.memory_bytes < 1e8 + 3e6
    assert result.candidate.load_milliseconds > 0
    assert (bigger.baseline_bytes, bigger.candidate_bytes) == tuple(files[n].stat().st_size for n in ("small", "big"))
    assert from_json(to_json(bigger)) == bigger


def test_inputs_are_made_up_by_type_and_shape(files):
    record = benchmark_tflite(files["indices"], files["big"], threads=(2,), pairs=1, batch=5, seconds=0.01)
    assert (record.batch, record.results[0].threads) == (5, 2)
    record = benchmark_tflite(files["fixed"], files["fixed"], threads=(1,), pairs=1, batch=3, seconds=0.01)
    assert len(record.results[0].ratios) == 1


def test_a_fixed_batch_is_not_changed(files):
    with pytest.raises(ExportError, match="fixed batch of 3, 1 was asked for") as caught:
        benchmark_tflite(files["fixed"], files["small"], threads=(1,), pairs=1, seconds=0.01)
    assert str(files["fixed"]) in str(caught.value)


def test_files_that_do_not_run_are_named(files, tmp_path):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(files["small"].read_bytes()[:200])
    with pytest.raises(ExportError, match=r"damaged\.tflite"):
        benchmark_tflite(damaged, damaged, threads=(1,), pairs=1, seconds=0.01)
    with pytest.raises(DataError, match=r"none.tflite.*no such file"):
        benchmark_tflite(files["small"], tmp_path / "none.tflite")


def test_a_process_that_is_ended_is_an_error_with_the_files_name(files, monkeypatch):
    """Some files end the process that runs them; a child that ends itself stands for them here."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    run = latency.subprocess.run
    monkeypatch.setattr(latency.subprocess, "run", lambda command, **rest: run([command[0], "-c", code], **rest))
    with pytest.raises(ExportError, match=r"small.tflite' crashes LiteRT.*SIGSEGV"):
        benchmark_tflite(files["small"], files["small"], threads=(1,), pairs=1, seconds=0.01)


def test_a_process_that_takes_too_long_is_ended(files, monkeypatch):
    monkeypatch.setattr(latency, "TIMEOUT", 0.0)
    with pytest.raises(ExportError, match=r"small.tflite' did not finish"):
        benchmark_tflite(files["small"], files["small"], threads=(1,), pairs=1, seconds=0.01)


def test_ratios_are_taken_within_rounds():
    """A machine that is ten times slower in one round changes no ratio."""
    baseline = [(10.0, 1.0, 100.0), (100.0, 2.0, 100.0), (20.0, 3.0, 300.0)]
    candidate = [(5.0, 1.0, 50.0), (50.0, 1.0, 50.0), (10.0, 1.0, 60.0)]
    result = latency.compare(2, baseline, candidate)
    assert result.ratios == (0.5, 0.5, 0.5)
    assert (result.ratio, result.ratio_low, result.ratio_high) == (0.5, 0.5, 0.5)
    assert (result.baseline.microseconds, result.baseline.load_milliseconds, result.baseline.memory_bytes) == (
        20,
        2,
        100,
    )
    assert (result.candidate.microseconds_low, result.candidate.microseconds_high) == (7.5, 30.0)  # halfway to 10


def test_the_interval_holds_the_median_and_lies_within_the_ratios():
    generator = np.random.default_rng(0)
    candidate = [(float(time), 1.0, 1.0) for time in generator.uniform(1, 2, 15)]
    result = latency.compare(1, [(1.0, 1.0, 1.0)] * 15, candidate)
    assert min(result.ratios) < result.ratio_low < result.ratio == np.median(result.ratios) < result.ratio_high
    assert result.ratio_high < max(result.ratios)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", ()),
        ("threads", (1, 1)),
        ("threads", (0,)),
        ("threads", 2),
        ("pairs", 0),
        ("pairs", True),
        ("batch", 1.5),
        ("seconds", 0),
        ("seconds", float("nan")),
    ],
)
def test_arguments_that_make_no_sense_are_refused(files, name, value):
    with pytest.raises(ArgumentError, match=f"`{name}`"):
        benchmark_tflite(files["small"], files["small"], **{name: value})


def test_one_file_is_not_enough(files):
    with pytest.raises(ArgumentError, match="two or more files"):
        latency.benchmark_files([files["small"]])
    with pytest.raises(ArgumentError, match="path"):
        benchmark_tflite(None, files["small"])
