"""Error and sparsity over strength and threshold: one run per strength, thresholds swept afterwards.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/surface.py --networks lenet-300-100 lenet-5 cifar --threads 1

A run continues from the trained dense network with the default rule at a constant learning rate and without pruning.
Then every threshold is tried on the weights as they are, without fine-tuning, and the validation error is measured:
what one pruning would do at this moment. Seconds of each phase are recorded. One file per network, rewritten after
every run; rows that are there are not run again. "cifar" is CIFAR-10 in JPEG files, cifar10_jpeg.npz beside mnist.npz.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
from results import RESULTS
from study import Protocol, Study, study_parser, use_threads

STRENGTHS = (0.0, 1e-4, 3e-4, 1e-3, 3e-3)
THRESHOLDS = (0.001, 0.003, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1)


@dataclasses.dataclass(frozen=True)
class Surface(Protocol):
    """How long a run shrinks."""

    epochs: int = 10


PROTOCOLS = {
    "lenet-300-100": Surface(),
    "lenet-5": Surface("lenet-5", train=10_000, rate=0.2),
    "cifar": Surface("cifar", "cifar10-jpeg", rate=0.1, dense_epochs=30),
}
QUICK = Surface("lenet-300-100", "digits", 256, 200, 200, dense_epochs=1, epochs=1)


class SurfaceStudy(Study):
    """The runs of one network."""

    def sweep(self, strength: float, seed: int = 0) -> dict:
        """The row of a strength: for every threshold the fraction of zeros and the validation error in percent."""
        key = {"strength": strength, "seed": seed, "part": "validation"}
        return self.row("default", key, lambda: self.shrink_and_sweep(strength, seed))

    def shrink_and_sweep(self, strength: float, seed: int) -> dict:
        from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer
        from keras_sensprune.formulas.thresholds import threshold_mask

        weights, dense_seconds = self.dense(seed)
        p = self.protocol
        model = self.network(SensitivityRegularizer(strength), weights)
        dense = self.error(model, "validation")
        seconds = self.fit(model, self.sgd(), p.epochs, seed, PruneAtEpochEnd(0.0, Sensitivity()))
        weights, begun = model.get_weights(), time.perf_counter()
        before, sparsities, errors = self.error(model, "validation"), [], []
        for threshold in THRESHOLDS:
            pruned = [w * threshold_mask(w, threshold, w != 0)[0] if w.ndim > 1 else w for w in weights]
            model.set_weights(pruned)
            zeros = [float(np.sum(w == 0)) for w in pruned if w.ndim > 1]
            sparsities.append(round(sum(zeros) / sum(w.size for w in pruned if w.ndim > 1), 6))
            errors.append(self.error(model, "validation"))
        return {
            "dense": dense,
            "before": before,
            "thresholds": list(THRESHOLDS),
            "sparsities": sparsities,
            "errors": errors,
            "dense_seconds": round(dense_seconds, 1),
            "sparse_seconds": round(seconds, 1),
            "sweep_seconds": round(time.perf_counter() - begun, 2),
        }


def main(arguments: list[str] | None = None) -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks[:1] if options.quick else options.networks:
            protocol = QUICK if options.quick else PROTOCOLS[network]
            study = SurfaceStudy("surface", protocol, Path(folder) if options.quick else RESULTS)
            for strength in STRENGTHS[-2:] if options.quick else STRENGTHS:
                study.sweep(strength)


if __name__ == "__main__":
    main()
