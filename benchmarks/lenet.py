"""LeNet-300-100 and LeNet-5: sensitivity and L2 from the same dense network, one JSON file per run.

The rule is the paper's, a new sensitivity in every step; estimator_outcome.py compares that with the default.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/lenet.py --network lenet-300-100 --data mnist --seeds 0 1 2

Runs whose file exists are skipped, so an interrupted series continues where it stopped.
"""

import dataclasses
import time

from results import RESULTS, host, series_options, write


def main() -> None:
    options = series_options(__doc__, "digits", "--rules", ["sensitivity", "l2"])
    from keras_sensprune import Sensitivity
    from keras_sensprune.datasets import load_dataset
    from keras_sensprune.pipeline import default_recipe, run_recipe, train_dense
    from keras_sensprune.records import to_dict

    for seed in options.seeds:
        files = {rule: RESULTS / f"{options.network}-{options.data}-{rule}-seed{seed}.json" for rule in options.rules}
        missing = [rule for rule, path in files.items() if not path.exists()]
        if not missing:
            continue
        data = load_dataset(options.data, seed=seed)
        recipe = dataclasses.replace(default_recipe(options.network, len(data.x_train)), seed=seed)
        dense = train_dense(recipe, data, print)
        for rule in missing:
            started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
            every_step = Sensitivity("auto" if rule == "sensitivity" else "none", every=1)
            _, run = run_recipe(dataclasses.replace(recipe, rule=rule), data, print, dense, every_step)
            write(
                files[rule],
                {
                    **host(started, dense.seconds + time.perf_counter() - begun, seed, run.data),
                    "run": to_dict(run),
                },
            )
            print(f"{files[rule].name}: {run.error:.2f} % at {run.report.compression:.1f}x", flush=True)


if __name__ == "__main__":
    main()
