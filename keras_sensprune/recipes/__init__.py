"""Recipes of `sensprune train`: JSON files, those that the package ships and those of users -> `SparsifyRecipe`."""

from __future__ import annotations

import dataclasses
import json
import os
from importlib import resources
from typing import Any

from keras_sensprune.errors import ArgumentError, DataError, argument_error
from keras_sensprune.networks import input_shape
from keras_sensprune.records import Budget, SparsifyRecipe

LARGEST = 2**20  # bytes of a file; a recipe has some hundred


def recipe_names() -> tuple[str, ...]:
    """The recipes that the package ships."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def load_recipe(source: str | os.PathLike[str]) -> SparsifyRecipe:
    """Reads a recipe, and checks every key and value of it.

    Args:
        source: the name of a recipe that the package ships, or the path of a file that ends in .json. Its keys are the
            fields of `SparsifyRecipe`; `network` and `budget` must be there, and `budget` has the keys of `Budget`.

    Returns:
        The recipe.

    Raises:
        ArgumentError: if there is no recipe of this name.
        DataError: if the file cannot be read, has a key that is unknown or missing, or a value that is not allowed.

    Example:
        >>> from keras_sensprune.recipes import load_recipe
        >>> load_recipe("lenet-300-100").budget.minutes
        10.0
    """
    name = os.fspath(source)
    if name.endswith(".json"):
        text = _text(name)
    elif name in recipe_names():
        text = (resources.files(__name__) / f"{name}.json").read_text(encoding="utf-8")
    else:
        known = ", ".join(map(repr, recipe_names()))
        raise argument_error("recipe", f"the path of a file that ends in .json, or one of {known}", name)
    try:
        return _recipe(json.loads(text))
    except (DataError, ArgumentError) as error:
        raise DataError(f"{name}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: it cannot be read as JSON ({str(error)[:120]}).") from None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name with a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: it cannot be read ({reason}).") from None
    if len(text) > LARGEST:
        raise DataError(f"{path}: it is larger than the allowed {LARGEST:,} bytes.")
    return text


def _recipe(content: Any) -> SparsifyRecipe:
    fields = _fields("The recipe", content, SparsifyRecipe)
    fields["budget"] = Budget(**_fields("`budget`", fields["budget"], Budget))
    recipe = SparsifyRecipe(**fields)
    input_shape(recipe.network)  # refuses a name that is unknown
    return recipe


def _fields(what: str, content: Any, kind: type) -> dict[str, Any]:
    """The content as arguments of a record.

    Raises:
        DataError: naming the first key that is unknown or missing, and the allowed ones.
    """
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(kind)}  # name -> needed
    allowed = f"Allowed are {', '.join(fields)}."
    if not isinstance(content, dict):
        raise DataError(f"{what} must be an object with keys. {allowed}")
    for key in content:
        if key not in fields:
            raise DataError(f"{what} has the unknown key {key[:120]!r}. {allowed}")
    for key, needed in fields.items():
        if needed and key not in content:
            raise DataError(f"{what} lacks the key {key!r}. {allowed}")
    return dict(content)
