"""What became of the zeros of a layer when it was trained further."""

from __future__ import annotations

from keras_sensprune.records.codec import record


@record
class KeptZerosRecord:
    """The zeros of one weight before and after a training that must keep them.

    Attributes:
        layer: name of the layer.
        weights: entries of its kernel.
        zeros_before: how many were zero before.
        zeros_after: how many are zero now; never fewer.
        restored: how many had drifted away in the course of the training and were set back, summed over its steps.
        kept_by: "TF-MOT" (its scheme masks the weight in every step) or "mask" (only we do, after every step).
    """

    layer: str
    weights: int
    zeros_before: int
    zeros_after: int
    restored: int
    kept_by: str
