"""Fixtures of the tests of training."""

from __future__ import annotations

import keras
import pytest


@pytest.fixture
def float64():
    """Everything that is built in the test computes in float64."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(3)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
