"""Recipes: those that are shipped, and what is wrong with others is named before anything is trained."""

import json

import pytest

from keras_sensprune.errors import ArgumentError, DataError
from keras_sensprune.networks import NETWORKS
from keras_sensprune.recipes import load_recipe, recipe_names
from keras_sensprune.records import Budget, SparsifyRecipe

GOOD = {"network": "lenet-5", "budget": {"error": 0.2}}


def test_every_network_has_a_recipe_that_is_shipped():
    assert set(recipe_names()) == set(NETWORKS)
    for name in recipe_names():
        assert load_recipe(name).network == name


def test_a_file_has_the_fields_of_the_record_and_the_others_are_defaults(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**GOOD, "seed": 3}))
    assert load_recipe(file) == SparsifyRecipe("lenet-5", Budget(error=0.2), seed=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**GOOD, "lerning_rate": 1}, "The recipe has the unknown key 'lerning_rate'. Allowed are network, budget, le"),
        ({**GOOD, "budget": {"time": 1}}, "`budget` has the unknown key 'time'. Allowed are error, bytes, parameters"),
        ({"network": "lenet-5"}, "The recipe lacks the key 'budget'. Allowed are network, budget"),
        ([], "The recipe must be an object with keys. Allowed are network, budget"),
        ({**GOOD, "budget": 0.2}, "`budget` must be an object with keys. Allowed are error"),
        ({**GOOD, "budget": {}}, "A budget needs `error`, `bytes`, `parameters` or `sparsity`"),
        ({**GOOD, "budget": {"sparsity": 90}}, "Argument `sparsity` must be a fraction in [0, 1). Received: 90."),
        ({**GOOD, "network": 5}, "Argument `network` must be the name of a network. Received: 5."),
        ({**GOOD, "learning_rate": "0.1"}, "Argument `learning_rate` must be a finite number above 0. Received: '0.1'"),
        ({**GOOD, "dense_epochs": 2.5}, "Argument `dense_epochs` must be an integer of at least 0. Received: 2.5."),
        ({**GOOD, "seed": 2**32}, "Argument `seed` must be an integer from 0 to 4294967295. Received: 4294967296."),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * 2**21])
def test_a_file_that_is_no_json_is_named(tmp_path, content):
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}: it ")


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(ArgumentError) as caught:
        load_recipe("lenet")
    assert str(caught.value) == (
        "Argument `recipe` must be the path of a file that ends in .json, or one of 'cifar-small', 'lenet-300-100', "
        "'lenet-5'. Received: 'lenet'."
    )
    with pytest.raises(DataError, match="it cannot be read \\(No such file or directory\\)"):
        load_recipe(tmp_path / "missing.json")
