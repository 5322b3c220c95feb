"""What a search among settings tried, and what it found."""

from __future__ import annotations

from keras_sensprune.records.codec import record


@record
class FitSettings:
    """What all trainings of one search share.

    Attributes:
        data: sizes of the data and the beginning of their SHA-256 digest.
        weights: prunable weights of the model.
        epochs: of each training.
        batch_size: examples per step.
        metric: what is compared, as the model calls it.
        mode: "min" if less of it is better: then it is the error; "max": then the error is 100 (1 - metric), percent.
        sensitivity: which one the rule uses, as text.
        seed: of weights, shuffling and data split.
    """

    data: str
    weights: int
    epochs: int
    batch_size: int
    metric: str
    mode: str
    sensitivity: str
    seed: int


@record
class FoldTraining:
    """One training of a cross-validation, and the thresholds that were tried on its weights.

    Attributes:
        strength: of the shrinkage.
        fold: the fold that was held out, from 0.
        errors: validation error at each threshold; empty if the training failed.
        sparsities: fraction of zeros among the prunable weights at each threshold.
        seconds: wall time of the training and of all its thresholds.
        failure: why it failed; empty if it did not.
    """

    strength: float
    fold: int
    errors: tuple[float, ...]
    sparsities: tuple[float, ...]
    seconds: float
    failure: str = ""


@record
class SettingRecord:
    """A strength and a threshold over all folds.

    Attributes:
        strength: of the shrinkage.
        threshold: on |w|.
        error: mean of the validation error.
        error_deviation: its standard deviation over the folds (k - 1 in the denominator).
        sparsity: mean of the sparsity.
        sparsity_deviation: its standard deviation.
    """

    strength: float
    threshold: float
    error: float
    error_deviation: float
    sparsity: float
    sparsity_deviation: float


@record
class CrossValidationRecord:
    """What `cross_validate` found.

    Attributes:
        settings: what all trainings shared.
        strengths: those to be tried.
        thresholds: those to be tried at each strength.
        folds: how many.
        fine_tune_epochs: with the zeros kept, at each threshold; 0 for none.
        trainings: one per strength and fold, in this order.
        results: one per strength and threshold, without the strengths of which a training failed; empty until all
            trainings are done.
        best: the one with the lowest error.
        chosen: the sparsest one within one standard error of the best.
    """

    settings: FitSettings
    strengths: tuple[float, ...]
    thresholds: tuple[float, ...]
    folds: int
    fine_tune_epochs: int
    trainings: tuple[FoldTraining, ...] = ()
    results: tuple[SettingRecord, ...] = ()
    best: SettingRecord | None = None
    chosen: SettingRecord | None = None


@record
class SearchRange:
    """From where to where a search looks for one setting.

    Attributes:
        name: "strength", "threshold", "sparsity" or "learning_rate".
        low, high: the smallest and the largest value.
    """

    name: str
    low: float
    high: float


@record
class SearchTrial:
    """One trial of a search: a training from the beginning.

    Attributes:
        values: of the settings, in the order of the ranges.
        error: validation error; None if the training failed, as the next three.
        size: what the second objective says, nonzero prunable weights by default.
        sparsity: fraction of zeros among the prunable weights.
        compression: size of the dense network / size.
        seconds: wall time.
        failure: why the training failed; empty if it did not.
    """

    values: tuple[float, ...]
    error: float | None
    size: float | None
    sparsity: float | None
    compression: float | None
    seconds: float
    failure: str = ""


@record
class SearchRecord:
    """What `search` found.

    Attributes:
        settings: what all trials shared.
        ranges: where it looked.
        size: name of the second objective.
        dense_size: its value for the network before training.
        trials: in the order in which they were made.
        front: numbers of the trials that no other trial beats in both objectives, by rising error.
    """

    settings: FitSettings
    ranges: tuple[SearchRange, ...]
    size: str
    dense_size: float
    trials: tuple[SearchTrial, ...] = ()
    front: tuple[int, ...] = ()
