"""Writes docs/performance.md and its pictures from the results of the step_*.py and estimator_*.py benchmarks.

    python benchmarks/make_performance_page.py

The words come from performance_notes.md; every number from the results.
"""

import json
import math
from pathlib import Path

from results import spread, table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PICTURES = ("images/step-cost.png", "images/step-scale.png")
NETWORKS = ("lenet-300-100", "lenet-5", "vgg", "lstm", "mobilenet-v2")
# mode, at most this ratio to L2, and which networks it is asked of; a recurrent network cannot share its forward pass
TARGETS = (
    ("default", 1.10, NETWORKS),
    ("default, unspecific", 1.10, NETWORKS),
    ("exact specific, every step", 1.75, ("lenet-300-100", "lenet-5")),
    ("exact specific, every step", 2.1, ("lstm",)),
    ("exact specific, every step, own forward pass", 2.1, NETWORKS),
    ("exact unspecific, every step, factored", 2.5, ("lenet-300-100",)),
    ("exact unspecific, every step", 8.0, ("lenet-5",)),
)
AXES = {"weights": "weights", "outputs": "outputs", "batch": "examples per batch"}


def results(pattern: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((HERE / "results").glob(pattern))]


def interval(found: dict | None) -> str:
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})" if found else ""


def verdict(found: dict, limit: float) -> str:
    """Met by the median; for the default also by the upper end of the interval, which may be 0.05 above."""
    if found["ratio"] > limit:
        return "**no**"
    return "yes" if found["high"] <= limit + 0.05 else "median only"


def cost_rows(cells: list[dict]) -> list[list[str]]:
    columns = ("plain", "default", "default, unspecific", "control, S = 0", "exact specific, every step")
    return [
        [
            f"{cell['network']}, {cell['outputs']} outputs, {cell['compiler']}",
            *(interval(cell["modes"].get(name)) for name in columns),
        ]
        for cell in cells
    ]


def target_rows(cells: list[dict]) -> list[list[str]]:
    rows = []
    for name, limit, networks in TARGETS:
        for cell in cells:
            if name in cell["modes"] and cell["network"] in networks:
                found = cell["modes"][name]
                label = f"{name}: {cell['network']}, {cell['outputs']} outputs, {cell['compiler']}"
                rows.append([label, f"{limit:.2f}", interval(found), verdict(found, limit)])
    return rows


def outcome_rows(runs: list[dict]) -> list[list[str]]:
    groups: dict[tuple[str, str], list[dict]] = {}
    for run in runs:
        groups.setdefault((run["network"], run["estimator"]), []).append(run)
    rows = []
    for (network, name), group in sorted(groups.items()):
        numbers = []
        for key, digits in (("error", 2), ("compression", 1)):
            numbers.append(spread([run[key] for run in group], digits))
        rows.append([network, name, *numbers, str(len(group))])
    return rows


def quality_rows(result: dict) -> list[list[str]]:
    """The largest tensor of the network; the result file has the others."""
    rows = []
    for name, tensors in result["estimators"].items():
        found = next(iter(tensors.values()))
        kept = [f"{value:.2f}" for key, value in found.items() if key.startswith("kept")]
        rows.append(
            [
                name,
                f"{found['rank correlation']:.3f}",
                f"{found['bias']:+.2f}",
                f"{found['relative deviation']:.2f}",
                *kept,
            ]
        )
    return rows


def exponent(xs: list[float], ys: list[float]) -> float:
    """Slope of log y over log x, least squares."""
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)


def scale_points(axis: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """mode -> (size, milliseconds, ratio to L2, peak MiB) in the order of the sizes."""
    points: dict[str, list] = {}
    for result in sorted(results(f"step-scale-{axis}-*.json"), key=lambda r: r["value"]):
        for name, found in result["modes"].items():
            row = (result["value"], found["milliseconds"], found.get("ratio", 1.0), found["peak_bytes"] / 2**20)
            points.setdefault(name, []).append(row)
    return points


def scale_rows(axis: str) -> list[list[str]]:
    rows = []
    for name, points in scale_points(axis).items():
        slope = f"{exponent([p[0] for p in points], [p[1] for p in points]):.2f}" if len(points) > 1 else ""
        rows += [
            [name, f"{size:,.0f}", f"{ms:,.1f}", f"{ratio:.2f}", f"{peak:,.0f}", slope]
            for size, ms, ratio, peak in points
        ]
    return rows


def draw(cells: list[dict]) -> None:
    from keras_sensprune.reports.figure import new_figure, tidy, written

    figure = new_figure(8, 0.45 * len(cells) + 1.2)
    axes = figure.subplots()
    tidy(axes, "x")
    for row, cell in enumerate(reversed(cells)):
        for name, color in (
            ("default", "tab:blue"),
            ("default, unspecific", "tab:orange"),
            ("control, S = 0", "tab:gray"),
        ):
            found = cell["modes"][name]
            error = [[found["ratio"] - found["low"]], [found["high"] - found["ratio"]]]
            offset = {"tab:blue": 0.2, "tab:orange": 0.0, "tab:gray": -0.2}[color]
            label = name if row == 0 else None
            axes.errorbar(found["ratio"], row + offset, xerr=error, fmt="o", color=color, markersize=4, label=label)
    axes.axvline(1.1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(cells)), [f"{c['network']}, {c['outputs']}, {c['compiler']}" for c in reversed(cells)])
    axes.set_xlabel("time of a step / time of the same step with L2 (dotted: 1.10)")
    axes.legend()
    written(figure, DOCS / PICTURES[0])
    draw_scale(new_figure, tidy, written)


def draw_scale(new_figure, tidy, written) -> None:
    axes_with_data = [axis for axis in AXES if scale_points(axis)]
    if not axes_with_data:
        return
    figure = new_figure(4 * len(axes_with_data), 3.4)
    for axes, axis in zip(figure.subplots(1, len(axes_with_data), squeeze=False)[0], axes_with_data, strict=True):
        tidy(axes, "both")
        for name, points in scale_points(axis).items():
            axes.loglog([p[0] for p in points], [p[1] for p in points], "o-", markersize=4, label=name)
        axes.set_xlabel(AXES[axis])
        axes.set_ylabel("milliseconds per step")
        axes.legend(fontsize=7)
    written(figure, DOCS / PICTURES[1])


def overhead_lines() -> list[str]:
    found = results("step-overhead.json")
    return overhead_text(found[0]) if found else []


def overhead_text(record: dict) -> list[str]:
    """Memory and time beside the steps, from `step_overhead.py`."""
    spent, memory = record["run"], record["memory"]
    median, variables = spent["median"], memory["variables"]
    default, second = (variables[name]["bytes_per_weight"] for name in ("default", "order=2"))
    bfloat16 = variables["default"]["bytes_per_weight_if_bfloat16_sensitivity"]
    met = "met" if median["together"] <= median["allowed"] else "**not met**"
    lines = ["## Memory, attaching and epoch ends", ""]
    lines += [
        f"- Extra variables: {default['together']:.0f} bytes per regularized weight (sensitivity "
        f"{default['sensitivity']:.0f}, mask {default['mask']:.0f}), {second['together']:.0f} with `order=2`. With "
        f"sensitivities in bfloat16 it would be {bfloat16:.0f}; that is not built.",
        f"- Attaching, tracing and all epoch ends of {spent['epochs']} epochs of {spent['examples']:,} examples on "
        f"{record['network']}, beyond what L2 takes: {median['together']:.2f} s (attaching and first step "
        f"{median['attach_and_trace']:.2f} s, ends {median['ends']:.2f} s; median of {len(spent['overheads'])} pairs). "
        f"Asked: 2 s + 2 % of the run, {median['allowed']:.2f} s: {met}. The whole run took "
        f"{median['whole_run_ratio']:.2f} times that with L2.",
        "",
        "Peak memory of a fresh process that runs the step, less that of the imported modules:",
        "",
    ]
    rows = [
        [mode, *(f"{(found['peak_bytes'] - found['modules_bytes']) / 2**20:,.0f} MiB" for found in by_outputs.values())]
        for mode, by_outputs in memory["peak"].items()
    ]
    outputs = [f"{number} outputs" for number in next(iter(memory["peak"].values()))]
    return [*lines, table(["mode", *outputs], rows), ""]


def page() -> str:
    """The text of the page; the pictures that it shows are drawn by `draw`."""
    cells = cost_cells()
    before, after = (HERE / "performance_notes.md").read_text().strip().split("\n<!-- tables -->\n")
    parts = ["<!-- made by benchmarks/make_performance_page.py -->", "", before.strip(), ""]
    parts += [f"![Time of a step beside L2]({PICTURES[0]})", "", "## A step beside the same step with L2", ""]
    head = ["network", "plain", "default", "default, unspecific", "control, S = 0", "exact specific, every step"]
    parts += [table(head, cost_rows(cells)), "", "## What was asked, and what was measured", ""]
    parts += [table(["mode and network", "at most", "measured", "met"], target_rows(cells)), ""]
    tfmot = results("step-tfmot-*.json")
    if tfmot:
        rows = [[r["network"], interval(r["modes"]["ours"]), interval(r["modes"]["tfmot"])] for r in tfmot]
        parts += ["`fit` with pruning beside the same `fit` without, ours and TF-MOT's `prune_low_magnitude`:", ""]
        parts += [table(["network", "PruneAtEpochEnd", "TF-MOT"], rows), ""]
    parts += [
        "## Error and compression by estimator",
        "",
        "On the test split, after fine-tuning, recipes unchanged:",
        "",
    ]
    parts += [
        table(["network", "estimator", "error, %", "compression", "seeds"], outcome_rows(results("outcome-*.json")), 2),
        "",
    ]
    quality = results("estimator-quality-*.json")
    if quality:
        parts += ["## How near the estimators are", "", quality_words(quality[0]), ""]
        head = ["estimator", "rank correlation", "bias", "deviation", "kept at 90 %", "95 %", "99 %"]
        parts += [table(head, quality_rows(quality[0])), ""]
    if scale_points("outputs"):
        parts += ["## Scale", "", f"![Milliseconds per step over the size]({PICTURES[1]})", ""]
    for axis, title in AXES.items():
        if scale_points(axis):
            head = [f"mode, by {title}", title, "ms per step", "beside L2", "peak MiB", "exponent"]
            parts += [table(head, scale_rows(axis)), ""]
    parts += [*overhead_lines(), after.strip(), "", words_on_timing(cells)]
    return "\n".join(parts).rstrip() + "\n"


def cost_cells() -> list[dict]:
    cells = results("step-cost-*.json")
    return sorted(cells, key=lambda c: (NETWORKS.index(c["network"]), c["outputs"], c["compiler"]))


def quality_words(result: dict) -> str:
    return (
        f"First layer of LeNet-300-100 after 5 epochs on MNIST, against the exact unspecific sensitivity (mean of "
        f"{result['reference batches']} batches of {result['batch']}). Bias: mean over the weights, relative. "
        f"Deviation: of a weight's estimate between {result['repeats']} repeats, relative, median over the weights. "
        "Kept: share of the weights of largest sensitivity that are the same, if so many are pruned."
    )


def words_on_timing(cells: list[dict]) -> str:
    versions = cells[0]["versions"] if cells else {}
    used = ", ".join(f"{package} {number}" for package, number in versions.items())
    return (
        "Times are ratios within rounds of random order in one process, median and 95 % interval by bootstrap over "
        "the rounds, through the compiled train function of `fit`, on a machine of two cores that also did other "
        "things; XLA only where it is named. "
        f"Batch 128, MobileNetV2 16. {used}. Commands: see the results in `benchmarks/results/`."
    )


def main() -> None:
    draw(cost_cells())
    (DOCS / "performance.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
