"""Frozen results: numbers and strings, JSON in and out. Nothing here imports NumPy or Keras."""

from keras_sensprune.records.codec import RECORD_TYPES, from_dict, from_json, to_dict, to_json
from keras_sensprune.records.export import CandidateRecord, ExportRecord, TensorRecord
from keras_sensprune.records.sparsity import HISTOGRAM_EDGES, LayerRecord, SparsityReport
from keras_sensprune.records.training import DemoRecord, PruneRecord, Recipe, RunRecord

__all__ = [
    "HISTOGRAM_EDGES",
    "RECORD_TYPES",
    "CandidateRecord",
    "DemoRecord",
    "ExportRecord",
    "LayerRecord",
    "PruneRecord",
    "Recipe",
    "RunRecord",
    "SparsityReport",
    "TensorRecord",
    "from_dict",
    "from_json",
    "to_dict",
    "to_json",
]
