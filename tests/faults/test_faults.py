"""Every injected fault is survived as promised."""

import pytest

from tests.faults.table import FAULTS

CASES = [pytest.param(fault, id=fault.name, marks=[pytest.mark.slow] if fault.slow else []) for fault in FAULTS]


# Keras says this of a generator; we, of the plain `fit` that checks whether a model is as it was.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@pytest.mark.filterwarnings("ignore:SensitivityRegularizer does nothing without:UserWarning")
@pytest.mark.parametrize("fault", CASES)
def test_the_fault_is_survived(fault, tmp_path):
    fault.run(tmp_path)  # raises if anything is not as promised
    assert fault.promise
