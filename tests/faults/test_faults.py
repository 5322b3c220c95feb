"""Every injected fault is survived as promised."""

import warnings

import pytest

from tests.faults.table import FAULTS

CASES = [pytest.param(fault, id=fault.name, marks=[pytest.mark.slow] if fault.slow else []) for fault in FAULTS]


@pytest.mark.parametrize("fault", CASES)
def test_the_fault_is_survived(fault, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`shuffle=True` was passed", UserWarning)  # Keras, of a generator
        fault.run(tmp_path)  # raises if anything is not as promised
    assert fault.promise
