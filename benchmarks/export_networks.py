"""The networks of `export_gain.py` that need training, saved as `.keras` files: run this first.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/export_networks.py --models folder

LeNet-300-100 and LeNet-5, dense and pruned by the recipe of the demo for full MNIST, seed 0; beside each pair a JSON
file with the record of the run. Networks whose files exist are skipped, so an interrupted series continues.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=Path, required=True, help="folder for the .keras files (not in the repository)"
    )
    parser.add_argument("--networks", nargs="+", default=["lenet-300-100", "lenet-5"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="threads of TensorFlow; 0 means its own choice")
    options = parser.parse_args()

    import dataclasses

    import tensorflow as tf

    if options.threads:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    from keras_sensprune.datasets import load_dataset
    from keras_sensprune.pipeline import default_recipe, run_recipe, train_dense
    from keras_sensprune.records import to_dict

    options.models.mkdir(parents=True, exist_ok=True)
    for network in options.networks:
        record = options.models / f"{network}.json"
        if record.exists():
            continue
        data = load_dataset("mnist", seed=options.seed)
        recipe = dataclasses.replace(default_recipe(network, len(data.x_train)), seed=options.seed)
        dense = train_dense(recipe, data, print)
        dense.model_copy(recipe).save(options.models / f"{network}-dense.keras")
        model, run = run_recipe(recipe, data, print, dense)
        model.save(options.models / f"{network}-pruned.keras")
        record.write_text(json.dumps(to_dict(run), indent=1) + "\n")
        print(f"{network}: {run.error:.2f} % at {run.report.compression:.1f}x", flush=True)


if __name__ == "__main__":
    main()
