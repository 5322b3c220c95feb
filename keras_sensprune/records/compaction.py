"""What compaction took out of a model."""

from __future__ import annotations

from keras_sensprune.records.codec import record


@record
class CompactedLayer:
    """One layer whose units were looked at.

    Attributes:
        path: its name, in the given and in the smaller model; layers of a nested model after the model's name.
        kind: class name of the layer.
        units_before, units_after: number of units (neurons, filters, recurrent units, columns).
        kept: the old index of each unit that is left, in order: unit i of the smaller model was unit kept[i].
        folded: units whose constant, nonzero output was added to the bias of the layers behind.
    """

    path: str
    kind: str
    units_before: int
    units_after: int
    kept: tuple[int, ...]
    folded: int


@record
class CompactionStop:
    """A layer through which nothing can be removed.

    Attributes:
        path: its name.
        kind: class name.
        reason: why; all its inputs and outputs keep their channels (where only its activation is in the way, only its
            own units stay).
    """

    path: str
    kind: str
    reason: str


@record
class CompactionRecord:
    """What `compact` did.

    Attributes:
        model: name of the model.
        layers: those whose units can be removed, in the order of the model.
        stops: the layers that stand in the way, each with the reason.
        parameters_before, parameters_after: entries of all weights.
        multiply_adds_before, multiply_adds_after: multiplications of weights per example (free sizes count as 1).
        rounds: passes over the model until nothing changed.
        round_to: widths were kept a multiple of this where possible.
        max_difference: largest absolute difference between the outputs of the two models.
        tolerance: what was allowed.
        examples: on how many examples they were compared.
    """

    model: str
    layers: tuple[CompactedLayer, ...]
    stops: tuple[CompactionStop, ...]
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    rounds: int
    round_to: int
    max_difference: float
    tolerance: float
    examples: int

    @property
    def removed_units(self) -> int:
        """Units that are gone."""
        return sum(layer.units_before - layer.units_after for layer in self.layers)
