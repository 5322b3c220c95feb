"""What the sensitivity adds: error-compression curves of every form of the rule, and of weight decay in its place.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/forms.py --network lenet-300-100 --threads 1

A run takes the trained dense network of its seed through stages. In a stage the rule shrinks at a constant learning
rate, and after each epoch a share of the weights goes, those of least score over all layers together, until the stage
has exactly its compression; then the network is fine-tuned without shrinkage, at a falling rate and with its zeros
kept, and measured. So all forms have the same compressions, epochs, batches and dense networks, and a run gives a whole
curve. The strength of a form is chosen among half decades, by the geometric mean of the validation errors over the
stages, further as long as the best one has a neighbor that was not tried: with all seeds for the forms that matter
most, with the first seed for the others. The test part is evaluated with what was chosen. One file per form, rewritten
after every run; rows that are there are not run again, and trained weights are kept in results/cache. The forms that
matter most come first, seed by seed. About a minute per run on one core.
"""

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from curves import geometric_mean
from results import RESULTS
from study import Protocol, Study, best_half_decade, study_parser, use_threads

from keras_sensprune.formulas.items import Items
from keras_sensprune.training.rules import SparsityTarget


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of the rule.

    Attributes:
        words: what it is.
        sensitivity: arguments of `Sensitivity`.
        begin: where the search for the strength begins; 0 means that nothing is shrunk.
        score: "magnitude" |w|, or "sensitivity" |w| S.
        decay: whether the shrinkage is plain weight decay, whatever the sensitivity, which then makes the score alone.
        falls: whether the strength falls as the validation error nears the budget.
        cap: in the place of `RELEVANCE_CAP`.
    """

    words: str
    sensitivity: dict
    begin: float = 3.2e-4  # among the best strengths of the forms that were tried first
    score: str = "magnitude"
    decay: bool = False
    falls: bool = False
    cap: float | None = None


def probabilities(model, x):
    """An `output_fn` with softmax outputs in the place of logits."""
    import keras

    return keras.ops.softmax(model(x, training=False))


SPECIFIC = {"kind": "specific"}
AVERAGED = {"kind": "specific", "scale": "relative"}  # its S is a running mean
RELEVANCE = {"kind": "specific", "scale": "relevance"}
FIRST = {
    "l2": Form("L2: weight decay, S = 0", {"kind": "none"}),
    "raw": Form("raw, specific", SPECIFIC),
    "relevance": Form("relevance", RELEVANCE),
    "score": Form("score w S, no shrinkage", AVERAGED, 0.0, "sensitivity"),
    "score-mean-of-abs": Form(
        "score w S, mean of abs, no shrinkage", {**AVERAGED, "reduction": "mean_of_abs"}, 0.0, "sensitivity"
    ),
    "none": Form("no shrinkage", {"kind": "none"}, 0.0),
    "relevance-falling": Form("relevance, falling strength", RELEVANCE, 3.2e-3, falls=True),
    "l2-falling": Form("L2, falling strength", {"kind": "none"}, falls=True),
}
OTHERS = {
    "score-all-outputs": Form(
        "score w S of all outputs, mean of abs, no shrinkage",
        {"kind": "unspecific", "scale": "relative", "reduction": "mean_of_abs", "estimator": "exact"},
        0.0,
        "sensitivity",
    ),
    "score-loss": Form("score w dL/dw, no shrinkage", {"kind": "loss", "scale": "relative"}, 0.0, "sensitivity"),
    "l2-score": Form("score w S, with L2", AVERAGED, score="sensitivity", decay=True),
    "relevance-score": Form("score w S, with relevance", RELEVANCE, score="sensitivity"),
    "relative": Form("relative", AVERAGED),
    "mean-of-abs": Form("raw, mean of abs", {**SPECIFIC, "reduction": "mean_of_abs"}),
    "unspecific": Form("raw, unspecific", {"kind": "unspecific"}),
    "loss": Form("raw, loss", {"kind": "loss"}),
    "probabilities": Form("raw, probabilities", {**SPECIFIC, "output_fn": probabilities}),
    "relevance-cap-0.5": Form("relevance, cap 0.5", RELEVANCE, cap=0.5),
    "relevance-cap-1": Form("relevance, cap 1", RELEVANCE, cap=1.0),
}
FORMS = FIRST | OTHERS
LEAST_SHARE = 0.1  # of the strength that is left where the budget is spent


@dataclasses.dataclass(frozen=True)
class Curves(Protocol):
    """The stages of a run."""

    compressions: tuple[float, ...] = (20, 40, 80, 160)
    sparse_epochs: int = 3
    fine_epochs: int = 2
    every: int = 8  # steps between refreshes: the score needs more of them in so few epochs than the default gives
    tried: int = 4  # at most so many strengths
    budget: float = 1.0  # points of validation error above the dense network, for strengths that fall


PROTOCOLS = {"lenet-300-100": Curves(), "lenet-5": Curves("lenet-5", train=10_000, rate=0.2, tried=3)}
QUICK = Curves("lenet-300-100", "digits", 256, 200, 200, dense_epochs=1, compressions=(4, 8), tried=1)


def strength_left(strength: float, error: float, dense: float, budget: float) -> float:
    """A strength that falls in proportion to the points of error that are left of a budget.

    Args:
        strength: where nothing is spent.
        error: of the pruned network now, percent.
        dense: of the dense network, percent.
        budget: points that may be lost.

    Returns:
        strength * min(1, max(LEAST_SHARE, 1 - (error - dense) / budget)).
    """
    return strength * min(1.0, max(LEAST_SHARE, 1 - (error - dense) / budget))


def curve_error(rows: list[dict]) -> float:
    """Geometric mean of the errors over the stages of some runs, in percent; an error counts as 0.01 at least, which is
    half an example of 5,000."""
    return geometric_mean([max(error, 0.01) for row in rows for _, error in row["curve"]])


class Ranked(Items):
    """The weights of one tensor, scored by |w| S in the place of |w|."""

    def __init__(self, items: Items, sensitivity: np.ndarray):
        super().__init__(items.values, items.alive, items.layouts)
        object.__setattr__(self, "sensitivity", sensitivity.astype(float).ravel())

    def scores(self) -> np.ndarray:
        size = super().scores()
        return np.where(np.isneginf(size), size, np.abs(self.values[0]).ravel() * self.sensitivity)


class SensitivityTarget(SparsityTarget):
    """A `SparsityTarget` for which the score of a weight is |w| S, with S as stored."""

    def at_sparsity(self, session, families, due, share=1.0):
        stored = [family[0].sensitivity.numpy() for family in session.families]
        ranked = [Ranked(items, sensitivity) for items, sensitivity in zip(families, stored, strict=True)]
        return super().at_sparsity(session, ranked, due, share)


class FormStudy(Study):
    """Curves of the forms on one network."""

    def curve(self, name: str, strength: float, seed: int, part: str) -> dict:
        """The row of a form: errors on a part, dense and after every stage."""
        return self.row(
            name,
            {"strength": strength, "seed": seed, "part": part},
            lambda: self.evaluate(name, strength, seed, part),
        )

    def evaluate(self, name: str, strength: float, seed: int, part: str) -> dict:
        """Trains, or reads from the cache, and measures. A run that diverges has errors of 100 %."""
        from keras_sensprune.errors import TrainingError

        p = self.protocol
        label = f"{p.network}-{name}-{strength:g}-seed{seed}"
        try:
            stages = self.cached(label, lambda: self.stages(FORMS[name], strength, seed))
        except TrainingError:  # the loss is not finite
            return {"curve": [[c, 100.0] for c in p.compressions], "diverged": True}
        dense, seconds = self.dense(seed)
        model = self.network(None, dense)
        found = {"dense": self.error(model, part), "dense_seconds": round(seconds, 1)}
        curve = []
        for number in range(len(p.compressions)):
            weights = [stages[f"{number}.{n}"] for n in range(len(dense))]
            model.set_weights(weights)
            kernels = [w for w in weights if w.ndim > 1]
            compression = sum(w.size for w in kernels) / sum(int(np.count_nonzero(w)) for w in kernels)
            curve.append([round(compression, 2), self.error(model, part)])
        spent = {key: round(float(stages[key]), 1) for key in ("sparse_seconds", "fine_seconds")}
        return {**found, "curve": curve, **spent}

    def stages(self, form: Form, strength: float, seed: int) -> dict:
        """The weights after every stage, and the seconds of the two kinds of phases."""
        p = self.protocol
        weights, _ = self.dense(seed)
        dense = self.error(self.network(None, weights), "validation") if form.falls else 0.0
        error, sparsity = dense, 0.0
        found: dict = {"sparse_seconds": 0.0, "fine_seconds": 0.0}
        for number, compression in enumerate(p.compressions):
            now = strength_left(strength, error, dense, p.budget) if form.falls else strength
            bounds = sparsity, 1 - 1 / compression
            model, seconds = self.stage(form, now, weights, bounds, 1000 * seed + 10 * number)
            weights, sparsity = model.get_weights(), bounds[1]
            error = self.error(model, "validation") if form.falls else 0.0
            found |= {f"{number}.{n}": w for n, w in enumerate(weights)}
            for key, value in zip(("sparse_seconds", "fine_seconds"), seconds, strict=True):
                found[key] += value
        return found

    def stage(self, form: Form, strength: float, weights, bounds, seed: int):
        """Prunes from one sparsity to the next and fine-tunes; returns the model and the seconds of both."""
        from keras_sensprune import (
            PruneAtEpochEnd,
            Sensitivity,
            SensitivityRegularizer,
            SparsitySchedule,
            add_regularizer,
        )

        p = self.protocol
        schedule = SparsitySchedule(bounds[1], "linear", initial=bounds[0], end=1.0)
        rule = (SensitivityTarget if form.score == "sensitivity" else SparsityTarget)(schedule)
        prune = PruneAtEpochEnd(rule, Sensitivity(**form.sensitivity, every=p.every))
        model = self.network(SensitivityRegularizer(0.0 if form.decay else strength), weights)
        optimizer = self.sgd(weight_decay=strength / p.rate) if form.decay else self.sgd()
        if form.decay:
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        cap = contextlib.nullcontext()
        if form.cap is not None:
            cap = mock.patch("keras_sensprune.formulas.sensitivity.RELEVANCE_CAP", form.cap)
        with cap:
            sparse = self.fit(model, optimizer, p.sparse_epochs, seed, prune)
        add_regularizer(model, SensitivityRegularizer(0.0))
        keep = PruneAtEpochEnd(0.0, Sensitivity("none"))
        fine = self.fit(model, self.sgd(p.fine_epochs), p.fine_epochs, seed + 1, keep)
        return model, (sparse, fine)

    def strength(self, name: str, seeds) -> float:
        """Chosen on the validation part, with these seeds."""
        begin = FORMS[name].begin

        def error(strength):
            rows = [self.curve(name, strength, seed, "validation") for seed in seeds]
            return curve_error(rows)

        if not begin:
            error(0.0)  # no choice, but the table of the searches shows it beside the others
            return 0.0
        return best_half_decade(begin, error, self.protocol.tried)

    def run(self, names, seeds, choosing: int) -> None:
        """Strengths with as many of the first seeds, then all forms seed by seed."""
        chosen = {name: self.strength(name, seeds[:choosing]) for name in names}
        for seed in seeds:
            for name in names:
                self.curve(name, chosen[name], seed, "test")


def main(arguments: list[str] | None = None) -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--network", default="lenet-300-100", choices=list(PROTOCOLS))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        protocol = QUICK if options.quick else PROTOCOLS[options.network]
        study = FormStudy("forms", protocol, Path(folder) if options.quick else RESULTS)
        for group, choosing in ((FIRST, len(options.seeds)), (OTHERS, 1)):
            study.run([name for name in options.forms if name in group], options.seeds, choosing)


if __name__ == "__main__":
    main()
