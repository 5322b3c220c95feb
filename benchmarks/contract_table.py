"""The whole contract table: every model trained by every route, in one JSON file that grows cell by cell.

    python benchmarks/contract_table.py                                 every cell that has no result yet
    python benchmarks/contract_table.py --cells "LSTM, jit" "GRU, jit"  these, also if they have one
    python benchmarks/contract_table.py --folder elsewhere              the file goes to another folder

Models, routes and promises are those of `tests/contracts/`. The cells of a model share a process with two logical CPUs;
a cell that ends the process has failed, and the next one begins in a new process.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from results import RESULTS, host, write

ROOT = Path(__file__).resolve().parent.parent


def outcomes(names: list[str]) -> Iterator[dict]:
    """The outcome of each cell, as soon as it is known."""
    left = list(names)
    while left:
        begun = time.perf_counter()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            command = [sys.executable, "-m", "tests.contracts.cell", *left]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
                for line in child.stdout:
                    yield json.loads(line)
                    left.pop(0)
                    begun = time.perf_counter()
            if left:
                errors.seek(0)
                last = ([line for line in errors.read().splitlines() if line.strip()] or [""])[-1]
                reason = f"the process has ended with code {child.returncode}: {last[:300]}"
                seconds = round(time.perf_counter() - begun, 1)
                yield {"cell": left.pop(0), "ok": False, "reason": reason, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="'model, route'; default: all that are missing")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(ROOT))
    from tests.contracts.cell import CELLS

    path, started = options.folder / "contracts.json", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    found = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else {}
    names = options.cells or [name for name in CELLS if name not in found]
    unknown = [name for name in names if name not in CELLS]
    if unknown:
        parser.error(f"no such cell: {unknown}; for example {next(iter(CELLS))!r}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for _, group in itertools.groupby(names, lambda name: CELLS[name][0]):
        for outcome in outcomes(list(group)):
            name = outcome.pop("cell")
            found[name] = outcome
            cells = {key: found[key] for key in CELLS if key in found}  # cells that no longer exist are dropped
            seconds = sum(cell["seconds"] for cell in cells.values())
            write(path, host(started, seconds, seed=0, data="seeded random") | {"of": len(CELLS), "cells": cells})
            print(name, "ok" if outcome["ok"] else outcome["reason"], outcome["seconds"], flush=True)


if __name__ == "__main__":
    main()
