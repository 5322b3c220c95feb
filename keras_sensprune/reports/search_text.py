"""Records of searches -> tables for a terminal."""

from __future__ import annotations

from keras_sensprune.records import CrossValidationRecord, FitSettings, SearchRecord, SettingRecord
from keras_sensprune.reports.columns import aligned


def cross_validation_text(record: CrossValidationRecord) -> str:
    """One row per strength and threshold; the best one and the chosen one are marked.

    Args:
        record: what `cross_validate` returned, or the same read from JSON, also of one that is not finished.

    Returns:
        Lines without a trailing newline.
    """
    done = f"{len(record.trainings)} of {len(record.strengths) * record.folds} trainings done"
    lines = [f"Cross-validation: {record.folds} folds, {done}, {_data(record.settings)}"]
    if record.results:
        head = ("strength", "threshold", _error(record.settings), "+-", "sparsity, %", "+-", "")
        rows = [_setting(result, record) for result in record.results]
        lines += aligned(head, rows, right=(2, 3, 4, 5))
    lines += [
        f"failed: strength {training.strength:g}, fold {training.fold}: {training.failure}"
        for training in record.trainings
        if training.failure
    ]
    return "\n".join(lines)


def _setting(result: SettingRecord, record: CrossValidationRecord) -> tuple[str, ...]:
    marks = [mark for mark, marked in (("best", record.best), ("chosen", record.chosen)) if marked == result]
    return (
        f"{result.strength:g}",
        f"{result.threshold:g}",
        f"{result.error:.4g}",
        f"{result.error_deviation:.2g}",
        f"{100 * result.sparsity:.2f}",
        f"{100 * result.sparsity_deviation:.2f}",
        ", ".join(marks),
    )


def search_text(record: SearchRecord) -> str:
    """The Pareto front of a search: one row per trial of the front, by rising error.

    Args:
        record: what `search` returned, or the same read from JSON.

    Returns:
        Lines without a trailing newline.
    """
    failed = sum(bool(trial.failure) for trial in record.trials)
    seconds = sum(trial.seconds for trial in record.trials)
    lines = [
        f"Search: {len(record.trials)} trials, {failed} failed, {seconds:.0f} s, {_data(record.settings)}",
        f"Pareto front of error and {record.size}: {len(record.front)} trials",
    ]
    names = [each.name.replace("_", " ") for each in record.ranges]
    head = ("trial", *names, _error(record.settings), record.size, "sparsity, %", "smaller")
    rows = []
    for number in record.front:
        trial = record.trials[number]
        rows.append(
            (
                str(number),
                *(f"{value:.4g}" for value in trial.values),
                f"{trial.error:.4g}",
                f"{trial.size:,}",
                f"{100 * (trial.sparsity or 0.0):.2f}",
                f"{trial.compression:.2f}x",
            )
        )
    lines += aligned(head, rows, right=tuple(range(1 + len(names), 5 + len(names)))) if rows else []
    return "\n".join(lines)


def _error(settings: FitSettings) -> str:
    return "error, %" if settings.mode == "max" else settings.metric


def _data(settings: FitSettings) -> str:
    return f"{settings.epochs} epochs each, {settings.weights:,} weights, seed {settings.seed}"
