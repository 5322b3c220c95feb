"""What the benchmarks share: options of a series of runs, results beside which stands what made them, tables."""

import argparse
import json
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras", "tensorflow", "numpy", "keras-sensprune")


def write(path: Path, record: dict) -> None:
    """Writes JSON under a temporary name, then renames."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def host(started: str, seconds: float, seed: int, data: str, packages: tuple[str, ...] = PACKAGES) -> dict:
    """The fields that every result has."""
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, shared with other work",
        "started": started,
        "seconds": round(seconds, 1),
        "seed": seed,
        "data": data,
    }


def series_options(description: str, data: str, choice: str, choices: list[str]) -> argparse.Namespace:
    """Command line of a series of runs of the recipes: network, data, seeds, and what is compared.

    The number of threads is set at once, because TensorFlow takes it only before its first operation.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="lenet-300-100")
    parser.add_argument("--data", default=data, choices=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(choice, nargs="+", default=choices)
    parser.add_argument("--threads", type=int, default=0, help="threads of TensorFlow; 0 means its own choice")
    options = parser.parse_args()

    import tensorflow as tf

    if options.threads:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    return options


def spread(values: list[float], digits: int = 2, unit: str = "") -> str:
    """Mean and range, or the single value."""
    mean = f"{statistics.mean(values):.{digits}f}{unit}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def with_part(text: str, begin: str, part: str) -> str:
    """A page with a fresh generated part between its marks."""
    end = "<!-- end of the generated part -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end, 1)[1]}"


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table in Markdown, whose first columns are text and the others numbers."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))
