"""Writes docs/export.md and its pictures from results/export-*.json and results/runtime_matrix.json.

    python benchmarks/make_export_page.py

The words come from export_notes.md; every number from the results.
"""

import json
from pathlib import Path

from results import table

from keras_sensprune.export.allowed import RULES
from keras_sensprune.records import from_dict
from keras_sensprune.reports.plot_sizes import plot_size_waterfall

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
TITLES = {
    "lenet-300-100": "LeNet-300-100 on MNIST, trained",
    "lenet-5": "LeNet-5 on MNIST, trained",
    "mlp": "A large MLP, 1024-4096-4096-1000, synthetic weights",
    "vgg": "VGG-like network for 32 x 32 images, synthetic weights",
    "mobilenet": "MobileNet-like network for 96 x 96 images, synthetic weights",
    "lstm": "LSTM of 256 units, 20 steps, synthetic weights",
}
# (network, variant, batch) -> what was asked for: at most this share of the dense latency
TARGETS = [
    ("mlp", "90% unstructured, CSR", 0.55),
    ("mlp", "95% unstructured, CSR", 0.25),
    ("mlp", "99% unstructured, CSR", 0.06),
    ("mlp", "90% in 1x4 blocks", 0.15),
    ("lenet-300-100", "as pruned, CSR", 0.4),
    ("lenet-300-100", "99% unstructured, CSR", 0.2),
]
FIXED_COST_US = 15  # below, a run of the runtime is mostly its own overhead


def load() -> dict[str, dict]:
    files = {name: HERE / "results" / f"export-{name}.json" for name in TITLES}
    return {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}


def size(count: int) -> str:
    return f"{count / 1024:,.1f}" if count < 1e6 else f"{count / 1024:,.0f}"


def ratios(row: dict) -> dict[tuple[int, int], object]:
    """(batch, threads) -> the latency beside the dense file."""
    records = [from_dict(item) for item in row.get("latency", ())]
    return {(record.batch, found.threads): found for record in records for found in record.results}


def ratio_text(found) -> str:
    if found is None:
        return ""
    return f"{found.ratio:.2f} ({found.ratio_low:.2f} to {found.ratio_high:.2f})"


def exact_text(found) -> str:
    """Three digits, where two would hide on which side of a limit a number lies."""
    return f"{found.ratio:.3f} ({found.ratio_low:.3f} to {found.ratio_high:.3f})"


def information(row: dict, rows: list[dict]) -> str:
    """Of the converter's files, which are not ours to count, that of our file with the same weights."""
    own = row["variant"].replace("converter's encoding", "CSR")
    export = next((other["export"] for other in rows if other["variant"] == own and other.get("export")), None)
    return size(export["information_bytes"]) if export else ""


def error(row: dict) -> str:
    export = row.get("export") or {}
    if export.get("error") is None:
        return ""
    return f"{export['error']:.2f} ({export['error'] - export['keras_error']:+.2f})"


def network_table(name: str, result: dict) -> str:
    rows = result["rows"]
    dense = next(iter(ratios(rows[1]).values())).baseline
    batches = sorted({key for row in rows for key in ratios(row)})
    trained = any(error(row) for row in rows)
    head = ["variant", "KiB", "gzip KiB", "information KiB", "memory MiB"]
    head += [f"time, batch {batch}, {threads} thread{'s' * (threads > 1)}" for batch, threads in batches]
    head += ["test error, %"] * trained
    body = []
    for number, row in enumerate(rows):
        if "failed" in row:
            body.append([row["variant"], "not written: " + row["failed"].replace("|", "/"), *[""] * (len(head) - 2)])
            continue
        found = ratios(row)
        first = found.get((1, 1))
        memory = (first.candidate if first else dense).memory_bytes / 2**20
        cells = [row["variant"], size(row["bytes"]), size(row["gzip_bytes"]), information(row, rows), f"{memory:.1f}"]
        cells += [ratio_text(found.get(key)) if number else "1" for key in batches]
        body.append(cells + [error(row)] * trained)
    took = f"The dense file takes {dense.microseconds:,.0f} us (quartiles {dense.microseconds_low:,.0f} to "
    took += f"{dense.microseconds_high:,.0f}) at batch 1 with one thread, and {dense.load_milliseconds:.1f} ms to load."
    return table(head, body) + "\n\n" + took


def target_rows(results: dict[str, dict]) -> list[list[str]]:
    rows = []
    for name, variant, limit in TARGETS:
        found = [row for row in results.get(name, {}).get("rows", ()) if row["variant"] == variant]
        for row in found:
            measured = ratios(row)[1, 1]
            verdict = "yes" if measured.ratio <= limit else "**no**"
            if measured.ratio_low <= limit < measured.ratio_high:
                verdict = (
                    "the median does" if verdict == "yes" else "the median does **not**"
                ) + ", the interval crosses"
            rows.append([f"{name}: {variant}", f"{limit:g}", exact_text(measured), verdict])
    return rows


def compacted_rows(results: dict[str, dict]) -> list[list[str]]:
    """Multiply-adds left against latency left, of float32 files that were only compacted."""
    rows = []
    for name, result in results.items():
        dense = next(iter(ratios(result["rows"][1]).values())).baseline.microseconds
        for row in result["rows"]:
            if not row["compaction"] or not row["variant"].endswith("compacted") or "units" not in row["variant"]:
                continue
            before, after = (row["compaction"][f"multiply_adds_{when}"] for when in ("before", "after"))
            found = ratios(row)[1, 1]
            removed, saved = 1 - after / before, 1 - found.ratio
            met = "yes" if saved >= 0.8 * removed else "**no**"
            if met != "yes" and found.candidate.microseconds <= FIXED_COST_US:
                met = "at the runtime's fixed cost"
            share = f"{saved / removed:.2f}"
            us = f"{dense:,.0f} -> {found.candidate.microseconds:,.0f}"
            rows.append([f"{name}: {row['variant']}", f"{100 * removed:.0f} %", f"{100 * saved:.0f} %", share, us, met])
    return rows


def keeps_function(row: dict, result: dict) -> bool:
    """Whether the network of a row does what it was trained for, or was never trained."""
    return not (result["data"].startswith("MNIST") and row["variant"][0].isdigit())


def size_rows(results: dict[str, dict]) -> list[list[str]]:
    """The file that is smallest after gzip, of those that keep the network's function, against its bound."""
    rows = []
    for name, result in results.items():
        exported = [row for row in result["rows"] if row.get("export") and keeps_function(row, result)]
        best = min(exported, key=lambda row: row["gzip_bytes"])
        bound = best["export"]["information_bytes"]
        met = "yes" if best["gzip_bytes"] <= 1.5 * bound + 4096 else "**no**"
        numbers = [size(best["gzip_bytes"]), size(bound), f"{best['gzip_bytes'] / bound:.2f}"]
        rows.append([f"{name}: {best['variant']}", *numbers, met])
    return rows


def accuracy_rows(results: dict[str, dict]) -> list[list[str]]:
    """What the export itself costs in test error, for networks that were trained and not broken."""
    rows = []
    for name, result in results.items():
        for row in result["rows"]:
            export = row.get("export") or {}
            if export.get("error") is None or not keeps_function(row, result):
                continue
            lost = export["error"] - export["keras_error"]
            met = "yes" if lost <= 0.1 + 1e-9 else "**no**"
            numbers = [f"{export['keras_error']:.2f}", f"{export['error']:.2f}", f"{lost:+.2f}"]
            rows.append([f"{name}: {row['variant']}", *numbers, met])
    return rows


def rule_of(cell: dict):
    return next(r for r in RULES if all(cell[key] == getattr(r, key) for key in ("dtype", "structure", "encoding")))


def matrix_rows() -> list[list[str]]:
    rows = []
    for cell in json.loads((HERE / "results" / "runtime_matrix.json").read_text())["cells"]:
        outcomes = [run["what"] for run in cell["runs"].values()]
        agrees = set(outcomes) == {"agrees"}
        said = "agrees in all four runs" if agrees else "; ".join(dict.fromkeys(map(short, outcomes)))
        precaution = agrees and not cell["allowed"] and rule_of(cell).precaution
        why = ", a precaution" if precaution else ", it fails with the other batch" * agrees
        written = "yes" if cell["allowed"] else "no" + why
        inputs = str(cell["inputs"])
        inputs += f", {cell['fullest row']} blocks in a row" if "fullest row" in cell else ""
        inputs += ", batch fixed" if "batch" in cell else ""
        rows.append([cell["dtype"], cell["structure"], cell["encoding"], inputs, written, said])
    return rows


def precautions() -> list[str]:
    """Why some conditions are asked for although files that break them agree."""
    reasons = dict.fromkeys(rule.precaution for rule in RULES if rule.precaution)
    return [f"A precaution: {reason}." for reason in reasons]


def short(outcome: str) -> str:
    text = outcome.replace("error: RuntimeError: ", "error: ").replace("|", "/")
    return text if len(text) <= 70 else text[:67] + "..."


PICTURE = "images/lenet-300-100-sizes.png"


def draw(results: dict[str, dict]) -> None:
    """One waterfall for a trained network: dense to clustered and gzipped."""
    result = results.get("lenet-300-100")
    if not result:
        return
    rows = {row["variant"]: row for row in result["rows"]}
    stages = [
        ("dense", rows["dense"]["bytes"]),
        ("pruned, CSR", rows["as pruned, CSR"]["bytes"]),
        ("compacted", rows["as pruned, compacted, CSR"]["bytes"]),
        ("gzip", rows["as pruned, compacted, CSR"]["gzip_bytes"]),
        ("int8 + gzip", rows["as pruned, compacted, dynamic int8"]["gzip_bytes"]),
        ("16 clusters + gzip", rows["as pruned, compacted, CSR, 16 clusters"]["gzip_bytes"]),
    ]
    plot_size_waterfall(stages, DOCS / PICTURE, "LeNet-300-100 on MNIST: bytes of the file", overwrite=True)


def page() -> str:
    """The text of the page; the picture that it shows is drawn by `draw`."""
    results = load()
    notes = (HERE / "export_notes.md").read_text().strip()
    before, after = notes.split("\n<!-- tables -->\n")
    parts = ["<!-- made by benchmarks/make_export_page.py -->", "", before.strip(), ""]
    if "lenet-300-100" in results:
        parts += [f"![Bytes of the file of LeNet-300-100, stage by stage]({PICTURE})", ""]
    parts += ["## What was asked, and what was measured", ""]
    parts += [
        "Latency as a share of the dense float32 file's, batch 1, one thread (median, and its 95 % interval):",
        "",
    ]
    parts += [table(["file", "at most", "measured", "met"], target_rows(results)), ""]
    parts += ["Multiply-adds removed by compaction against latency saved (asked: at least 0.8 of it):", ""]
    head = ["file", "multiply-adds removed", "latency saved", "ratio", "us", "met"]
    parts += [table(head, compacted_rows(results)), ""]
    parts += [
        "The smallest gzipped file and the information in its weights (asked: at most 1.5 times that, plus 4 KiB):",
        "",
    ]
    parts += [table(["file", "gzip KiB", "information KiB", "ratio", "met"], size_rows(results)), ""]
    parts += ["What the export costs in test error, in points (asked: at most 0.1):", ""]
    parts += [table(["file", "Keras, %", "file, %", "lost", "met"], accuracy_rows(results)), ""]
    parts += ["## All measurements", ""]
    for name, result in results.items():
        parts += [f"### {TITLES[name]}", "", network_table(name, result), ""]
    versions = next(iter(results.values()))["versions"]
    used = ", ".join(f"{package} {number}" for package, number in versions.items())
    parts += [after.strip(), "", "## What each runtime does with each encoding", ""]
    parts += [table(["format", "structure", "encoding", "inputs", "written", "what happened"], matrix_rows(), 3), ""]
    for text in precautions():
        parts += [text, ""]
    parts += [f"Versions: {used}. Commands: see the results in `benchmarks/results/`."]
    return "\n".join(parts) + "\n"


def main() -> None:
    draw(load())
    (DOCS / "export.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
