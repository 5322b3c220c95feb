"""Writes docs/optimizers.md and its picture from the results of optimizers.py.

    python benchmarks/make_optimizers_page.py

The general words come from optimizers_notes.md; every number, and every sentence with one, from the results.
"""

import json
import statistics
from pathlib import Path

from results import spread, table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PICTURE = "images/optimizers.png"
NAMES = {
    "sgd": "SGD",
    "momentum": "SGD, momentum 0.9",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "lion": "Lion",
    "muon": "Muon",
}
RULES = {"none": "no regularization", "decoupled": "decoupled", "coupled": "coupled"}


def load() -> dict[str, dict[str, dict]]:
    """optimizer -> rule -> file, of what has evaluated runs and a row to compare with, in the order above."""
    found: dict[str, dict[str, dict]] = {}
    for name in NAMES:
        for rule in RULES:
            path = HERE / "results" / f"optimizers-{name}-{rule}.json"
            record = json.loads(path.read_text()) if path.exists() else {"rows": []}
            if part(record, "test") and (rule == "none" or name in found):
                found.setdefault(name, {})[rule] = record
    return found


def part(record: dict, name: str) -> list[dict]:
    return sorted((row for row in record["rows"] if row["part"] == name), key=lambda row: row["seed"])


def gains(rules: dict[str, dict], rule: str) -> list[float]:
    """By seed: error without regularization less error with the rule."""
    plain = {row["seed"]: row["tuned"] for row in part(rules["none"], "test")}
    return [plain[row["seed"]] - row["tuned"] for row in part(rules[rule], "test") if row["seed"] in plain]


def verdict(rules: dict[str, dict]) -> str:
    """Which rule helped in all seeds, and which of the two more."""
    helps = {rule: gains(rules, rule) for rule in ("decoupled", "coupled") if rule in rules}
    sure = [rule for rule, found in helps.items() if found and min(found) > 0]
    if not sure:
        return "neither helps in all seeds"
    if len(sure) == 1:
        return f"{sure[0]} helps in all seeds"
    pairs = [a - b for a, b in zip(helps["decoupled"], helps["coupled"], strict=False)]
    if min(pairs) > 0 or max(pairs) < 0:
        return f"both help, {'decoupled' if min(pairs) > 0 else 'coupled'} more in all seeds"
    return "both help, about alike"


def error_rows(found: dict) -> list[list[str]]:
    rows = []
    for name, rules in found.items():
        cells = [spread([row["tuned"] for row in part(rules[rule], "test")]) if rule in rules else "" for rule in RULES]
        rows.append([NAMES[name], *cells, verdict(rules) if len(rules) > 1 else ""])
    return rows


def each_rule(found: dict):
    """(first two cells, evaluated runs) of every line of the longer tables."""
    for name, rules in found.items():
        for rule, record in rules.items():
            yield [NAMES[name], RULES[rule]], part(record, "test")


def setting_rows(found: dict) -> list[list[str]]:
    rows = []
    for label, runs in each_rule(found):
        small = spread([100 * row["small"] for row in runs])
        settings = [f"{runs[0]['rate']:g}", f"{runs[0]['strength']:g}", spread([row["trained"] for row in runs]), small]
        rows.append([*label, *settings, f"{statistics.mean(row['seconds'] for row in runs):.0f}", str(len(runs))])
    return rows


def pruned_rows(found: dict, sparsities: list[str]) -> list[list[str]]:
    return [
        [*label, *(spread([row["pruned"][sparsity] for row in runs]) for sparsity in sparsities)]
        for label, runs in each_rule(found)
    ]


def reached(row: dict) -> str:
    return "diverged" if row.get("diverged") else f"{row['tuned']:.2f}"


def search_rows(found: dict) -> list[list[str]]:
    rows = []
    for name, rules in found.items():
        for rule, record in rules.items():
            key = "rate" if rule == "none" else "strength"
            tried = sorted(part(record, "validation"), key=lambda row: row[key])
            what = "learning rate" if rule == "none" else f"{rule} strength"
            rows.append([NAMES[name], what, ", ".join(f"{row[key]:g}: {reached(row)}" for row in tried)])
    return rows


def draw(found: dict) -> None:
    from keras_sensprune.reports.figure import new_figure, tidy, written

    figure = new_figure(7, 0.5 * len(found) + 1.2)
    axes = figure.subplots()
    tidy(axes, "x")
    colors = {"none": "tab:gray", "decoupled": "tab:blue", "coupled": "tab:orange"}
    for number, (rule, color) in enumerate(colors.items()):
        points = [
            (run["tuned"], row + 0.2 * (1 - number))
            for row, rules in enumerate(reversed(list(found.values())))
            for run in (part(rules[rule], "test") if rule in rules else [])
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=color, markersize=4, label=RULES[rule])
    axes.set_yticks(range(len(found)), [NAMES[name] for name in reversed(found)])
    axes.set_xlabel("test error after pruning and fine-tuning, %; one point per seed")
    axes.legend(frameon=False)
    written(figure, DOCS / PICTURE)


def protocol_words(record: dict) -> str:
    p, run = record["protocol"], part(record, "test")[0]
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return (
        f"LeNet-300-100, {run['data']}; batch {p['batch']}, {p['epochs']} epochs with a constant learning rate and the "
        f"default `Sensitivity()`, pruned to {100 * p['target']:.0f} % zeros over all layers together "
        f"({run['compression']:g}x), {p['fine_epochs']} epochs of fine-tuning with a rate that falls along a half "
        "cosine. Learning rates were chosen without regularization, strengths with that rate: half decades, seed 0, by "
        "the validation error after fine-tuning, until both neighbors of the best value were worse or "
        f"{p['tried']} values were tried. A run that diverged counts as 100 % error. The test part was evaluated in "
        f"the runs that followed, with what was chosen. `{run['command']}`; {versions}; {run['machine']}."
    )


def page() -> str:
    """The text of the page; the picture that it shows is drawn by `draw`."""
    found = load()
    before, after = (HERE / "optimizers_notes.md").read_text().strip().split("\n<!-- tables -->\n")
    parts = ["<!-- made by benchmarks/make_optimizers_page.py -->", before.strip()]
    if not found:
        return "\n\n".join([*parts, "The study has not been run yet.", after.strip()]) + "\n"
    record = next(iter(found.values()))["none"]
    target, sparsities = record["protocol"]["target"], list(part(record, "test")[0]["pruned"])
    missing = [NAMES[name] for name in NAMES if len(found.get(name, {})) < len(RULES)]
    if missing:
        parts.append(f"Not finished yet: {', '.join(missing)}.")
    parts += [f"![Error by optimizer and rule]({PICTURE})", f"## Error at {100 * target:.0f} % zeros"]
    parts += ["Test error after fine-tuning in percent, mean and range over the seeds:"]
    parts += [table(["optimizer", *RULES.values(), "over the seeds"], error_rows(found)), protocol_words(record)]
    parts += ["## What was chosen, and the network before pruning"]
    head = ["optimizer", "rule", "rate", "strength", "test error, %", "weights below 0.001, %", "s per run", "seeds"]
    parts += [
        table(head, setting_rows(found), 2),
        "Weights below 0.001 are what the default threshold of `PruneAtEpochEnd` would take at this point.",
    ]
    parts += ["## Right after pruning, before fine-tuning", "Test error in percent by sparsity:"]
    head = ["optimizer", "rule", *(f"{100 * float(sparsity):g} %" for sparsity in sparsities)]
    parts += [table(head, pruned_rows(found, sparsities), 2), "## What the searches found"]
    parts += [
        "Validation error in percent after fine-tuning, seed 0:",
        table(["optimizer", "searched", "value: error"], search_rows(found), 3),
    ]
    return "\n\n".join([*parts, after.strip()]) + "\n"


def main() -> None:
    found = load()
    if found:
        draw(found)
    (DOCS / "optimizers.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
