"""A demo's record as text: what the two rules gave, and what was exported."""

from __future__ import annotations

from keras_sensprune.records import DemoRecord, RunRecord


def demo_text(record: DemoRecord) -> str:
    """The closing summary of a demo.

    Args:
        record: what the demo found.

    Returns:
        Lines of text: one row per network, then the exported file.
    """
    run, control, export = record.run, record.control, record.export
    lines = [f"Data: {run.data}; seed {run.recipe.seed}", ""]
    lines.append(f"{'network':<28}{'test error':>11}{'weights':>11}{'with biases':>13}{'training':>10}")
    lines.append(f"{'dense':<28}{run.dense_error:>9.2f} %{'1.0x':>11}{'1.0x':>13}{run.dense_seconds:>8.0f} s")
    lines.append(_row("sensitivity + threshold", run))
    if control is not None:
        lines.append(_row("L2 + threshold (control)", control))
    lines += [
        "",
        f"{export.path}: {_size(export.bytes)} ({_size(export.gzip_bytes)} gzipped), {export.encoding}, dense file "
        f"{_size(export.dense_bytes)};",
        f"run back in {' and '.join(export.runs)} on {export.examples} test images, largest difference from Keras "
        f"{export.max_difference:.1e}",
    ]
    return "\n".join(lines)


def _row(name: str, run: RunRecord) -> str:
    seconds = run.sparse_seconds + run.fine_seconds
    weights, both = f"{run.report.compression:.1f}x", f"{run.report.compression_with_biases:.1f}x"
    return f"{name:<28}{run.error:>9.2f} %{weights:>11}{both:>13}{'+' + format(seconds, '.0f'):>8} s"


def _size(count: int) -> str:
    return f"{count / 1024:.1f} KiB"
