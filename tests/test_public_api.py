"""Every public name is documented in full, and every example in a docstring runs."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import keras_sensprune

NAMES = sorted(set(keras_sensprune.__all__) - {"__version__"})
SECTIONS = ("Args:", "Returns:", "Raises:", "Example:")


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_a_full_docstring(name):
    thing = getattr(keras_sensprune, name)
    text = inspect.getdoc(thing) or ""
    missing = [section for section in SECTIONS if section not in text]
    assert not missing, f"{name} lacks {missing}"
    assert ">>> " in text
    parameters = [p for p in inspect.signature(thing).parameters if p not in ("self", "args", "kwargs")]
    undocumented = [p for p in parameters if f"{p}:" not in text and f"{p}," not in text]
    assert not undocumented, f"{name} does not document {undocumented}"


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_what_it_is_in_one_line(name):
    first = (inspect.getdoc(getattr(keras_sensprune, name)) or "").splitlines()[0]
    assert first.endswith((".", ":")), f"{name}: {first!r}"


def modules():
    for info in pkgutil.walk_packages(keras_sensprune.__path__, "keras_sensprune."):
        if not info.name.endswith("__main__"):
            yield info.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if not name.endswith(".export.tflite"):
        request.getfixturevalue("litert_only")
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_the_table_is_the_public_api():
    assert set(NAMES) <= set(dir(keras_sensprune))
    with pytest.raises(AttributeError) as caught:
        keras_sensprune.no_such_name  # noqa: B018
    assert str(caught.value) == "module 'keras_sensprune' has no attribute 'no_such_name'"
