"""Hostile files: at least 10,000 per format that the package opens, each accepted or refused with an error of ours.

    python benchmarks/fuzz.py                                  every format; what a result file has already is kept
    python benchmarks/fuzz.py --formats json npz --inputs 20000

Input number i of a format is always the same bytes (`tests/faults/formats.py`): a valid file, damaged by truncation,
flipped bits, overwritten words, spliced pieces, edited lengths, and values, keys and nesting of JSON. Files are opened
in a child process, which is started again when one ends it. Results are written after every block of 500 inputs, and a
run that was broken off goes on there. `other` must be 0; `problems` names the inputs that are in it:
`python -m tests.faults.worker FORMAT i i+1` opens input i again.
"""

import argparse
import collections
import json
import sys
import time
from pathlib import Path

from results import RESULTS, host, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults.formats import FORMATS
from tests.faults.runner import CRASH, expected, run

BLOCK = 500


def add_block(name: str, record: dict, end: int) -> dict:
    """The record with the inputs up to `end` counted in."""
    begun, found = time.perf_counter(), list(run(name, record["inputs"], end))
    counts = collections.Counter(r.outcome.split(":")[0] if expected(name, r) else "other" for r in found)
    problems = [{"input": r.number, "outcome": r.outcome} for r in found if not expected(name, r)]
    return record | {
        "inputs": end,
        "accepted": record["accepted"] + counts["accepted"],
        "refused": record["refused"] + counts["refused"],
        "crashed_child": record["crashed_child"] + counts[CRASH.split(":")[0]],
        "other": record["other"] + counts["other"],
        "problems": record["problems"] + problems,
        "most_seconds": max([record["most_seconds"], *(r.seconds for r in found)]),
        "most_megabytes": max([record["most_megabytes"], *(r.megabytes for r in found)]),
        "seconds": round(record["seconds"] + time.perf_counter() - begun, 1),
    }


def fuzz(name: str, inputs: int) -> None:
    """Opens inputs of a format until so many have been opened in all."""
    path = RESULTS / f"fuzz-{name}.json"
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    else:
        form, started = FORMATS[name], time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        limits = {"seconds_allowed": form.seconds, "megabytes_allowed": form.megabytes}
        counts = dict.fromkeys(("inputs", "accepted", "refused", "crashed_child", "other"), 0)
        record = host(started, 0.0, 17, "damaged valid files") | {"format": name} | limits | counts
        record |= {"problems": [], "most_seconds": 0.0, "most_megabytes": 0.0}
    while record["inputs"] < inputs:
        record = add_block(name, record, min(record["inputs"] + BLOCK, inputs))
        write(path, record)
        shown = ("inputs", "accepted", "refused", "crashed_child", "other", "most_seconds", "most_megabytes", "seconds")
        print(name, {key: record[key] for key in shown}, *record["problems"][-1:], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--inputs", type=int, default=10_000, help="per format, those of earlier runs included")
    options = parser.parse_args()
    for name in options.formats:
        fuzz(name, options.inputs)


if __name__ == "__main__":
    main()
