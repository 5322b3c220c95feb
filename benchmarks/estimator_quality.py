"""How near each estimator of the sensitivity comes to the exact one, on a trained LeNet-300-100.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/estimator_quality.py

The reference is the exact sensitivity of the unspecific form, the mean over many batches. Each estimator runs as in
training, with its running mean, several times on other batches; its results are compared with the reference per weight
tensor, and with each other. One JSON file.
"""

import argparse
import time

from results import RESULTS, host, write

BATCH, REFERENCE, REPEATS = 128, 200, 8
KEEP = (0.10, 0.05, 0.01)


def estimators():
    """name -> (configuration, how many refreshes)."""
    from keras_sensprune import Sensitivity

    def unspecific(estimator, samples=1, **more):
        return Sensitivity("unspecific", estimator=estimator, samples=samples, **more)

    return {
        "exact, one batch": (unspecific("exact"), 1),
        "exact, 40 refreshes": (unspecific("exact"), 40),
        "sampled, 1 output, 40 refreshes": (unspecific("sampled"), 40),
        "sampled, 2 outputs, 40 refreshes": (unspecific("sampled", 2), 40),
        "sampled, 1 output, 10 refreshes": (unspecific("sampled"), 10),
        "sampled, 1 output, one batch": (unspecific("sampled"), 1),
        "projected, 1 sum, 40 refreshes": (unspecific("projected"), 40),
        "projected, 2 sums, 40 refreshes": (unspecific("projected", 2), 40),
        "mean of absolute values, one batch": (unspecific("exact", reduction="mean_of_abs"), 1),
        "specific, one batch": (Sensitivity("specific"), 1),
        "gradient of the loss, one batch": (Sensitivity("loss"), 1),
    }


def estimator(model, config):
    """(x, y, means, refresh) -> means after one more refresh, compiled."""
    import tensorflow as tf

    from keras_sensprune.formulas.sensitivity import running_mean
    from keras_sensprune.training.batch import forward_terms
    from keras_sensprune.training.gradients import SensitivityTape
    from keras_sensprune.training.targets import prunable_weights

    targets = prunable_weights(model)

    @tf.function
    def refresh(x, y, means, number):
        with SensitivityTape(model, targets, config.reduction) as tape:
            outputs = forward_terms(model, x, y, None, config)
        found = tape.sensitivities(outputs, number)[0]
        return [running_mean(mean, new, config.momentum, number) for mean, new in zip(means, found, strict=True)]

    return refresh


def run(model, config, data, refreshes, rng):
    """Sensitivities after some refreshes on random batches."""
    import numpy as np
    import tensorflow as tf

    refresh = estimator(model, config)
    means = [tf.zeros(v.shape) for v in model.trainable_variables if v.regularizer is not None]
    for number in range(refreshes):
        chosen = rng.integers(0, len(data.x_train), BATCH)
        y = tf.constant(np.eye(10, dtype="float32")[data.y_train[chosen]])
        means = refresh(tf.constant(data.x_train[chosen]), y, means, tf.constant(number, tf.int64))
    return [np.asarray(mean).ravel() for mean in means]


def compare(found, reference):
    """Rank correlation, bias and overlaps of the weights kept, of one tensor; `found`: one row per repeat."""
    import numpy as np
    from scipy.stats import spearmanr

    ranks = [spearmanr(row, reference).statistic for row in found]
    kept = {}
    for share in KEEP:
        count = round(share * len(reference))
        best = set(np.argsort(-reference, kind="stable")[:count])
        overlap = [len(best & set(np.argsort(-row, kind="stable")[:count])) / count for row in found]
        kept[f"kept at {1 - share:.0%}"] = round(float(np.mean(overlap)), 4)
    mean, alive = found.mean(axis=0), reference > 0
    return {
        "rank correlation": round(float(np.mean(ranks)), 4),
        "bias": round(float(mean.sum() / reference.sum() - 1), 4),
        "relative deviation": round(float(np.median(found.std(axis=0)[alive] / np.maximum(mean[alive], 1e-30))), 4),
        **kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    path = RESULTS / "estimator-quality-lenet-300-100.json"
    if path.exists():
        return
    import dataclasses

    import numpy as np

    from keras_sensprune import Sensitivity, SensitivityRegularizer
    from keras_sensprune.datasets import load_dataset
    from keras_sensprune.pipeline import default_recipe, train_dense

    started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    data = load_dataset("mnist", seed=0)
    recipe = dataclasses.replace(default_recipe("lenet-300-100", len(data.x_train)), dense_epochs=5)
    model = train_dense(recipe, data, print).model_copy(recipe)
    model.compile(loss=_loss())
    assert isinstance(model.trainable_variables[0].regularizer, SensitivityRegularizer)
    rng = np.random.default_rng(0)
    exact = Sensitivity("unspecific", estimator="exact", momentum=1 - 1e-9)  # almost 1: the plain mean
    reference = run(model, exact, data, REFERENCE, rng)
    names = [v.path for v in model.trainable_variables if v.regularizer is not None]
    rows = {}
    for name, (config, refreshes) in estimators().items():
        found = [run(model, config, data, refreshes, rng) for _ in range(REPEATS)]
        rows[name] = {
            label: compare(np.stack([repeat[i] for repeat in found]), reference[i]) for i, label in enumerate(names)
        }
        print(name, rows[name][names[0]], flush=True)
    record = {**host(started, time.perf_counter() - begun, 0, data.name), "batch": BATCH, "repeats": REPEATS}
    write(path, {**record, "reference batches": REFERENCE, "estimators": rows})


def _loss():
    import keras

    return keras.losses.CategoricalCrossentropy(from_logits=True)


if __name__ == "__main__":
    main()
