"""Opens hostile files one after the other and prints what happened: `python -m tests.faults.worker FORMAT START END`.

One line per input: its number, seconds, megabytes by which the process grew at most meanwhile, and the outcome. Where
a file ends the process, the input is the one after the last line.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import tempfile
import time
import warnings

from keras_sensprune.export.latency_child import memory
from keras_sensprune.keras_file import limited_memory
from tests.faults.formats import FORMATS, outcome


def main(name: str, start: int, end: int) -> None:
    form, out = FORMATS[name], os.fdopen(os.dup(1), "w")
    warnings.simplefilter("ignore")
    seeds = form.seeds()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as sink:
        path = os.path.join(folder, "file" + form.suffix)
        os.dup2(sink.fileno(), 1)
        for seed in seeds:  # what is imported and cached on first use is not the file's fault
            pathlib.Path(path).write_bytes(seed)
            if outcome(form, path) != "accepted":
                raise SystemExit(f"a seed of {name} is refused: {outcome(form, path)}")
        with limited_memory(int(form.megabytes) * 2**20):
            for number in range(start, end):
                pathlib.Path(path).write_bytes(form.inputs(seeds, number))
                with contextlib.suppress(OSError):
                    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
                before, begun = memory("VmRSS"), time.perf_counter()
                result = " ".join(outcome(form, path).split())[:300]
                seconds, grown = time.perf_counter() - begun, max(0, memory("VmHWM") - before) / 2**20
                print(number, f"{seconds:.4f}", f"{grown:.1f}", result, file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
