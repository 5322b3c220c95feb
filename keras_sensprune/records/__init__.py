"""Frozen results: numbers and strings, JSON in and out. Nothing here imports NumPy or Keras."""

from keras_sensprune.records.codec import RECORD_TYPES, from_dict, from_json, to_dict, to_json
from keras_sensprune.records.compaction import CompactedLayer, CompactionRecord, CompactionStop
from keras_sensprune.records.export import CandidateRecord, ExportRecord, TensorRecord
from keras_sensprune.records.inspection import (
    ConstantRecord,
    ObstacleRecord,
    OperatorCount,
    SparseInferenceRecord,
    TfliteRecord,
)
from keras_sensprune.records.latency import FileTiming, LatencyRecord, ThreadLatency
from keras_sensprune.records.planning import Budget, PhaseRecord, SparsifyRecipe, SparsifyRecord, TrainRecord
from keras_sensprune.records.search import (
    CrossValidationRecord,
    FitSettings,
    FoldTraining,
    SearchRange,
    SearchRecord,
    SearchTrial,
    SettingRecord,
)
from keras_sensprune.records.sparsity import HISTOGRAM_EDGES, LayerRecord, SparsityReport
from keras_sensprune.records.training import DemoRecord, PruneRecord, Recipe, RunRecord
from keras_sensprune.records.zeros import KeptZerosRecord

__all__ = [
    "HISTOGRAM_EDGES",
    "RECORD_TYPES",
    "Budget",
    "CandidateRecord",
    "CompactedLayer",
    "CompactionRecord",
    "CompactionStop",
    "ConstantRecord",
    "CrossValidationRecord",
    "DemoRecord",
    "ExportRecord",
    "FileTiming",
    "FitSettings",
    "FoldTraining",
    "KeptZerosRecord",
    "LatencyRecord",
    "LayerRecord",
    "ObstacleRecord",
    "OperatorCount",
    "PhaseRecord",
    "PruneRecord",
    "Recipe",
    "RunRecord",
    "SearchRange",
    "SearchRecord",
    "SearchTrial",
    "SettingRecord",
    "SparseInferenceRecord",
    "SparsifyRecipe",
    "SparsifyRecord",
    "SparsityReport",
    "TensorRecord",
    "TfliteRecord",
    "ThreadLatency",
    "TrainRecord",
    "from_dict",
    "from_json",
    "to_dict",
    "to_json",
]
