"""Two replicas equal one; they exchange signed derivatives, in the steps that refresh.

Each group of cases runs in a process of its own (`two_replicas.py`), because logical devices are fixed when TensorFlow
starts.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.training.two_replicas import BATCH, CASES, EPOCHS, X

# All that share a process of two replicas run in one worker of the test runner.
TOGETHER = pytest.mark.xdist_group("two replicas")
FAST = ("specific", "strength ramp", "units", "opposite halves", "opposite halves, mean of abs")
SLOW = tuple(name for name in CASES if name not in FAST)
# Case -> terms per weight where there is more than one: two signed sums; four outputs.
TERMS = {"projected": 2, "exact": 4}


def results(names):
    command = [sys.executable, "-m", "tests.training.two_replicas", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


@pytest.fixture(scope="module")
def fast():
    return results(FAST)


@pytest.fixture(scope="module")
def slow():
    return results(SLOW)


def assert_equal(one, two):
    assert one["sparsity"] == two["sparsity"]
    assert one["masks"] == two["masks"]
    # 6 steps; in each the sums over 16 examples and at most 12 inputs come in another order: 28 roundings of 6e-8 of
    # values of order 1, times 6.
    for name in ("weights", "sensitivities"):
        for a, b in zip(one[name], two[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", FAST)
def test_two_replicas_equal_one(case, fast):
    assert_equal(*fast[case])


@TOGETHER
@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_two_replicas_equal_one_in_all_settings(case, slow):
    assert_equal(*slow[case])


def test_pruning_happened_in_the_cases_compared(fast):
    assert all(0 < fast[case][1]["sparsity"][-1] < 1 for case in ("specific", "units"))


def test_signed_derivatives_cancel_before_the_absolute_value(fast):
    """One replica sees +1, the other -1: |mean| is 0, the mean of | | is 1, both exact in floating point."""
    assert np.all(np.array(fast["opposite halves"][1]["sensitivities"]) == 0)
    assert np.all(np.array(fast["opposite halves, mean of abs"][1]["sensitivities"]) == 1)


@TOGETHER
@pytest.mark.slow
@pytest.mark.parametrize("case", ["mean of abs", "second order"])
def test_no_layer_is_recorded_after_training(case, slow):
    """Replicas take turns, so the one that began to record a layer first ends first."""
    assert [found["recorded"] for found in slow[case]] == [[], []]


def assert_exchanges(case, found):
    """In every step the gradients and three flags of 8 bytes; in a refresh a signed derivative per term and weight."""
    trainable = 4 * sum(np.size(weight) for weight in found["weights"])
    regularized = 4 * sum(np.size(mask) for mask in found["masks"])
    in_every_step, when_due = trainable + 3 * 8, TERMS.get(case, 1) * regularized
    every = CASES[case][1].get("every", 32)
    assert found["exchanged"] == ([in_every_step + when_due, 0] if every == 1 else [in_every_step, when_due])


@pytest.mark.parametrize("case", FAST)
def test_what_replicas_exchange(case, fast):
    assert_exchanges(case, fast[case][1])
    gradients = 4 * sum(np.size(weight) for weight in fast[case][0]["weights"])
    steps = EPOCHS * len(X) // BATCH  # one replica, run step by step: Keras asks for its gradients alone
    assert fast[case][0]["exchanged"] == [steps * gradients, 0]


@TOGETHER
@pytest.mark.slow
@pytest.mark.parametrize("case", ["sampled", "exact", "projected", "loss", "mean of abs"])
def test_what_replicas_exchange_for_each_estimator(case, slow):
    assert_exchanges(case, slow[case][1])
