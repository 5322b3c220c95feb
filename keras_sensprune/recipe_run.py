"""A recipe from its file to the results: load -> sparsify -> test -> export -> report."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from keras_sensprune.archive import replacing
from keras_sensprune.census import sparsity_report
from keras_sensprune.datasets import Dataset, load_dataset, one_hot
from keras_sensprune.errors import DataError
from keras_sensprune.export.tflite import export_tflite
from keras_sensprune.networks import build_network, compile_network, input_shape
from keras_sensprune.planning.progress import FILE
from keras_sensprune.planning.sparsify import sparsify
from keras_sensprune.recipes import load_recipe
from keras_sensprune.records import SparsifyRecipe, SparsifyRecord, TrainRecord, to_json
from keras_sensprune.results_folder import prepare_folder, publish

OUTPUTS = ("model.keras", "model.tflite", "report.json")
PROGRESS = ".progress"  # in the output folder, until the results are there


def train_recipe(
    recipe: str, source: str, output: str, *, overwrite: bool = False, say: Callable[[str], None]
) -> TrainRecord:
    """Trains a sparse network by a recipe, and writes all results into a folder.

    A run that was killed goes on from its last phase when it is called again with the same arguments.

    Args:
        recipe: name or file of a recipe, see `load_recipe`.
        source: of the data, see `load_dataset`.
        output: folder for the results; it is made if it does not exist.
        overwrite: whether results that exist may be replaced.
        say: receives progress lines.

    Returns:
        The record that was written to `report.json`.

    Raises:
        ArgumentError, DataError: before any training, if the recipe, the data or the folder cannot be used.
        ExportError: if the exported file cannot be made or does not agree. Results appear in the folder only when all
            of them are finished.
    """
    settings = load_recipe(recipe)
    prepare_folder(output, overwrite, OUTPUTS)
    data = load_dataset(source, seed=settings.seed, shape=input_shape(settings.network))
    progress = os.path.join(output, PROGRESS)
    _keep_recipe(progress, settings)
    model, result = sparsify_network(settings, data, folder=progress, size_of=_size_of(settings), say=say)
    found = model.evaluate(data.x_test, one_hot(data.y_test), batch_size=1000, verbose=0, return_dict=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".unfinished-") as folder:
        place = {name: os.path.join(folder, name) for name in OUTPUTS}
        model.save(place["model.keras"])
        export = export_tflite(model, place["model.tflite"], data=data.x_test[:256])
        record = TrainRecord(
            settings,
            f"{data.name}: {len(data.x_train)} train, {len(data.x_validation)} validation, {len(data.x_test)} test",
            result,
            round(100.0 * (1.0 - found["accuracy"]), 4),
            sparsity_report(model),
            dataclasses.replace(export, path=os.path.join(output, "model.tflite")),
        )
        with open(place["report.json"], "w", encoding="utf-8") as file:
            file.write(to_json(record) + "\n")
        publish(folder, output, OUTPUTS)
    shutil.rmtree(progress)
    return record


def _keep_recipe(folder: str, recipe: SparsifyRecipe) -> None:
    """Puts the recipe beside the progress, and refuses to go on with the progress of another one."""
    path = os.path.join(folder, "recipe.json")
    if os.path.exists(path) and os.path.exists(os.path.join(folder, FILE)):  # else nothing was trained by it
        with open(path, encoding="utf-8", errors="replace") as file:
            if file.read() != to_json(recipe):
                raise DataError(
                    f"{folder} has the progress of another recipe, which is in {path}. Train by that one again, choose "
                    "another `--output`, or delete the folder to begin anew."
                )
        return
    os.makedirs(folder, exist_ok=True)
    with replacing(path, "w", "utf-8") as file:
        file.write(to_json(recipe))


def _size_of(recipe: SparsifyRecipe) -> Callable[[Any], int] | None:
    """Bytes of the exported file, where the recipe limits them."""

    def exported(model: Any) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return export_tflite(model, os.path.join(folder, "model.tflite"), runtimes=("litert",)).bytes

    return None if recipe.budget.bytes is None else exported


def sparsify_network(recipe: SparsifyRecipe, data: Dataset, **options: Any) -> tuple[Any, SparsifyRecord]:
    """The network of a recipe, made sparse on the training and validation part of a data set.

    Args:
        recipe: the settings.
        data: the test part is not touched.
        **options: further ones of `sparsify`.

    Returns:
        The model and the record.
    """
    import keras

    keras.utils.set_random_seed(recipe.seed)
    model = build_network(recipe.network)
    compile_network(model, recipe.learning_rate, recipe.label_smoothing)
    result = sparsify(
        model,
        (data.x_train, one_hot(data.y_train)),
        recipe.budget,
        (data.x_validation, one_hot(data.y_validation)),
        dense_epochs=recipe.dense_epochs,
        round_epochs=recipe.round_epochs,
        fine_epochs=recipe.fine_epochs,
        batch_size=recipe.batch_size,
        **options,
    )
    return model, result
