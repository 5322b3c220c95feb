"""A file runs in a process of its own; every way in which it can be wrong has its own clear reason."""

import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_sensprune.errors import ExportError
from keras_sensprune.export import convert, packing, verify
from keras_sensprune.export.agreement import Limits, check_output
from tests.export.test_flatbuffer import converted, mlp, packed, pruned, read, sparsely


class Case:
    """A model, its dense file, example inputs and what Keras answers to them."""

    def __init__(self, model, folder):
        self.model = model
        self.inputs = convert.model_inputs(model, None)
        self.arrays = convert.example_arrays(self.inputs, None)
        self.expected = convert.keras_outputs(model, self.inputs, self.arrays)
        self.dense = converted(model)
        self.file = folder / "model.tflite"

    def verify(self, content=None, expected=None, **options):
        self.file.write_bytes(self.dense if content is None else content)
        if "tolerance" in options:
            options["limits"] = Limits(options.pop("tolerance"))
        return verify.verify_file(self.file, self.arrays, expected or self.expected, **options)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(pruned(mlp(64, 48, 10), 0.9), tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    """Two inputs of one shape, whose order and alphabetical order differ, and two outputs of one shape."""
    zebra, ant = keras.Input((5,), name="zebra"), keras.Input((5,), name="ant")
    outputs = [keras.layers.Dense(3)(zebra), keras.layers.Dense(3)(ant - 2 * zebra)]
    return Case(pruned(keras.Model([zebra, ant], outputs), 0), tmp_path_factory.mktemp("two"))


def test_module_imports_neither_keras_nor_tensorflow_nor_litert():
    code = (
        "import sys, keras_sensprune.export.verify\n"
        "print([name for name in ('keras', 'tensorflow', 'ai_edge_litert') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_agreeing_file(case):
    result = case.verify()
    largest = float(np.abs(case.expected["output_0"]).max())
    assert result.max_difference <= 1e-6 < result.tolerance
    assert result.largest_output == largest
    assert result.tolerance == pytest.approx(1e-5 + 1e-4 * largest)
    assert (result.runs, result.examples) == (("LiteRT, default delegate", "LiteRT, no delegate"), 16)


def test_inputs_and_outputs_are_matched_by_name(crossed):
    assert crossed.inputs.names == ("zebra", "ant")
    assert crossed.verify().max_difference <= 1e-5
    swapped = {"output_0": crossed.expected["output_1"], "output_1": crossed.expected["output_0"]}
    with pytest.raises(ExportError, match=r"^Output 'output_0' of the file \(LiteRT, default delegate\) differs"):
        crossed.verify(expected=swapped)


def test_fixed_batch_runs_in_its_own_chunks(tmp_path):
    model = keras.Sequential([keras.Input(batch_shape=(8, 6)), keras.layers.Dense(3)])
    fixed = Case(pruned(model, 0), tmp_path)
    assert fixed.inputs.batch == 8
    assert fixed.verify(batch=8).examples == 16


@pytest.mark.parametrize("content", [b"", b"this is no model " * 20, None], ids=["empty", "garbage", "truncated"])
def test_file_that_does_not_load(case, content):
    content = case.dense[: len(case.dense) // 3] if content is None else content
    with pytest.raises(ExportError, match=r"^(LiteRT cannot run|The file crashes LiteRT).*\(default delegate\): .+"):
        case.verify(content)


def test_disagreement(case):
    wrong = {"output_0": case.expected["output_0"] + np.float32(0.25)}
    pattern = (
        r"Output 'output_0' of the file \(LiteRT, default delegate\) differs from the Keras model by 0\.25, "
        r"more than the tolerance \S+ \(largest absolute output: \S+\)\."
    )
    with pytest.raises(ExportError) as caught:
        case.verify(expected=wrong)
    assert re.fullmatch(pattern, str(caught.value))
    assert case.verify(expected=wrong, tolerance=0.26).max_difference == pytest.approx(0.25, abs=1e-6)


def test_one_wrong_weight_is_found(case):
    content = bytearray(case.dense)
    model = schema.Model.GetRootAs(content)
    weights = [model.Subgraphs(0).Tensors(t) for t in range(model.Subgraphs(0).TensorsLength())]
    (buffer,) = (t.Buffer() for t in weights if t.ShapeLength() == 2 and tuple(t.ShapeAsNumpy()) == (10, 48))
    values = model.Buffers(buffer).DataAsNumpy().view("<f4")
    values[np.flatnonzero(values)[0]] *= 1.5
    with pytest.raises(ExportError, match=r"differs from the Keras model by"):
        case.verify(bytes(content))


def test_nan_in_the_file(case):
    model = read(case.dense)
    for tensor in model.subgraphs[0].tensors:
        if tensor.shape is not None and tuple(tensor.shape) == (10, 48):
            model.buffers[tensor.buffer].data = np.full(480, np.nan, "<f4").view(np.uint8)
    with pytest.raises(ExportError) as caught:
        case.verify(packed(model))
    expected = (
        "Output 'output_0' of the file (LiteRT, default delegate) holds NaN or infinity, the Keras model does not."
    )
    assert str(caught.value) == expected


def test_sparse_weights_below_version_8_are_caught(case, monkeypatch):
    """Why the version is raised: the default delegate takes the operation and reads the short buffer as dense."""
    assert case.verify(sparsely(case.dense)).max_difference <= 1e-6
    monkeypatch.setattr(packing, "SPARSE_VERSION", 1)
    with pytest.raises(ExportError, match=r"default delegate\)"):
        case.verify(sparsely(case.dense))


STAND_IN = """
import enum, os, signal
import numpy as np

class OpResolverType(enum.Enum):
    AUTO = 0
    BUILTIN_WITHOUT_DEFAULT_DELEGATES = 3

class Interpreter:
    def __init__(self, path, experimental_op_resolver_type):
        if experimental_op_resolver_type.value >= int(os.environ["CRASH_FROM"]):
            os.kill(os.getpid(), signal.SIGSEGV)

    def get_signature_runner(self):
        return lambda **inputs: {"output_0": np.zeros((len(next(iter(inputs.values()))), 10), "f4")}
"""


@pytest.mark.parametrize(("crash_from", "run"), [(0, "default delegate"), (1, "no delegate")])
def test_crash_is_reported_by_run_and_signal(case, tmp_path, monkeypatch, crash_from, run):
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert" / "__init__.py").touch()
    (tmp_path / "ai_edge_litert" / "interpreter.py").write_text(STAND_IN)
    monkeypatch.setenv("CRASH_FROM", str(crash_from))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # the child gets the search path of its parent
    with pytest.raises(ExportError) as caught:
        case.verify()
    assert str(caught.value) == f"The file crashes LiteRT ({run}): the process was ended by SIGSEGV."


def test_timeout(case):
    with pytest.raises(ExportError) as caught:
        case.verify(timeout=0.01)
    assert str(caught.value) == "LiteRT did not finish with the file within 0.01 seconds."


def test_other_names_and_shapes(case):
    value = case.expected["output_0"]
    with pytest.raises(ExportError) as caught:
        case.verify(expected={"other": value})
    assert str(caught.value) == "The file has the outputs ['output_0'], the Keras model ['other']."
    with pytest.raises(ExportError) as caught:
        case.verify(expected={"output_0": value[:, :9]})
    # 17 = the first example alone, then all 16
    assert str(caught.value) == (
        "Output 'output_0' of the file (LiteRT, default delegate) has shape (17, 10), the Keras model gives (17, 9)."
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_keras_answer_that_is_not_finite(case, bad):
    value = case.expected["output_0"].copy()
    value[3, 1] = bad
    with pytest.raises(ExportError) as caught:
        case.verify(expected={"output_0": value})
    assert str(caught.value) == ("Output 'output_0' of the Keras model holds NaN or infinity for the example inputs.")


def test_integer_outputs_have_no_tolerance(tmp_path):
    inputs = keras.Input((6,))
    logits = keras.layers.Dense(4)(inputs)
    signs = Case(pruned(keras.Model(inputs, keras.ops.cast(logits > 0, "int32")), 0), tmp_path)
    result = signs.verify()
    assert (result.max_difference, result.tolerance) == (0.0, 0.0)
    wrong = signs.expected["output_0"].copy()
    wrong[5] += 1
    with pytest.raises(ExportError, match=r"differs from the Keras model by 1, more than the tolerance 0 "):
        signs.verify(expected={"output_0": wrong})


def scaled(factor):
    """A model of one layer with outputs of that order."""
    model = pruned(mlp(64, 32), 0)
    model.layers[0].kernel.assign(factor * model.layers[0].kernel)
    model.layers[0].bias.assign(factor * model.layers[0].bias)
    return model


@pytest.mark.parametrize("factor", [1e-7, 1e-5, 1])
def test_small_outputs_are_checked_like_large_ones(tmp_path, factor):
    case = Case(scaled(factor), tmp_path)
    assert case.verify().max_difference <= 1e-5 * case.verify().largest_output
    wrong = {name: np.float32(1.03) * value for name, value in case.expected.items()}
    with pytest.raises(ExportError, match="differs from the Keras model by") as caught:
        case.verify(expected=wrong)
    assert str(caught.value).endswith("pass other `data`.") == (factor < 1)


def test_outputs_that_are_all_zero_agree(tmp_path):
    result = Case(scaled(0), tmp_path).verify()
    assert (result.largest_output, result.max_difference) == (0, 0)


def test_a_twin_is_compared_run_by_run_and_called_by_its_name(case):
    answers = case.verify().answers
    assert case.verify(twin=answers).max_difference <= 1e-6
    last = list(answers)[-1]
    other = {**answers, last: {name: value + 1 for name, value in answers[last].items()}}
    with pytest.raises(ExportError, match=r"of the file \(LiteRT, no delegate\) differs from the dense file by 1"):
        case.verify(twin=other, limits=Limits(reference="the dense file"))


def test_one_wrong_unit_in_a_thousand_is_seen_by_the_peak_and_not_by_the_root_mean_square():
    value = np.random.default_rng(0).normal(size=(16, 1000))
    output = value.copy()
    output[:, 7] = 0
    limits = Limits(rounding=0.05)
    assert check_output(value, output, "Output", limits) > 1
    with pytest.raises(ExportError, match=r"differs from the dense file by \S+, more than the tolerance"):
        check_output(value, output, "Output", Limits(rounding=0.05, peak=0.05, reference="the dense file"))
