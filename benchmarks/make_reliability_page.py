"""Writes docs/reliability.md from the results of contract_table.py, faults.py and fuzz.py.

    python benchmarks/make_reliability_page.py

The words, and the table of promises and tests, come from reliability_notes.md; every number from the results.
"""

import json
from pathlib import Path

from results import table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def quoted(reason: str) -> str:
    """An error message as code, so that nothing in it is taken for a link."""
    return "`" + reason.replace("`", "'") + "`"


def load(name: str) -> dict | None:
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def contracts(record: dict) -> str:
    """How many cells held, and each that did not."""
    cells = record["cells"]
    held = [cell for cell in cells.values() if cell["ok"]]
    lines = [
        f"Tried {len(cells)} of {record['of']} cells of models and routes; {len(held)} held, {len(cells) - len(held)} "
        "did not."
    ]
    lines += [f"- **{name}**: {quoted(cell['reason'])}" for name, cell in cells.items() if not cell["ok"]]
    return "\n".join(lines)


def faults(record: dict) -> str:
    """Per area what was tried, survived and lost, and each that was lost."""
    rows = []
    for area in sorted({row["area"] for row in record["faults"]}):
        found = [row for row in record["faults"] if row["area"] == area]
        lost = sum(row["result"] == "lost" for row in found)
        rows.append([area, str(len(found)), str(len(found) - lost), str(lost)])
    lost = [f"- **{row['fault']}**: {quoted(row['reason'])}" for row in record["faults"] if row["result"] == "lost"]
    return "\n\n".join([table(["area", "tried", "survived", "lost"], rows), *lost])


def fuzzed() -> str:
    """Per format how many damaged files were opened, and what happened."""
    head = ["format", "opened", "accepted", "refused", "child died", "anything else", "longest, s", "most MB"]
    rows = []
    for path in sorted((HERE / "results").glob("fuzz-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        counts = [f"{found[key]:,}" for key in ("inputs", "accepted", "refused", "crashed_child", "other")]
        rows.append([found["format"], *counts, f"{found['most_seconds']:.1f}", f"{found['most_megabytes']:,.0f}"])
    return table(head, rows) if rows else ""


def page() -> str:
    notes = (HERE / "reliability_notes.md").read_text(encoding="utf-8").strip()
    for mark, name, text in (("contracts", "contracts", contracts), ("faults", "faults", faults)):
        record = load(name)
        notes = notes.replace(f"<!-- {mark} -->", text(record) if record else "Not run yet.")
    notes = notes.replace("<!-- fuzz -->", fuzzed() or "Not run yet.")
    return "<!-- made by benchmarks/make_reliability_page.py -->\n\n" + notes + "\n"


if __name__ == "__main__":
    (DOCS / "reliability.md").write_text(page(), encoding="utf-8")
