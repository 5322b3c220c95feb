"""Writes docs/choosing.md and its pictures from the results of forms.py, generalize.py and surface.py.

    python benchmarks/make_choosing_page.py

The general words come from choosing_notes.md; every number, and every sentence with one, from the results.
"""

import math
import statistics

from choosing_tables import (
    FORM_NETWORKS,
    HERE,
    NETWORKS,
    SURFACE_NETWORKS,
    WITHIN,
    form_protocol,
    form_rows,
    found_forms,
    found_surfaces,
    largest_rows,
    load,
    missing_words,
    search_rows,
    surface_rows,
    time_rows,
    unpruned_rows,
    unpruned_verdict,
    verdict,
)
from forms import FIRST, FORMS
from generalize import PROTOCOLS as UNPRUNED_NETWORKS
from generalize import RULES
from results import table

DOCS = HERE.parent / "docs"
CURVES, SURFACES = "images/forms.png", "images/surface.png"


def draw_curves(networks: dict[str, dict[str, list[dict]]]) -> None:
    """Controls in black and gray, the main forms in strong colors, the others thin; on logarithmic axes."""
    from matplotlib.ticker import LogLocator

    from keras_sensprune.reports.figure import new_figure, tidy, written

    figure = new_figure(4.5 * len(networks) + 3, 4.2)
    styles = {"l2": {"color": "black", "linewidth": 2.2, "zorder": 5}}
    styles["none"] = {**styles["l2"], "color": "gray"}
    for number, name in enumerate(name for name in FORMS if name not in styles):
        strong = {"linewidth": 1.6} if name in FIRST else {"linewidth": 0.8, "linestyle": "--"}
        styles[name] = {"color": f"C{number % 10}", **strong}
    lines = {}
    for axes, (network, forms) in zip(
        figure.subplots(1, len(networks), squeeze=False)[0], networks.items(), strict=True
    ):
        tidy(axes, "both")
        for name, runs in forms.items():
            points = [run["curve"] for run in runs]
            mean = [(p[0][0], statistics.mean(e for _, e in p)) for p in zip(*points, strict=True)]
            (lines[FORMS[name].words],) = axes.plot(*zip(*mean, strict=True), marker=".", **styles[name])
        axes.set(xscale="log", yscale="log", title=NETWORKS[network])
        axes.set(xlabel="weights / nonzero weights", ylabel="test error, %")
        marks = [c for c, _ in next(iter(forms.values()))[0]["curve"]]
        axes.set_xticks(marks, [f"{mark:.0f}x" for mark in marks])
        axes.yaxis.set_major_locator(LogLocator(subs=[1, 1.5, 2, 2.5, 3, 4, 5, 6, 8]))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", frameon=False, fontsize=7)
    written(figure, DOCS / CURVES)


def draw_surfaces(networks: dict[str, list[dict]]) -> None:
    from keras_sensprune.reports.figure import new_figure, tidy, written

    figure = new_figure(3.6 * len(networks) + 1, 3.4)
    for axes, (network, runs) in zip(
        figure.subplots(1, len(networks), squeeze=False)[0], networks.items(), strict=True
    ):
        tidy(axes, "both")
        for run in runs:
            points = [(1 / (1 - s), e) for s, e in zip(run["sparsities"], run["errors"], strict=True)]
            axes.plot(*zip(*points, strict=True), marker=".", label=f"strength {run['strength']:g}")
        axes.axhline(runs[0]["dense"], color="gray", linewidth=0.8, linestyle=":")
        axes.set(
            xscale="log", xlabel="weights / nonzero weights", ylabel="validation error, %", title=NETWORKS[network]
        )
        axes.set_ylim(0, min(100, 4 * math.ceil(runs[0]["dense"] + 1)))
        axes.legend(frameon=False, fontsize=7)
    written(figure, DOCS / SURFACES)


def form_parts(networks: dict[str, dict[str, list[dict]]]) -> list[str]:
    parts = ["## What does the sensitivity add?"]
    parts.append(verdict(networks.get("lenet-300-100", {}), networks.get("lenet-5", {})))
    if networks:
        parts.append(f"![Error against compression, by form]({CURVES})")
    for network, forms in networks.items():
        stages = [f"{c:g}x" for c in FORM_NETWORKS[network].compressions]
        parts += [f"### {NETWORKS[network]}", "Test error in percent, mean and range over the seeds:"]
        beside = ["fewer weights than L2", f"at {stages[-1]}", "than no shrinkage"]
        head = ["form", "strength", *stages, *beside, "seeds"]
        parts.append(table(head, form_rows(forms)))
        parts.append(
            "*Fewer weights*: how many times fewer weights the form keeps at equal error, geometric mean over the "
            f"errors that the other has at {' and '.join(stages[1:-1])} and over the seeds, from the curves with the "
            "logarithm of the compression interpolated. An error outside of a curve counts as its nearest one. "
            f"*At {stages[-1]}*: the same, beside L2, at the lower one of the two errors there; it was looked at after "
            "the goal had been set. " + form_protocol(network)
        )
        if all(run["curve"][0][1] > run["curve"][1][1] for runs in forms.values() for run in runs):
            parts.append(
                f"All runs are worse at {stages[0]} than at {stages[1]}: so few epochs do not make up for that much "
                "taken at once. No gain is read there."
            )
        tried = load("forms", network, FORMS, "validation")
        if tried:
            parts.append("What the searches found, geometric mean of the validation errors over seeds and stages:")
            parts.append(table(["form", "seeds", "strength: error"], search_rows(tried), 1))
    return parts


def unpruned_parts() -> list[str]:
    parts = ["## Does it generalize better, without pruning?"]
    for network, p in UNPRUNED_NETWORKS.items():
        rules = load("generalize", network, RULES, "test")
        if not rules:
            continue
        head = ["rule", "strength", "gap, points", "gap, nats", "test error, %", "test loss, nats", "seeds"]
        parts += [f"### {NETWORKS[network]}, not pruned", table(head, unpruned_rows(rules)), unpruned_verdict(rules)]
        parts.append(
            "Gap: validation less training, in error and in cross-entropy. "
            f"{p.data}, {p.train:,} training images, {p.epochs} epochs, learning rate {p.rate:g} falling along a half "
            "cosine, no label smoothing, penalties coupled into the loss; strengths chosen by the validation error of "
            "seed 0."
        )
    return parts if len(parts) > 1 else [*parts, "Not measured yet."]


def surface_parts(networks: dict[str, list[dict]]) -> list[str]:
    parts = ["## Strength and threshold"]
    if not networks:
        return [*parts, "Not measured yet."]
    parts.append(f"![Error against compression, by strength]({SURFACES})")
    for network, runs in networks.items():
        p = SURFACE_NETWORKS[network]
        parts += [
            f"### {NETWORKS[network]}, strength by threshold",
            "Zeros in percent, then the validation error in percent:",
        ]
        thresholds = [f"T = {t:g}" for t in runs[0]["thresholds"]]
        parts.append(table(["strength", "error before", *thresholds], surface_rows(runs)))
        parts.append(
            f"The largest threshold with at most {WITHIN:g} point more than the run without shrinkage has before any "
            "threshold (a constant learning rate alone changes the dense error):"
        )
        parts.append(table(["strength", "threshold", "compression"], largest_rows(runs)))
        sweep = statistics.median(run["sweep_seconds"] for run in runs) / len(thresholds)
        epoch = statistics.median(run["sparse_seconds"] for run in runs) / p.epochs
        parts.append(
            f"{p.data}, {p.train:,} training images, dense error {runs[0]['dense']:.2f} %; {p.epochs} epochs with the "
            f"default rule at the constant learning rate {p.rate:g}, then each threshold on the same weights, without "
            f"fine-tuning. One threshold took {sweep:.2f} s, an epoch {epoch:.2f} s."
        )
    return parts


def page() -> str:
    """The text of the page; the pictures that it shows are drawn by `main`."""
    before, after = (HERE / "choosing_notes.md").read_text().strip().split("\n<!-- tables -->\n")
    networks = found_forms()
    parts = ["<!-- made by benchmarks/make_choosing_page.py -->", before.strip(), *form_parts(networks)]
    parts += [*unpruned_parts(), *surface_parts(found_surfaces()), "## What each phase takes"]
    rows = time_rows(networks)
    head = ["network", "form", "dense epoch, s", "epoch with the rule, s", "fine-tuning epoch, s"]
    parts.append(table(head, rows, 2) if rows else "Not measured yet.")
    if rows:
        parts.append(
            "Beside each the percent of a dense epoch, medians over the runs. Every phase begins with a trace of its "
            "own, and they ran at different times, beside other work: only large differences count."
        )
    missing = missing_words()
    if missing:
        parts += ["## What has not been run", "\n".join(missing)]
    return "\n\n".join([*parts, after.strip()]) + "\n"


def main() -> None:
    networks, surfaces = found_forms(), found_surfaces()
    if networks:
        draw_curves(networks)
    if surfaces:
        draw_surfaces(surfaces)
    (DOCS / "choosing.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
