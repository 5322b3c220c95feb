"""Sensitivity-driven pruning for Keras 3: `model.fit` to a small, checked `.tflite` file.

The table below is the public API. Names are imported on first use, because importing Keras costs seconds
that `--help` and packaging tools must not pay. If Keras is already imported, `SensitivityRegularizer` is
registered at once, so that `keras.models.load_model` finds it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "SensitivityRegularizer": "keras_sensprune.training.regularizer",
    "PruneAtEpochEnd": "keras_sensprune.training.callback",
    "SparsityTarget": "keras_sensprune.training.rules",
    "SizeTarget": "keras_sensprune.training.size",
    "ToleranceThreshold": "keras_sensprune.training.tolerance",
    "SparsitySchedule": "keras_sensprune.formulas.schedules",
    "StrengthRamp": "keras_sensprune.training.strength",
    "StrengthPlateau": "keras_sensprune.training.strength",
    "StrengthController": "keras_sensprune.training.strength",
    "BestAtSparsity": "keras_sensprune.training.best",
    "Block": "keras_sensprune.formulas.structures",
    "NofM": "keras_sensprune.formulas.structures",
    "Sensitivity": "keras_sensprune.formulas.sensitivity",
    "sparsify": "keras_sensprune.planning.sparsify",
    "Budget": "keras_sensprune.records.planning",
    "add_regularizer": "keras_sensprune.training.targets",
    "make_pruning_step": "keras_sensprune.training.session",
    "epoch_data": "keras_sensprune.training.shuffling",
    "pruning": "keras_sensprune.training.session",
    "detach": "keras_sensprune.training.session",
    "weight_sensitivities": "keras_sensprune.training.batch",
    "exact_count_mask": "keras_sensprune.formulas.masks",
    "sparsity_report": "keras_sensprune.census",
    "report_text": "keras_sensprune.reports.table",
    "sparsify_text": "keras_sensprune.reports.phases",
    "report_markdown": "keras_sensprune.reports.table",
    "plot_report": "keras_sensprune.reports.plot",
    "plot_before_after": "keras_sensprune.reports.plot_sizes",
    "plot_size_waterfall": "keras_sensprune.reports.plot_sizes",
    "plot_search": "keras_sensprune.reports.plot_search",
    "record_text": "keras_sensprune.reports.files",
    "cross_validate": "keras_sensprune.planning.cross_validation",
    "search": "keras_sensprune.planning.search",
    "SearchSpace": "keras_sensprune.planning.space",
    "compact": "keras_sensprune.compaction.model",
    "export_tflite": "keras_sensprune.export.tflite",
    "to_tf_keras": "keras_sensprune.tfmot.forward",
    "from_tf_keras": "keras_sensprune.tfmot.backward",
    "quantize_aware": "keras_sensprune.tfmot.qat",
    "cluster_preserving": "keras_sensprune.tfmot.clustering",
    "export_quantized": "keras_sensprune.tfmot.exporting",
    "inspect_tflite": "keras_sensprune.export.inspection",
    "check_sparse_inference": "keras_sensprune.export.eligibility",
    "benchmark_tflite": "keras_sensprune.export.latency",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


if "keras" in sys.modules:
    importlib.import_module("keras_sensprune.training.regularizer")
