"""Frozen results: numbers and strings, JSON in and out. Nothing here imports NumPy or Keras."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from keras_sensprune.errors import DataError


@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """What one layer holds.

    Attributes:
        path: label of the layer (not an identity: two layers can share it).
        kind: class name of the layer.
        shape: shape of its first weight tensor.
        weights: entries of its weight tensors (kernels, recurrent kernels, embeddings: rank 2 and more).
        nonzero_weights: how many of them are not zero.
        biases: entries of its other trainable variables (biases, gamma, beta: rank 0 and 1).
        nonzero_biases: how many of them are not zero.
        units: number of output units (neurons, filters, recurrent units).
        dead_units: units all of whose incoming weights are zero.
        regularized: whether a `SensitivityRegularizer` sits on one of its weights.
        histogram: counts of nonzero absolute weights per decade bin, see `HISTOGRAM_EDGES`.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    nonzero_weights: int
    biases: int
    nonzero_biases: int
    units: int
    dead_units: int
    regularized: bool
    histogram: tuple[int, ...] = ()

    @property
    def percent_left(self) -> float:
        """100 * nonzero_weights / weights (100 for a layer without weights)."""
        return 100.0 * self.nonzero_weights / self.weights if self.weights else 100.0


# Exponents e of the histogram's edges 10**e, from 1e-6 to 10 in steps of a quarter decade. Smaller nonzero
# values fall into the first bin, larger ones into the last.
HISTOGRAM_EDGES: tuple[float, ...] = tuple(-6.0 + 0.25 * i for i in range(29))


@dataclasses.dataclass(frozen=True)
class SparsityReport:
    """What a model holds, layer by layer, in the order of the model.

    Attributes:
        model: name of the model.
        layers: one record per layer that has trainable variables.
    """

    model: str
    layers: tuple[LayerRecord, ...]

    def _sum(self, field: str) -> int:
        return sum(getattr(layer, field) for layer in self.layers)

    @property
    def weights(self) -> int:
        """All entries of weight tensors."""
        return self._sum("weights")

    @property
    def nonzero_weights(self) -> int:
        """Those that are not zero."""
        return self._sum("nonzero_weights")

    @property
    def parameters(self) -> int:
        """All entries of weights and biases."""
        return self.weights + self._sum("biases")

    @property
    def nonzero_parameters(self) -> int:
        """Those that are not zero."""
        return self.nonzero_weights + self._sum("nonzero_biases")

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the weights, in [0, 1]."""
        return 1.0 - self.nonzero_weights / self.weights if self.weights else 0.0

    @property
    def compression(self) -> float:
        """Weights / nonzero weights, as most published rows count it."""
        return self.weights / self.nonzero_weights if self.nonzero_weights else float("inf")

    @property
    def compression_with_biases(self) -> float:
        """Parameters / nonzero parameters."""
        return self.parameters / self.nonzero_parameters if self.nonzero_parameters else float("inf")


@dataclasses.dataclass(frozen=True)
class PruneRecord:
    """What one pruning did.

    Attributes:
        epoch: the epoch after which it happened, from 0; -1 outside of `fit`.
        threshold: the threshold on |w|.
        total: prunable weights.
        nonzero_before: how many were not zero before.
        nonzero: how many are not zero now.
        penalty: the penalty (strength * sum of R) of the decoupled weights after pruning.
        kept_by_floor: labels of tensors that would have been emptied and kept their largest weight.
    """

    epoch: int
    threshold: float
    total: int
    nonzero_before: int
    nonzero: int
    penalty: float
    kept_by_floor: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1)."""
        return 1.0 - self.nonzero / self.total

    @property
    def compression(self) -> float:
        """Total / nonzero."""
        return self.total / self.nonzero


@dataclasses.dataclass(frozen=True)
class TensorRecord:
    """One weight tensor of an exported file.

    Attributes:
        name: its name in the file.
        shape: its shape there.
        encoding: "dense" or "csr".
        zeros: how many entries are zero.
        bytes: size of its buffer and, for "csr", of its index arrays.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    zeros: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class ExportRecord:
    """What `export_tflite` wrote and how it was checked.

    Attributes:
        path: the file.
        encoding: "dense" or "sparse", what the file as a whole uses.
        bytes: size of the file.
        gzip_bytes: size after gzip -9.
        dense_bytes: size of the dense file it was compared with.
        tensors: the constant weight tensors.
        sparse_tensors: how many of them are stored sparse.
        max_difference: largest absolute difference between file and Keras model over all runs.
        largest_output: largest absolute output of the Keras model on the same data.
        tolerance: what was allowed for max_difference.
        runs: the interpreters that ran the file.
        examples: how many input examples were compared.
    """

    path: str
    encoding: str
    bytes: int
    gzip_bytes: int
    dense_bytes: int
    tensors: tuple[TensorRecord, ...]
    sparse_tensors: int
    max_difference: float
    largest_output: float
    tolerance: float
    runs: tuple[str, ...]
    examples: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of one run: dense training, sparsification, fine-tuning.

    Attributes:
        network: name of the network.
        rule: "sensitivity" or "l2" (the same with S = 0: decoupled weight decay and the same threshold).
        dense_epochs, sparse_epochs, fine_epochs: epochs of the three phases.
        batch_size: examples per step.
        learning_rate: of SGD; constant while sparsifying, falling along a half cosine in the other two phases.
        strength: of the shrinkage, per step.
        threshold: on |w|, after every epoch of the second phase.
        label_smoothing: of the loss, in all three phases.
        seed: of weights, shuffling and data split.
    """

    network: str = "lenet-300-100"
    rule: str = "sensitivity"
    dense_epochs: int = 30
    sparse_epochs: int = 60
    fine_epochs: int = 30
    batch_size: int = 100
    learning_rate: float = 0.1
    strength: float = 2e-4
    threshold: float = 0.05
    label_smoothing: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What one run of a recipe gave. Errors are in percent of examples, times in seconds.

    Attributes:
        recipe: the settings.
        data: name of the data set and its sizes.
        dense_validation_error, dense_error: before sparsification, on validation and test data.
        validation_error, error: of the final network.
        report: what is left, layer by layer.
        epochs: per epoch of sparsification (validation error, compression of the weights).
        dense_seconds, sparse_seconds, fine_seconds: wall time of the phases.
        sensitivities: per layer the histogram of |sensitivity| of the dense network on validation data, in the bins
            of `HISTOGRAM_EDGES`.
        pixels: nonzero first-layer weights per input pixel, row by row; empty for convolutions.
    """

    recipe: Recipe
    data: str
    dense_validation_error: float
    dense_error: float
    validation_error: float
    error: float
    report: SparsityReport
    epochs: tuple[tuple[float, float], ...]
    dense_seconds: float
    sparse_seconds: float
    fine_seconds: float
    sensitivities: tuple[tuple[int, ...], ...] = ()
    pixels: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class DemoRecord:
    """What `sensprune demo` writes to `report.json`.

    Attributes:
        run: the sensitivity run.
        control: the same with L2 in its place, from the same dense network.
        export: the exported file of the first.
    """

    run: RunRecord
    control: RunRecord | None
    export: ExportRecord


RECORD_TYPES: dict[str, type] = {}
for _type in (LayerRecord, SparsityReport, PruneRecord, TensorRecord, ExportRecord, Recipe, RunRecord, DemoRecord):
    RECORD_TYPES[_type.__name__] = _type


def to_dict(record: Any) -> Any:
    """A record as plain dictionaries, lists, numbers and strings; the key "record" names its type."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        fields = {f.name: to_dict(getattr(record, f.name)) for f in dataclasses.fields(record)}
        return {"record": type(record).__name__, **fields}
    if isinstance(record, (tuple, list)):
        return [to_dict(item) for item in record]
    if isinstance(record, dict):
        return {key: to_dict(value) for key, value in record.items()}
    return record


def from_dict(value: Any) -> Any:
    """The inverse of `to_dict`.

    Raises:
        DataError: if the named record type or one of its fields is unknown.
    """
    if isinstance(value, list):
        return tuple(from_dict(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: from_dict(item) for key, item in value.items() if key != "record"}
    if "record" not in value:
        return fields
    kind = RECORD_TYPES.get(str(value["record"]))
    if kind is None:
        raise DataError(f"Unknown record type {value['record']!r}; known are {', '.join(sorted(RECORD_TYPES))}.")
    try:
        return kind(**fields)
    except TypeError as error:
        raise DataError(f"A record of type {value['record']!r} has wrong fields: {error}.") from None


def to_json(record: Any) -> str:
    """A record as JSON text, two spaces of indent."""
    return json.dumps(to_dict(record), indent=2)


def from_json(text: str) -> Any:
    """The inverse of `to_json`.

    Raises:
        DataError: if the text is no JSON or holds an unknown record.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"This is not JSON: {error}.") from None
    return from_dict(value)
