"""Training and validation data, as `fit` and `evaluate` take them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from keras_sensprune.errors import SensPruneError, argument_error, integer_argument

AS_GIVEN = "as given"
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
        return self._evaluate(model, self.validation)

    def first_look(self, model: Any) -> dict[str, float]:
        """The same, before any training, after a look at the first batch of the training data.

        Raises:
            ArgumentError: if the model cannot be evaluated on the data.
        """
        if isinstance(self.train, tf.data.Dataset):
            batch: Any = tf.data.Dataset.from_tensors(next(iter(self.train)))
        else:
            batch = tree.map_structure(lambda array: array[: self.batch_size], self.train)
        evaluable("data", lambda: self._evaluate(model, batch))
        return evaluable("data" if self.held_back else "validation_data", lambda: self.evaluate(model))

    @property
    def held_back(self) -> bool:
        """Whether the validation data are a part of the training data that were given."""
        return self.validation_text != AS_GIVEN

    def _evaluate(self, model: Any, data: Any) -> dict[str, float]:
        if isinstance(data, tf.data.Dataset):
            return model.evaluate(data, verbose=0, return_dict=True)
        named = dict(zip(("x", "y", "sample_weight"), data, strict=False))
        return model.evaluate(**named, batch_size=self.batch_size, verbose=0, return_dict=True)


def evaluable(name: str, evaluate: Callable[[], Any]) -> Any:
    """What an evaluation gives, with one clear error for all that Keras and TensorFlow raise where data do not fit.

    Args:
        name: of the argument that holds the data.
        evaluate: the evaluation.

    Raises:
        ArgumentError: if the model cannot be evaluated on the data.
    """
    try:
        return evaluate()
    except SensPruneError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise argument_error(name, "data on which the model can be evaluated", text) from error


def digest(arrays: Iterable[np.ndarray]) -> str:
    """The beginning of the SHA-256 digest of shapes, types and values."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype}".encode())
        values = np.array(array, dtype=str) if array.dtype.hasobject else array
        found.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


def make_feed(data: Any, validation_data: Any, batch_size: int, say: Callable[[str], None] | None = None) -> Feed:
    """Checks the data, and holds the last tenth of the examples back if there are no validation data.

    Args:
        data: arrays (x, y) or (x, y, sample_weight), or a finite `tf.data.Dataset` of batches.
        validation_data: the same, or None for arrays.
        batch_size: of arrays, in training and validation.
        say: is told when batches are counted, which an endless dataset never lets end; or None.

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
        train = _counted("data", data, say)
        validation = _checked("validation_data", validation_data, say)
        return Feed(train, validation, batch_size, int(train.cardinality()), AS_GIVEN)
    train, text = _checked("data", data, say), AS_GIVEN
    examples = _examples(train)
    if validation_data is None:
        held = examples // 10
        if not held:
            remedy = "Or pass `validation_data`."
            raise argument_error("data", "at least 10 examples, the last tenth for validation", examples, remedy)
        validation_data = tree.map_structure(lambda array: array[examples - held :], train)
        train = tree.map_structure(lambda array: array[: examples - held], train)
        text = f"the last {held:,} of {examples:,} training examples"
    steps = -(-_examples(train) // batch_size)
    return Feed(train, _checked("validation_data", validation_data, say), batch_size, steps, text)


def _checked(name: str, data: Any, say: Callable[[str], None] | None) -> Any:
    """The data as a tuple of NumPy arrays, or the dataset."""
    if isinstance(data, tf.data.Dataset):
        return _counted(name, data, say)
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        raise argument_error(name, f"{_ARRAYS}, or a tf.data.Dataset", data)
    if len(data) == 3 and data[2] is None:
        data = data[:2]  # no sample weights
    arrays = tuple(tree.map_structure(np.asarray, part) for part in data)
    lengths = {len(array) if array.ndim else 0 for array in tree.flatten(arrays)}
    if len(lengths) != 1 or 0 in lengths:
        raise argument_error(name, _ARRAYS, [array.shape for array in tree.flatten(arrays)])
    return arrays


def _examples(arrays: Any) -> int:
    return len(tree.flatten(arrays)[0])


def _counted(name: str, dataset: Any, say: Callable[[str], None] | None) -> Any:
    """A dataset that knows how many batches it has; where it does not, they are counted."""
    count = int(dataset.cardinality())
    if count == tf.data.UNKNOWN_CARDINALITY:
        if say is not None:
            say(f"counting the batches of `{name}`, whose number is not known")
        count = sum(1 for _ in dataset)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
    if count == tf.data.INFINITE_CARDINALITY or count == 0:
        raise argument_error(name, "a finite dataset with at least one batch", dataset, "Use dataset.take(batches).")
    return dataset
