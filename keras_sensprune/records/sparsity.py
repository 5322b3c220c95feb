"""What a model holds, layer by layer."""

from __future__ import annotations

from keras_sensprune.records.codec import record


@record
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


@record
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
