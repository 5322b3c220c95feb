"""Training data whose order is the same in a run that was stopped and in one that was not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_sensprune.errors import argument_error, integer_argument
from keras_sensprune.training.snapshot import updates_made


class EpochData(keras.utils.PyDataset):
    """Batches in an order that is drawn when an epoch begins; made by `epoch_data`."""

    def __init__(self, arrays: Any, batch_size: int, seed: int, model: Any):
        super().__init__()
        self.arrays, self.batch_size, self.seed, self.model = arrays, batch_size, seed, model
        self.examples = len(tree.flatten(arrays)[0])
        self.on_epoch_begin()

    def on_epoch_begin(self) -> None:
        """Draws the order; `fit` calls this before the first step of each epoch."""
        self._order = np.random.default_rng([self.seed, updates_made(self.model)]).permutation(self.examples)

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        rows = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        return tree.map_structure(lambda array: array[rows], self.arrays)

    def __iter__(self) -> Iterator[Any]:
        """One epoch, for loops of one's own."""
        self.on_epoch_begin()
        yield from super().__iter__()


def epoch_data(x: Any, y: Any, batch_size: int, seed: int, model: Any, *, sample_weight: Any = None) -> EpochData:
    """Batches in an order that depends on the seed and the epoch alone, however often training was stopped.

    `fit(x, y)` shuffles with generators that no checkpoint holds. Here the order of an epoch is drawn from `seed` and
    the number of updates that the optimizer has made when it begins, which every checkpoint of Keras restores.

    Args:
        x: array of shape (examples, ...), or a tuple or dictionary of such arrays.
        y: the same for targets.
        batch_size: examples per batch; the last one of an epoch may be smaller.
        seed: an integer of at least 0.
        model: the compiled model that will be trained; its optimizer is asked for the number of updates.
        sample_weight: array of shape (examples,) or None.

    Returns:
        A `keras.utils.PyDataset` of (x, y) or (x, y, sample_weight). Pass it to `fit` with `shuffle=False` (by default
        Keras puts the batches of any finite PyDataset in an order of its own) and without `steps_per_epoch`; or go
        through it in a loop of your own, once per epoch.

    Raises:
        ArgumentError: if the arrays differ in length or are empty, or a number is not allowed.
        ModelError: if the model is not compiled.

    Example:
        >>> import keras, numpy as np
        >>> from keras_sensprune import epoch_data
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> data = epoch_data(np.arange(5.0), np.zeros(5), batch_size=2, seed=0, model=model)
        >>> [len(x) for x, y in data]
        [2, 2, 1]
        >>> history = model.fit(data, epochs=2, shuffle=False, verbose=0)
        >>> int(model.optimizer.iterations)
        6
    """
    integer_argument("batch_size", batch_size, 1)
    integer_argument("seed", seed, 0)
    arrays = tree.map_structure(np.asarray, (x, y) if sample_weight is None else (x, y, sample_weight))
    lengths = {len(array) if array.ndim else 0 for array in tree.flatten(arrays)}
    if len(lengths) != 1 or 0 in lengths:
        allowed = "arrays with the same number of examples, at least one, as `y` and `sample_weight`"
        raise argument_error("x", allowed, [array.shape for array in tree.flatten(arrays)])
    return EpochData(arrays, batch_size, seed, model)
