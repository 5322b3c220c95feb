"""Every injected fault of `tests/faults/table.py`, one after the other: tried, survived, lost.

    python benchmarks/faults.py | cat            some minutes; writes results/faults.json. Without a pipe, output into a
                                                 file would meet the limits on file sizes that some faults set
    python benchmarks/faults.py --area files

Survived means that everything held that the row promises: the functions are those that the tests run.
"""

import argparse
import collections
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from results import RESULTS, host, write

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults.table import FAULTS, Fault


def attempt(fault: Fault) -> dict:
    """The row of a fault: what it is, what was promised, and whether that held."""
    begun, lost = time.perf_counter(), ""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fault.run(Path(folder))
        except BaseException as error:  # a Ctrl-C that got through is a loss as well
            lost = traceback.format_exception_only(error)[-1].strip()[:300]
    seconds = round(time.perf_counter() - begun, 2)
    row = {"area": fault.area, "fault": fault.name, "promise": fault.promise, "seconds": seconds}
    return row | {"result": "lost" if lost else "survived"} | ({"reason": lost} if lost else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", choices=sorted({fault.area for fault in FAULTS}), help="default: all")
    options = parser.parse_args()
    started, begun, rows = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter(), []
    chosen = [fault for fault in FAULTS if options.area in (None, fault.area)]
    for fault in chosen:
        rows.append(attempt(fault))
        print(f"{len(rows)}/{len(chosen)} {rows[-1]['result']}: {fault.name} {rows[-1].get('reason', '')}", flush=True)
    counts = collections.Counter(row["result"] for row in rows)
    totals = {"tried": len(rows), "survived": counts["survived"], "lost": counts["lost"], "area": options.area or "all"}
    name = "faults.json" if options.area is None else f"faults-{options.area}.json"
    made = host(started, time.perf_counter() - begun, seed=0, data="random")
    write(RESULTS / name, made | totals | {"faults": rows})


if __name__ == "__main__":
    main()
