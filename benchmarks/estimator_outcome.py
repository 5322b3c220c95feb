"""What each estimator of the sensitivity leads to: error and compression from the same dense network.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/estimator_outcome.py --network lenet-300-100 --seeds 0 1 2

One JSON file per network, seed and estimator. Files that exist are skipped. The exact form is refreshed in every step;
the default as `Sensitivity()` says. Settings are those of the recipes, which were chosen before for the exact form.
"""

import dataclasses
import time

from results import RESULTS, host, series_options, write


def estimators():
    """name -> sensitivity of the sparse phase."""
    from keras_sensprune import Sensitivity

    return {
        "exact": Sensitivity("specific", every=1),
        "default": Sensitivity(),
        "unspecific-sampled": Sensitivity("unspecific"),
        "unspecific-exact": Sensitivity("unspecific", estimator="exact"),
    }


def main() -> None:
    options = series_options(__doc__, "mnist", "--estimators", list(estimators()))
    from keras_sensprune.datasets import load_dataset
    from keras_sensprune.pipeline import default_recipe, run_recipe, train_dense

    for seed in options.seeds:
        files = {
            n: RESULTS / f"outcome-{options.network}-{options.data}-{n}-seed{seed}.json" for n in options.estimators
        }
        if all(path.exists() for path in files.values()):
            continue
        data = load_dataset(options.data, seed=seed)
        recipe = dataclasses.replace(default_recipe(options.network, len(data.x_train)), seed=seed)
        dense = train_dense(recipe, data, print)
        for name in (n for n in options.estimators if not files[n].exists()):
            started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
            _, run = run_recipe(recipe, data, print, dense, estimators()[name])
            spent = dense.seconds + time.perf_counter() - begun
            record = {
                **host(started, spent, seed, run.data),
                "network": options.network,
                "estimator": name,
                "dense_error": run.dense_error,
                "error": run.error,
                "validation_error": run.validation_error,
                "compression": run.report.compression,
                "sparse_seconds": run.sparse_seconds,
            }
            write(files[name], record)
            print(f"{files[name].name}: {run.error:.2f} % at {run.report.compression:.1f}x", flush=True)


if __name__ == "__main__":
    main()
