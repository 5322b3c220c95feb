"""Rows and sentences of docs/choosing.md, from the results of forms.py, generalize.py and surface.py."""

import json
import statistics
from pathlib import Path

from curves import gain, geometric_mean
from forms import FORMS, curve_error
from forms import PROTOCOLS as FORM_NETWORKS
from generalize import RULES
from results import spread
from surface import PROTOCOLS as SURFACE_NETWORKS
from surface import STRENGTHS

HERE = Path(__file__).parent
NETWORKS = {"lenet-300-100": "LeNet-300-100", "lenet-5": "LeNet-5", "cifar": "small CIFAR net"}
GOAL = 1.3  # times fewer weights than L2 at equal error
SEEDS = {"lenet-300-100": 3, "lenet-5": 1}  # that a finished study has
CONFIRMING = ("l2", "raw", "relevance", "score", "relevance-falling", "l2-falling")  # asked of LeNet-5
CONTROLS = ("l2", "none", "l2-falling")  # forms without a sensitivity
WITHIN = 1.0  # points above the run without shrinkage that the table of surfaces allows
RULE_WORDS = {"none": "no penalty", "l2": "L2", "raw": "raw, specific", "relevance": "relevance"}


def load(study: str, network: str, names, part: str) -> dict[str, list[dict]]:
    """name -> rows on a part, in the order of the names, where there are any."""
    found = {}
    for name in names:
        path = HERE / "results" / f"{study}-{network}-{name}.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        rows = sorted((row for row in rows if row["part"] == part), key=lambda row: (row["seed"], row["strength"]))
        if rows:
            found[name] = rows
    return found


def found_forms() -> dict[str, dict[str, list[dict]]]:
    found = {network: load("forms", network, FORMS, "test") for network in FORM_NETWORKS}
    return {network: forms for network, forms in found.items() if forms}


def found_surfaces() -> dict[str, list[dict]]:
    found = {
        network: load("surface", network, ["default"], "validation").get("default") for network in SURFACE_NETWORKS
    }
    return {network: runs for network, runs in found.items() if runs}


# What the sensitivity adds


def curve(row: dict) -> list[tuple[float, float]]:
    return [(1.0, row.get("dense", 100.0)), *((c, e) for c, e in row["curve"])]


def curve_pairs(rows: list[dict], control: list[dict]) -> list[tuple[list, list]]:
    """By seed: the curve of a form and that of the control, where both have the seed."""
    by_seed = {row["seed"]: curve(row) for row in control}
    return [(curve(row), by_seed[row["seed"]]) for row in rows if row["seed"] in by_seed]


def form_gains(rows: list[dict], control: list[dict]) -> list[float]:
    """By seed: times fewer weights than the control, geometric mean over the errors that the control has inside its
    curve (not dense, at the first stage or at the last)."""
    pairs = curve_pairs(rows, control)
    return [geometric_mean([gain(one, other, error) for _, error in other[2:-1]]) for one, other in pairs]


def last_gains(rows: list[dict], control: list[dict]) -> list[float]:
    """By seed: the same at the last stage, at the lower one of the two errors there, which both curves reach."""
    return [gain(one, other, min(one[-1][1], other[-1][1])) for one, other in curve_pairs(rows, control)]


def gain_words(found: list[float]) -> str:
    middle = f"{geometric_mean(found):.2f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):.2f} to {max(found):.2f})"


def form_rows(forms: dict[str, list[dict]]) -> list[list[str]]:
    rows = []
    for name, runs in forms.items():
        errors = [spread([run["curve"][n][1] for run in runs]) for n in range(len(runs[0]["curve"]))]
        found = [form_gains(runs, forms.get(control, [])) if name != control else [] for control in ("l2", "none")]
        found.insert(1, last_gains(runs, forms.get("l2", [])) if name != "l2" else [])
        strength = f"{runs[0]['strength']:g}" if FORMS[name].begin else ""
        beside = [gain_words(gains) if gains else "" for gains in found]
        rows.append([FORMS[name].words, strength, *errors, *beside, str(len(runs))])
    return rows


def ranked(forms: dict[str, list[dict]]) -> list[tuple[str, list[float]]]:
    """(form, gains over L2 by seed) of all that use a sensitivity, the best first."""
    found = [(name, form_gains(runs, forms.get("l2", []))) for name, runs in forms.items() if name not in CONTROLS]
    return sorted(((n, g) for n, g in found if g), key=lambda pair: -geometric_mean(pair[1]))


def verdict(dense: dict[str, list[dict]], convolutional: dict[str, list[dict]]) -> str:
    """Whether the goal was met on LeNet-300-100, whether LeNet-5 confirms it, and what pruning alone does."""
    order = ranked(dense)
    if not order:
        return "Not measured yet: the study has no row to compare with L2."
    goal = f"{GOAL:g} times fewer weights than L2 at equal error"
    met = [(n, g) for n, g in order if geometric_mean(g) >= GOAL and len(g) >= SEEDS["lenet-300-100"]]
    best, gains = order[0]
    if not met:
        said = (
            f"**No form is shown to keep {goal}, over {SEEDS['lenet-300-100']} seeds.** "
            f"The best of {len(order)} on LeNet-300-100 is {FORMS[best].words}: "
            f"{gain_words(gains)} over {len(gains)} seed{'s' if len(gains) > 1 else ''}. So the default stays what it "
            "is, `Sensitivity()` with the raw sensitivity of the paper."
        )
    else:
        said = met_words(met, dict(ranked(convolutional)), goal)
    return " ".join([said, *alone_words(dense, best), last_words(dense, convolutional)])


def met_words(met: list[tuple[str, list[float]]], confirmed: dict[str, list[float]], goal: str) -> str:
    words = []
    for name, found in met:
        there = confirmed.get(name)
        said = "LeNet-5 has not been run" if there is None else f"LeNet-5: {gain_words(there)}"
        words.append(f"{FORMS[name].words} ({gain_words(found)}; {said})")
    sure = [name for name, _ in met if geometric_mean(confirmed.get(name, [1.0])) >= GOAL]
    end = "confirmed there" if sure else "not confirmed there, so the default stays `Sensitivity()`"
    return f"**On LeNet-300-100 these keep {goal}: {'; '.join(words)}.** The goal asks LeNet-5 as well: {end}."


def alone_words(forms: dict[str, list[dict]], best: str) -> list[str]:
    """What pruning without any shrinkage reaches, beside L2 and beside the best form."""
    over_l2 = form_gains(forms.get("none", []), forms.get("l2", []))
    over_none = form_gains(forms[best], forms.get("none", []))
    if not over_l2 or not over_none:
        return []
    return [
        f"The same stages without any shrinkage keep {gain_words(over_l2)} times fewer weights than L2, and beside "
        f"that {FORMS[best].words} keeps {gain_words(over_none)} times fewer: what is gained over L2 is gained by the "
        "sensitivity only as far as the second number is above 1."
    ]


def last_words(forms: dict[str, list[dict]], convolutional: dict[str, list[dict]]) -> str:
    """The form that is best at the last stage, there beside L2, with what it does inside the curve."""
    inside = dict(ranked(forms))
    found = {name: last_gains(forms[name], forms["l2"]) for name in inside}
    best = max(found, key=lambda name: geometric_mean(found[name]))
    stage = f"{forms[best][0]['curve'][-1][0]:.0f}x"
    there = last_gains(convolutional.get(best, []), convolutional.get("l2", []))
    confirmed = f"{gain_words(there)} on LeNet-5" if there else "not run on LeNet-5"
    return (
        f"At {stage} the best form is {FORMS[best].words}: {gain_words(found[best])} times fewer weights than L2, "
        f"{confirmed}; inside the curve it is {gain_words(inside[best])}."
    )


def search_rows(forms: dict[str, list[dict]]) -> list[list[str]]:
    rows = []
    for name, runs in forms.items():
        strengths = sorted({run["strength"] for run in runs})
        found = {strength: [run for run in runs if run["strength"] == strength] for strength in strengths}
        tried = [f"{strength:g}: {curve_error(runs):.2f}" for strength, runs in found.items()]
        rows.append([FORMS[name].words, str(max(map(len, found.values()))), ", ".join(tried)])
    return rows


def form_protocol(network: str) -> str:
    p = FORM_NETWORKS[network]
    stages = ", ".join(f"{c:g}x" for c in p.compressions)
    return (
        f"{p.data}, {p.train:,} training images, {p.validation:,} for validation; SGD, batch {p.batch}, learning rate "
        f"{p.rate:g}, label smoothing {p.label_smoothing:g}; {p.dense_epochs} dense epochs, then {stages} one after "
        f"the other, each {p.sparse_epochs} epochs with the rule, pruned after every epoch, and {p.fine_epochs} of "
        f"fine-tuning; sensitivities every {p.every} steps."
    )


# Without pruning


def unpruned_rows(rules: dict[str, list[dict]]) -> list[list[str]]:
    rows = []
    for name, runs in rules.items():
        gaps = [run["validation_error"] - run["train_error"] for run in runs]
        losses = [run["validation_loss"] - run["train_loss"] for run in runs]
        test = [spread([run["test_error"] for run in runs]), spread([run["test_loss"] for run in runs], 3)]
        strength = f"{runs[0]['strength']:g}" if RULES[name][1] else ""
        rows.append([RULE_WORDS[name], strength, spread(gaps), spread(losses, 3), *test, str(len(runs))])
    return rows


def unpruned_verdict(rules: dict[str, list[dict]]) -> str:
    """Which rule has a lower test error than L2 in all seeds that both have."""
    control = {run["seed"]: run["test_error"] for run in rules.get("l2", [])}
    words = []
    for name in ("raw", "relevance"):
        gained = [control[run["seed"]] - run["test_error"] for run in rules.get(name, []) if run["seed"] in control]
        if len(gained) == 1:
            words.append(f"{RULE_WORDS[name]} {-gained[0]:+.2f} points beside L2, in one seed")
        elif gained:
            said = "below L2 in all seeds" if min(gained) > 0 else "not below L2 in all seeds"
            words.append(f"{RULE_WORDS[name]} is {said} ({-statistics.mean(gained):+.2f} points on average)")
    return f"Test error: {'; '.join(words)}." if words else ""


# Strength and threshold


def surface_rows(runs: list[dict]) -> list[list[str]]:
    rows = []
    for run in runs:
        cells = [f"{100 * s:.1f}: {e:.2f}" for s, e in zip(run["sparsities"], run["errors"], strict=True)]
        rows.append([f"{run['strength']:g}", f"{run['before']:.2f}", *cells])
    return rows


def largest_rows(runs: list[dict]) -> list[list[str]]:
    """For each strength the largest threshold up to which the error stays within the allowed points above that of the
    run of least strength before any threshold."""
    rows, reference = [], min(runs, key=lambda run: run["strength"])["before"]
    for run in runs:
        points = zip(run["thresholds"], run["sparsities"], run["errors"], strict=True)
        best = None
        for point in points:
            if point[2] > reference + WITHIN:
                break
            best = point
        words = ["none", ""] if best is None else [f"{best[0]:g}", f"{1 / (1 - best[1]):.1f}x"]
        rows.append([f"{run['strength']:g}", *words])
    return rows


# Time


def time_rows(networks: dict[str, dict[str, list[dict]]]) -> list[list[str]]:
    rows = []
    for network, forms in networks.items():
        p = FORM_NETWORKS[network]
        epochs = {"sparse": len(p.compressions) * p.sparse_epochs, "fine": len(p.compressions) * p.fine_epochs}
        for name, runs in forms.items():
            runs = [run for run in runs if "dense_seconds" in run]
            if not runs:
                continue
            dense = statistics.median(run["dense_seconds"] for run in runs) / p.dense_epochs
            cells = [f"{dense:.2f}"]
            for phase in ("sparse", "fine"):
                seconds = statistics.median(run[f"{phase}_seconds"] for run in runs) / epochs[phase]
                cells.append(f"{seconds:.2f} ({100 * seconds / dense:.0f} %)")
            rows.append([NETWORKS[network], FORMS[name].words, *cells])
    return rows


def missing_words() -> list[str]:
    """What a finished study would have beside what is there."""
    words = []
    for network, seeds in SEEDS.items():
        forms = load("forms", network, FORMS, "test")
        asked = FORMS if network == "lenet-300-100" else CONFIRMING
        lack = [FORMS[name].words for name in asked if len(forms.get(name, [])) < seeds]
        if lack:
            words.append(f"- Forms on {NETWORKS[network]}, {seeds} seed{'s' * (seeds > 1)}: {'; '.join(lack)}")
        rules = load("generalize", network, RULES, "test")
        lack = [RULE_WORDS[name] for name in RULES if len(rules.get(name, [])) < seeds]
        if lack:
            words.append(
                f"- Without pruning on {NETWORKS[network]}, {seeds} seed{'s' * (seeds > 1)}: {', '.join(lack)}"
            )
    for network in SURFACE_NETWORKS:
        runs = load("surface", network, ["default"], "validation").get("default", [])
        lack = [f"{s:g}" for s in STRENGTHS if s not in {run["strength"] for run in runs}]
        if lack:
            words.append(f"- Strength and threshold on {NETWORKS[network]}: strengths {', '.join(lack)}")
    return words
