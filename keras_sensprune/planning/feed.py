"""Training and validation data, as `fit` and `evaluate` take them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from keras_sensprune.errors import argument_error, integer_argument

_ARRAYS = "(x, y) or (x, y, sample_weight), arrays with the same number of examples"


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """Data of one run.

    Attributes:
        train: arrays (x, y) or (x, y, sample_weight), or a `tf.data.Dataset` of batches.
        validation: the same.
        batch_size: of arrays; None for datasets.
        steps: batches per epoch.
        validation_text: which examples the validation data are.
    """

    train: Any
    validation: Any
    batch_size: int | None
    steps: int
    validation_text: str

    def digest(self) -> str:
        """Of all arrays; of a dataset nothing can be told."""
        parts = [part for part in (self.train, self.validation) if not isinstance(part, tf.data.Dataset)]
        return digest(tree.flatten(parts))

    def fit(self, model: Any, **options: Any) -> None:
        """`model.fit` on the data, silent."""
        arrays = not isinstance(self.train, tf.data.Dataset)
        names = ("x", "y", "sample_weight")
        data = dict(zip(names, self.train, strict=False)) if arrays else {"x": self.train}
        sizes = {"batch_size": self.batch_size} if arrays else {"shuffle": False}  # of a dataset Keras takes neither
        model.fit(**data, **sizes, validation_data=self.validation, verbose=0, **options)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Loss and metrics on the validation data, by name."""
        if isinstance(self.validation, tf.data.Dataset):
            return model.evaluate(self.validation, verbose=0, return_dict=True)
        data = dict(zip(("x", "y", "sample_weight"), self.validation, strict=False))
        return model.evaluate(**data, batch_size=self.batch_size, verbose=0, return_dict=True)


def digest(arrays: Iterable[np.ndarray]) -> str:
    """The beginning of the SHA-256 digest of shapes, types and values."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype}".encode())
        values = np.array(array, dtype=str) if array.dtype.hasobject else array
        found.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


def make_feed(data: Any, validation_data: Any, batch_size: int) -> Feed:
    """Checks the data, and holds the last tenth of the examples back if there are no validation data.

    Args:
        data: arrays (x, y) or (x, y, sample_weight), or a finite `tf.data.Dataset` of batches.
        validation_data: the same, or None for arrays.
        batch_size: of arrays, in training and validation.

    Returns:
        A `Feed`.

    Raises:
        ArgumentError: if something is no such data, or validation data are needed and missing.
    """
    integer_argument("batch_size", batch_size, 1)
    if isinstance(data, tf.data.Dataset):
        if validation_data is None:
            raise argument_error(
                "validation_data", "given where `data` is a tf.data.Dataset", None, "Its end cannot be held back."
            )
        return Feed(data, _checked("validation_data", validation_data), batch_size, _steps(data), "as given")
    train, text = _checked("data", data), "as given"
    examples = _examples(train)
    if validation_data is None:
        held = examples // 10
        if not held:
            remedy = "Or pass `validation_data`."
            raise argument_error("data", "at least 10 examples, the last tenth for validation", examples, remedy)
        validation_data = tree.map_structure(lambda array: array[examples - held :], train)
        train = tree.map_structure(lambda array: array[: examples - held], train)
        text = f"the last {held:,} of {examples:,} training examples"
    return Feed(
        train, _checked("validation_data", validation_data), batch_size, -(-_examples(train) // batch_size), text
    )


def _checked(name: str, data: Any) -> Any:
    """The data as a tuple of NumPy arrays, or the dataset itself."""
    if isinstance(data, tf.data.Dataset):
        _steps(data, name)
        return data
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        raise argument_error(name, f"{_ARRAYS}, or a tf.data.Dataset", data)
    arrays = tuple(tree.map_structure(np.asarray, part) for part in data)
    lengths = {len(array) if array.ndim else 0 for array in tree.flatten(arrays)}
    if len(lengths) != 1 or 0 in lengths:
        raise argument_error(name, _ARRAYS, [array.shape for array in tree.flatten(arrays)])
    return arrays


def _examples(arrays: Any) -> int:
    return len(tree.flatten(arrays)[0])


def _steps(dataset: Any, name: str = "data") -> int:
    """Batches of a dataset; where it does not know, they are counted."""
    count = int(dataset.cardinality())
    if count == tf.data.INFINITE_CARDINALITY or count == 0:
        raise argument_error(name, "a finite dataset with at least one batch", dataset, "Use dataset.take(batches).")
    return count if count > 0 else sum(1 for _ in dataset)
