"""How the benchmarks write their results: what made a number stands beside it."""

import json
import os
import platform
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
