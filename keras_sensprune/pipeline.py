"""The story on one page: load -> train -> sparsify -> fine-tune -> export -> report."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_sensprune.census import sparsity_report
from keras_sensprune.datasets import Dataset, load_dataset, one_hot
from keras_sensprune.errors import argument_error
from keras_sensprune.export.tflite import export_tflite
from keras_sensprune.formulas.counting import magnitude_histogram
from keras_sensprune.formulas.sensitivity import Sensitivity
from keras_sensprune.networks import build_network, compile_network
from keras_sensprune.records import HISTOGRAM_EDGES, DemoRecord, Recipe, RunRecord, to_json
from keras_sensprune.reports.figure import check_matplotlib
from keras_sensprune.reports.plot import plot_input_pixels, plot_report
from keras_sensprune.reports.summary import demo_text
from keras_sensprune.reports.table import report_text
from keras_sensprune.results_folder import prepare_folder, publish
from keras_sensprune.training.batch import weight_sensitivities
from keras_sensprune.training.callback import PruneAtEpochEnd
from keras_sensprune.training.regularizer import SensitivityRegularizer
from keras_sensprune.training.targets import add_regularizer

Say = Callable[[str], None]

# Chosen on validation data; docs/results.md says how. Digits: 3,500 training images, so steps are few and the
# strength per step is larger.
_LENET_300 = Recipe(
    dense_epochs=20,
    sparse_epochs=40,
    fine_epochs=20,
    learning_rate=0.4,
    strength=2.5e-4,
    threshold=0.06,
    label_smoothing=0.1,
)
_LENET_5 = Recipe(
    "lenet-5",
    dense_epochs=8,
    sparse_epochs=10,
    fine_epochs=10,
    learning_rate=0.2,
    strength=3e-4,
    threshold=0.04,
    label_smoothing=0.1,
)
RECIPES: dict[tuple[str, str], Recipe] = {
    ("lenet-300-100", "mnist"): _LENET_300,
    ("lenet-300-100", "digits"): dataclasses.replace(
        _LENET_300, dense_epochs=40, sparse_epochs=60, fine_epochs=30, strength=4e-4, threshold=0.05
    ),
    ("lenet-5", "mnist"): _LENET_5,
    ("lenet-5", "digits"): dataclasses.replace(_LENET_5, dense_epochs=20, sparse_epochs=30, strength=2e-3),
}
OUTPUTS = ("model.keras", "model.tflite", "report.json", "report.png", "pixels.png")


def default_recipe(network: str, examples: int) -> Recipe:
    """The recipe for a network on a small (up to 10,000 training examples) or a large data set."""
    return RECIPES[network, "digits" if examples <= 10_000 else "mnist"]


def run_recipe(
    recipe: Recipe,
    data: Dataset,
    say: Say,
    dense: DensePhase | None = None,
    sensitivity: Sensitivity | None = None,
) -> tuple[Any, RunRecord]:
    """Trains dense, sparsifies, fine-tunes with the zeros kept.

    Args:
        recipe: the settings.
        data: the data set; the test part is evaluated twice: dense and final.
        say: receives progress lines.
        dense: a dense phase that has been run already, shared by runs that are compared.
        sensitivity: of the sparse phase; None means the default one, or S = 0 where the recipe's rule is `"l2"`.

    Returns:
        The Keras model and the record.
    """
    import keras

    start = dense or train_dense(recipe, data, say)
    keras.utils.set_random_seed(recipe.seed)  # both rules see the same batches, whichever runs first
    model = start.model_copy(recipe)
    steps = -(-len(data.x_train) // recipe.batch_size)
    sensitivity = sensitivity or Sensitivity("auto" if recipe.rule == "sensitivity" else "none")
    prune = PruneAtEpochEnd(recipe.threshold, sensitivity)
    phase = f"sparsify ({recipe.rule})"
    history = _fit(model, recipe, data, recipe.sparse_epochs, recipe.learning_rate, phase, say, prune)
    epochs = zip(history["val_error"], history["compression"], strict=True)
    add_regularizer(model, SensitivityRegularizer(0.0))  # no more shrinkage; the callback keeps the zeros
    schedule = _cosine(recipe.learning_rate, recipe.fine_epochs * steps)
    keep = PruneAtEpochEnd(0.0, Sensitivity("none"))
    fine = _fit(model, recipe, data, recipe.fine_epochs, schedule, "fine-tune", say, keep)
    record = RunRecord(
        recipe=recipe,
        data=f"{data.name}: {len(data.x_train)} train, {len(data.x_validation)} validation, {len(data.x_test)} test",
        dense_validation_error=start.validation_error,
        dense_error=start.error,
        validation_error=_error(model, data.x_validation, data.y_validation),
        error=_error(model, data.x_test, data.y_test),
        report=sparsity_report(model),
        epochs=tuple((float(e), float(c)) for e, c in epochs),
        dense_seconds=start.seconds,
        sparse_seconds=history["seconds"],
        fine_seconds=fine["seconds"],
        sensitivities=start.sensitivities,
        pixels=_pixels(model),
    )
    return model, record


@dataclasses.dataclass(frozen=True)
class DensePhase:
    """A trained dense network, from which several runs can start."""

    weights: list[Any]
    validation_error: float
    error: float
    seconds: float
    sensitivities: tuple[tuple[int, ...], ...]

    def model_copy(self, recipe: Recipe) -> Any:
        """A fresh model with these weights and the recipe's regularizer."""
        model = build_network(recipe.network, SensitivityRegularizer(recipe.strength))
        model.set_weights(self.weights)
        return model


def train_dense(recipe: Recipe, data: Dataset, say: Say) -> DensePhase:
    """Trains the network without regularization, by SGD with a learning rate that falls along a half cosine."""
    import keras

    keras.utils.set_random_seed(recipe.seed)
    model = build_network(recipe.network)
    steps = -(-len(data.x_train) // recipe.batch_size)
    schedule = _cosine(recipe.learning_rate, recipe.dense_epochs * steps)
    history = _fit(model, recipe, data, recipe.dense_epochs, schedule, "dense", say)
    add_regularizer(model, SensitivityRegularizer(0.0))
    found = weight_sensitivities(model, data.x_validation, one_hot(data.y_validation))
    return DensePhase(
        weights=model.get_weights(),
        validation_error=_error(model, data.x_validation, data.y_validation),
        error=_error(model, data.x_test, data.y_test),
        seconds=history["seconds"],
        sensitivities=tuple(magnitude_histogram(s, HISTOGRAM_EDGES) for s in found),
    )


def _fit(
    model: Any,
    recipe: Recipe,
    data: Dataset,
    epochs: int,
    learning_rate: Any,
    phase: str,
    say: Say,
    prune: PruneAtEpochEnd | None = None,
) -> dict[str, Any]:
    """One phase, with the pruning callback if there is one."""
    import keras

    compile_network(model, learning_rate, recipe.label_smoothing)
    callbacks: list[Any] = [] if prune is None else [prune]
    begun = time.perf_counter()

    def progress(epoch: int, logs: dict[str, float]) -> None:
        if epoch + 1 == epochs or (epoch + 1) % max(1, epochs // 5) == 0:
            left = f", {logs['compression']:.1f}x smaller" if "compression" in logs else ""
            error = 100 * (1 - logs["val_accuracy"])
            spent = time.perf_counter() - begun
            say(f"{phase}: epoch {epoch + 1}/{epochs}, validation error {error:.2f} %{left}, {spent:.0f} s")

    callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=progress))
    history = model.fit(
        data.x_train,
        one_hot(data.y_train),
        batch_size=recipe.batch_size,
        epochs=epochs,
        validation_data=(data.x_validation, one_hot(data.y_validation)),
        validation_batch_size=1000,
        verbose=0,
        callbacks=callbacks,
    ).history
    val_error = [100 * (1 - accuracy) for accuracy in history["val_accuracy"]]
    return {**history, "val_error": val_error, "seconds": time.perf_counter() - begun}


def _cosine(learning_rate: float, steps: int) -> Any:
    import keras

    return keras.optimizers.schedules.CosineDecay(learning_rate, steps, alpha=0.01)


def _error(model: Any, x: Any, y: Any) -> float:
    """Percent of wrong answers."""
    accuracy = model.evaluate(x, one_hot(y), batch_size=1000, verbose=0, return_dict=True)["accuracy"]
    return round(100.0 * (1.0 - accuracy), 4)


def _pixels(model: Any) -> tuple[tuple[int, ...], ...]:
    """Nonzero weights of the first layer per input pixel, where that is a dense layer on the image."""
    first = next(layer for layer in model.layers if layer.weights)
    kernel = first.get_weights()[0]
    if kernel.ndim != 2 or kernel.shape[0] != 28 * 28:
        return ()
    counts = np.count_nonzero(kernel, axis=1).reshape(28, 28)
    return tuple(tuple(int(n) for n in row) for row in counts)


def demo(
    network: str, source: str, output: str, *, seed: int = 0, quick: bool = False, overwrite: bool = False, say: Say
) -> DemoRecord:
    """Trains, prunes and exports a network, with L2 + threshold beside it, and writes all results into a folder.

    Args:
        network: `"lenet-300-100"` or `"lenet-5"`.
        source: `"digits"`, `"mnist"` or the path of an .npz file with Keras's MNIST keys.
        output: folder for the results; it is made if it does not exist.
        seed: of everything random.
        quick: one epoch per phase, to see that everything works.
        overwrite: whether results that exist may be replaced.
        say: receives progress lines.

    Returns:
        The record that was written to `report.json`.

    Raises:
        ArgumentError, DataError, MissingPackageError: before any training.
        ExportError: if the exported file cannot be made or does not agree. Results appear in the folder only when
            all of them are finished, so nothing is overwritten before.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise argument_error("seed", "an integer from 0 to 4294967295", seed)
    check_matplotlib()
    prepare_folder(output, overwrite, OUTPUTS)
    data = load_dataset(source, seed=seed)
    recipe = dataclasses.replace(default_recipe(network, len(data.x_train)), seed=seed)
    if quick:
        recipe = dataclasses.replace(recipe, dense_epochs=1, sparse_epochs=1, fine_epochs=1)
    dense = train_dense(recipe, data, say)
    model, run = run_recipe(recipe, data, say, dense)
    _, control = run_recipe(dataclasses.replace(recipe, rule="l2"), data, say, dense)
    with tempfile.TemporaryDirectory(dir=output, prefix=".unfinished-") as folder:
        place = {name: os.path.join(folder, name) for name in OUTPUTS}
        model.save(place["model.keras"])
        export = export_tflite(model, place["model.tflite"], data=data.x_test[:256])
        export = dataclasses.replace(export, path=os.path.join(output, "model.tflite"))
        record = DemoRecord(run, control, export)
        with open(place["report.json"], "w", encoding="utf-8") as file:
            file.write(to_json(record) + "\n")
        plot_report(run.report, place["report.png"])
        if run.pixels:
            plot_input_pixels(run.pixels, place["pixels.png"])
        written = publish(folder, output, OUTPUTS)
    say("\n" + report_text(run.report) + "\n\n" + demo_text(record))
    say(f"\nWritten to {output}: {', '.join(written)}")
    return record
