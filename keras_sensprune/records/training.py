"""What training and pruning did."""

from __future__ import annotations

from keras_sensprune.records.codec import record
from keras_sensprune.records.export import ExportRecord
from keras_sensprune.records.sparsity import SparsityReport


@record
class PruneRecord:
    """What one pruning did.

    Attributes:
        epoch: the epoch after which it happened, from 0; -1 outside of `fit`.
        threshold: the threshold on |w|.
        total: prunable weights.
        nonzero_before: how many were not zero before.
        nonzero: how many are not zero now.
        penalty: the penalty (strength * sum of R) of the decoupled weights after pruning.
        kept_by_floor: labels of tensors that would have been emptied and kept their largest weight (or group).
        structure: what was pruned together, as text.
        groups: groups of the structure, over the tensors to which it applies (a recurrent unit counts in both of its
            tensors); 0 for "weight".
        nonzero_groups: those of them that are not all zero.
        by_weight: labels of tensors to which the structure does not apply: pruned weight by weight.
    """

    epoch: int
    threshold: float
    total: int
    nonzero_before: int
    nonzero: int
    penalty: float
    kept_by_floor: tuple[str, ...] = ()
    structure: str = "weight"
    groups: int = 0
    nonzero_groups: int = 0
    by_weight: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1)."""
        return 1.0 - self.nonzero / self.total

    @property
    def compression(self) -> float:
        """Total / nonzero."""
        return self.total / self.nonzero


@record
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


@record
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


@record
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
