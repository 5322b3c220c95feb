"""Every kind of file that the package opens: valid seeds, how they are damaged, and what opens them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import pathlib
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from keras_sensprune import keras_file
from keras_sensprune.errors import DataError
from keras_sensprune.keras_file import WEIGHTS
from tests.faults import mutations

Damage = Callable[[bytes, bytes, np.random.Generator], bytes]


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        suffix: how names end.
        seeds: makes valid files.
        opener: what the package does with a name.
        damage: how a seed becomes a hostile file.
        seconds, megabytes: what opening one may take, at most.
        native: whether C code reads the file in this process, which then may end; the package starts a child for it.
        unnamed: whether the opener does not know the name of the file.
    """

    suffix: str
    seeds: Callable[[], list[bytes]]
    opener: Callable[[str], Any]
    damage: Damage = mutations.damaged
    seconds: float = 10.0
    megabytes: float = 256.0
    native: bool = False
    unnamed: bool = False

    def inputs(self, seeds: list[bytes], number: int) -> bytes:
        """Hostile file number `number`."""
        rng = np.random.default_rng([17, number])
        first, second = (seeds[int(rng.integers(len(seeds)))] for _ in range(2))
        return self.damage(first, second, rng)


def outcome(form: Format, path: str) -> str:
    """`"accepted"`, `"refused"` with an error of ours, or what else happened."""
    try:
        form.opener(path)
    except DataError as error:
        return "refused" if form.unnamed or path in str(error) else f"the error does not name the file: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def _saved(save: Callable, *arguments: Any, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arguments, **arrays)
    return buffer.getvalue()


def images() -> list[bytes]:
    """Two data sets as .npz, one compressed."""
    rng = np.random.default_rng(0)
    parts = {"x_train": rng.integers(0, 256, (6, 28, 28), np.uint8), "y_train": np.arange(6)}
    parts |= {"x_test": rng.random((2, 28, 28)), "y_test": np.arange(2, dtype=np.uint8)}
    return [_saved(np.savez, **parts), _saved(np.savez_compressed, **parts)]


def examples() -> list[bytes]:
    return [_saved(np.save, np.ones((3, 4), kind)) for kind in ("f4", "i8", "?")]


def archives_of_examples() -> list[bytes]:
    return [_saved(np.savez, x=np.ones((3, 4), "f4")), _saved(np.savez_compressed, a=np.zeros(3), b=np.ones((2, 2)))]


def records() -> list[bytes]:
    """One record of each depth: a training record, a report with layers, a file with tensors."""
    from keras_sensprune.records import (
        ConstantRecord,
        LayerRecord,
        OperatorCount,
        PruneRecord,
        SparsityReport,
        TfliteRecord,
        to_json,
    )

    layer = LayerRecord("fc", "Dense", (2, 3), 6, 2, 3, 1, units=3, dead_units=1, regularized=True)
    tensor = ConstantRecord("w", 0, "float32", (2, 3), "csr", 6, 4, 40, ("FULLY_CONNECTED 0",), "dense")
    file = TfliteRecord("m", 1, 1, "", 1, (tensor,), (OperatorCount("ADD", 1, 2),), (), ("s(x)",), (), ("w",))
    pruned = PruneRecord(0, 1e-3, 6, 4, 2, 0.5, ("fc",), "weight", 0, 0, ())
    return [to_json(item).encode() for item in (pruned, SparsityReport("net", (layer, layer)), [file, pruned])]


def open_json(path: str) -> Any:
    from keras_sensprune.records import from_json

    return from_json(pathlib.Path(path).read_bytes().decode(errors="replace"))


def open_npz(path: str) -> Any:
    from keras_sensprune.datasets import read_npz

    return read_npz(path)


def open_examples(path: str) -> Any:
    from keras_sensprune.commands import read_examples

    return read_examples(path)


def tflite_files() -> list[bytes]:
    """Weights in each encoding that we write, integer weights, and the smallest file."""
    from keras_sensprune.export import convert
    from tests.export.test_flatbuffer import mlp
    from tests.export.test_reader import minimal, sparse_file

    model = mlp(8, 6, 4)
    return [sparse_file(), minimal(), convert.convert_dense(model, convert.model_inputs(model, None), "dynamic")]


def open_tflite(path: str) -> Any:
    from keras_sensprune import check_sparse_inference, inspect_tflite

    inspect_tflite(path)
    return check_sparse_inference(path)


def keras_files() -> list[bytes]:
    """A dense model with our regularizer and a small convolutional one; the same bytes in every run."""
    import keras

    from keras_sensprune import SensitivityRegularizer

    keras.utils.set_random_seed(0)
    layers, ours = keras.layers, SensitivityRegularizer(1e-4)
    dense = [layers.Dense(3, "relu", kernel_regularizer=ours, name="one"), layers.Dense(2, name="two")]
    conv = [layers.Conv2D(2, 3, name="c"), layers.BatchNormalization(name="b"), layers.Flatten(name="f")]
    models = [keras.Sequential([keras.Input((4,), name="x"), *dense], name="mlp")]
    models.append(keras.Sequential([keras.Input((4, 4, 1), name="x"), *conv], name="net"))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        found = []
        for model in models:
            model.save(path)
            content = mutations.members(path.read_bytes())
            del content["metadata.json"]  # the date; it is not read
            found.append(mutations.archived(content))
    return found


def open_keras(path: str) -> Any:
    """As `load_keras`; the child is not asked again about weights that it has accepted before, bit for bit."""
    with mock.patch.object(keras_file, "_problem_of_weights", _problem_of_weights):
        return keras_file.load_keras(path)


_ask_child = keras_file._problem_of_weights
_ACCEPTED: set[bytes] = set()  # digests of weights


def _problem_of_weights(path: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            digest = hashlib.sha256(archive.read(WEIGHTS)).digest()
    except Exception:  # zipfile raises many types
        return _ask_child(path)
    problem = "" if digest in _ACCEPTED else _ask_child(path)
    if not problem:
        _ACCEPTED.add(digest)
    return problem


def open_weights(path: str) -> Any:
    """What the child of `load_keras` does; all its errors reach the parent as the last line of its output."""
    from keras_sensprune.keras_file import read_weights

    try:
        return read_weights(path)
    except Exception as error:
        raise DataError(f"{path}: {error}") from None


def damaged_weights(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A `.keras` file with damaged weights; everything else is left alone."""
    content, like = mutations.members(data), mutations.members(other)
    content[WEIGHTS] = mutations.damaged(content[WEIGHTS], like[WEIGHTS], rng)
    return mutations.archived(content)


@functools.cache
def pruning_session() -> Any:
    """An attached session of a small model that has been trained for two steps."""
    import keras

    from keras_sensprune import Sensitivity, SensitivityRegularizer
    from keras_sensprune.training.session import attach

    keras.utils.set_random_seed(0)
    layers, ours = keras.layers, SensitivityRegularizer(1e-2)
    body = [layers.Dense(3, "tanh", kernel_regularizer=ours), layers.Dropout(0.5), layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *body])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(np.ones((8, 4), "float32"), np.arange(8) % 2, batch_size=4, verbose=0)
    return attach(model, Sensitivity())


def sidecars() -> list[bytes]:
    """The state before training, and that of two epochs."""
    from keras_sensprune.training.sidecar import SideCar

    session, found = pruning_session(), []
    with tempfile.TemporaryDirectory() as folder:
        car = SideCar(pathlib.Path(folder) / "state")
        records = []
        for epoch in range(2):
            car.save(session, epoch, records)
            found.append(pathlib.Path(car.path).read_bytes())
            records.append(session.prune(0.1))
    return found


def open_sidecar(path: str) -> Any:
    from keras_sensprune.training.sidecar import SideCar

    return SideCar(path).restore(pruning_session())


def damaged_sidecar(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One in four is damaged as it is, which the digest tells; the others get the digest of their damaged content."""
    if rng.random() < 0.25:
        return mutations.damaged(data, other, rng)
    return resealed(mutations.damaged_archive(data, other, rng))


@functools.cache
def sparsified() -> Any:
    """A small model, and the settings of a run on it."""
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)]), {
        "steps": 2,
        "keep": 0.5,
    }


def progress_files() -> list[bytes]:
    """The state after the dense phase, and after two rounds."""
    from keras_sensprune.planning.progress import Progress, ProgressFile
    from keras_sensprune.records import PhaseRecord

    model, settings = sparsified()
    dense = PhaseRecord("dense", 2, 1.0, 5.0, 18, 18, True)
    rounds = [PhaseRecord(f"round {n}", 1, 1.0, 5.0 + n, 18 // 2**n, 18, n == 1) for n in (1, 2)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = ProgressFile(folder, settings)
        for phases in ((dense,), (dense, *rounds)):
            file.save(Progress(phases, model.get_weights(), 7))
            found.append(pathlib.Path(file.path).read_bytes())
    return found


def open_progress(path: str) -> Any:
    from keras_sensprune.planning.progress import ProgressFile

    model, settings = sparsified()
    file = ProgressFile(pathlib.Path(path).parent, settings)
    file.path = path
    return file.load(model)


def recipes() -> list[bytes]:
    """The recipes that are shipped."""
    from keras_sensprune import recipes as shipped

    folder = pathlib.Path(shipped.__file__).parent
    return [(folder / f"{name}.json").read_bytes() for name in shipped.recipe_names()]


def open_recipe(path: str) -> Any:
    from keras_sensprune.recipes import load_recipe

    return load_recipe(path)


def resealed(data: bytes) -> bytes:
    """A zip archive with the comment of a sealed file: the digest of what comes before. No archive is left as it is."""
    buffer = io.BytesIO(data)
    try:
        with zipfile.ZipFile(buffer, "a") as file:
            file.comment = b"0" * 64
    except Exception:  # zipfile raises many types
        return data
    return with_digest(buffer.getvalue()[:-64])


def with_digest(content: bytes) -> bytes:
    """A sealed file: its content, and the digest of that."""
    return content + hashlib.sha256(content).hexdigest().encode()


FORMATS = {
    "state": Format(".state", sidecars, open_sidecar, damaged_sidecar),
    "progress": Format(".state", progress_files, open_progress, damaged_sidecar),
    "recipe": Format(".json", recipes, open_recipe, mutations.damaged_json),
    "npz": Format(".npz", images, open_npz, mutations.damaged_archive),
    "examples-npy": Format(".npy", examples, open_examples),
    "examples-npz": Format(".npz", archives_of_examples, open_examples, mutations.damaged_archive),
    "json": Format(".json", records, open_json, mutations.damaged_json, unnamed=True),
    "tflite": Format(".tflite", tflite_files, open_tflite),
    "keras": Format(".keras", keras_files, open_keras, mutations.damaged_archive, 120.0, 4096.0),
    "keras-weights": Format(".keras", keras_files, open_weights, damaged_weights, 60.0, 4096.0, native=True),
}
