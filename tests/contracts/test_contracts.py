"""The contract table: every model trained by every route keeps what the package promises.

Here each route and each model once (EfficientNetB0 takes too long), and in the slow tests some cells more;
`benchmarks/contract_table.py` runs all.
"""

import json
import random
import subprocess
import sys

import pytest

from tests.contracts.cell import CELLS, check
from tests.contracts.models import MODELS
from tests.contracts.routes import ROUTES

OF_ROUTES = [f"{route.fast}, {name}" for name, route in ROUTES.items() if route.replicas == 1]
TAKEN = {CELLS[name][0] for name in OF_ROUTES}
FAST = OF_ROUTES + [f"{model}, eager" for model, case in MODELS.items() if model not in TAKEN and not case.heavy]
HEAVY = [f"{model}, eager" for model in ("Bidirectional", "MobileNetV2")]
LONG = {name for name, (model, route) in CELLS.items() if MODELS[model].heavy or route in ("jit", "two replicas")}
MORE = random.Random(0).sample([name for name in CELLS if name not in LONG.union(FAST)], 8)


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)])
def test_each_route_and_each_model_keeps_the_promises(name):
    check(name, quick=True)  # it asserts


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_some_more_cells_keep_the_promises(name):
    check(name)  # it asserts


@pytest.mark.slow
def test_two_replicas_keep_the_promises():
    names = [f"{model}, two replicas" for model in (ROUTES["two replicas"].fast, "tied weights")]
    command = [sys.executable, "-m", "tests.contracts.cell", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(o["cell"], o["reason"]) for o in outcomes] == [(name, "") for name in names]
