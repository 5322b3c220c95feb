"""Without pruning: does a sensitivity generalize better than weight decay?

    KERAS_SENSPRUNE_DATA=folder python benchmarks/generalize.py --network lenet-300-100 --threads 1

Networks are trained from nothing with a penalty, coupled into the loss so that it falls with the learning rate, and
nothing is pruned. The strength of a rule is chosen with the first seed by the validation error: half decades, further
as long as the best one has a neighbor that was not tried. The test part is evaluated with what was chosen. One file per
rule, rewritten after every run; rows that are there are not run again.
"""

import dataclasses
import tempfile
from pathlib import Path

from results import RESULTS
from study import Protocol, Study, best_half_decade, study_parser, use_threads

# rule -> arguments of `Sensitivity`, and where the search for the strength begins
RULES = {
    "none": ({"kind": "none"}, 0.0),
    "l2": ({"kind": "none"}, 1e-3),
    "raw": ({"kind": "specific"}, 1e-3),
    "relevance": ({"kind": "specific", "scale": "relevance"}, 1e-3),
}


@dataclasses.dataclass(frozen=True)
class Unpruned(Protocol):
    """Few images and no label smoothing, so that there is something to gain."""

    train: int = 10_000
    rate: float = 0.2
    label_smoothing: float = 0.0
    epochs: int = 30
    tried: int = 5


PROTOCOLS = {"lenet-300-100": Unpruned(), "lenet-5": Unpruned("lenet-5", epochs=15)}
QUICK = Unpruned("lenet-300-100", "digits", 256, 200, 200, epochs=1, tried=1)


class GeneralizationStudy(Study):
    """Training with each rule, without pruning."""

    def trained(self, rule: str, strength: float, seed: int, part: str) -> dict:
        """The row of a run: error in percent and cross-entropy in nats on training, validation and another part."""
        key = {"strength": strength, "seed": seed, "part": part}
        return self.row(rule, key, lambda: self.train(rule, strength, seed, part))

    def train(self, rule: str, strength: float, seed: int, part: str) -> dict:
        from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer

        p = self.protocol
        model = self.network(SensitivityRegularizer(strength, decoupled=False), seed=seed)
        never = PruneAtEpochEnd(0.0, Sensitivity(**RULES[rule][0]))
        self.fit(model, self.sgd(p.epochs), p.epochs, seed, never)
        found = {}
        for name in dict.fromkeys(("train", "validation", part)):
            found[f"{name}_error"], found[f"{name}_loss"] = self.measure(model, name)
        return found

    def run(self, rules, seeds) -> None:
        """Strengths with the first seed, then all rules seed by seed."""
        chosen = {}
        for rule in rules:
            begin = RULES[rule][1]

            def error(strength, rule=rule):
                return self.trained(rule, strength, seeds[0], "validation")["validation_error"]

            chosen[rule] = best_half_decade(begin, error, self.protocol.tried) if begin else 0.0
        for seed in seeds:
            for rule in rules:
                self.trained(rule, chosen[rule], seed, "test")


def main(arguments: list[str] | None = None) -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--network", default="lenet-300-100", choices=list(PROTOCOLS))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        protocol = QUICK if options.quick else PROTOCOLS[options.network]
        study = GeneralizationStudy("generalize", protocol, Path(folder) if options.quick else RESULTS)
        study.run(options.rules, options.seeds)


if __name__ == "__main__":
    main()
