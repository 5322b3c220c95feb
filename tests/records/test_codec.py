"""Every record survives JSON; what is no record is refused."""

import re
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_sensprune.errors import DataError
from keras_sensprune.records import (
    RECORD_TYPES,
    Budget,
    LayerRecord,
    PhaseRecord,
    PruneRecord,
    SparsifyRecipe,
    SparsifyRecord,
    from_json,
    to_json,
)


def values(hint):
    """Values of the type that a field declares."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, parts))
    if origin is tuple:
        if parts[1:] == (...,):
            return st.lists(values(parts[0]), max_size=3).map(tuple)
        return st.tuples(*map(values, parts))
    if hint is float:  # a whole number where a float is declared stays one; NaN is equal to nothing
        return st.floats(allow_nan=False) | st.integers(-(10**6), 10**6)
    simple = {int: st.integers(), str: st.text(max_size=8), bool: st.booleans(), types.NoneType: st.none()}
    return simple[hint] if hint in simple else records(hint)


DENSE = PhaseRecord("dense", 1, 0.5, 5.0, 10, 10, accepted=True)

# Records that refuse some values of the types that they declare
CHECKED = {
    Budget: st.builds(
        Budget,
        error=st.floats(0, 100),
        bytes=st.none() | st.integers(1),
        minutes=st.none() | st.floats(0.01, 1e6),
    ),
    PhaseRecord: st.tuples(st.none() | st.floats(allow_nan=False), st.booleans()).map(
        lambda found: PhaseRecord("round 1", 1, 0.5, found[0], 5, 10, accepted=found[1] and found[0] is not None)
    ),
    SparsifyRecord: st.builds(
        SparsifyRecord,
        st.just(Budget(error=1.0)),
        st.text(max_size=8),
        st.booleans(),
        st.text(max_size=8),
        st.integers(1, 3).map(lambda phases: (DENSE,) * phases),
        st.text(max_size=8),
        st.lists(st.text(max_size=8), max_size=2).map(tuple),
    ),
    SparsifyRecipe: st.builds(
        SparsifyRecipe,
        st.text(max_size=8),
        st.builds(Budget, sparsity=st.floats(0, 1, exclude_max=True)),
        learning_rate=st.floats(1e-6, 10),
        dense_epochs=st.integers(0, 100),
    ),
}


def records(kind):
    if kind in CHECKED:
        return CHECKED[kind]
    return st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(sorted(RECORD_TYPES)))
def test_every_record_comes_back_equal(data, name):
    kind = RECORD_TYPES[name]
    record = data.draw(records(kind))
    again = from_json(to_json(record))
    assert type(again) is kind
    assert again == record
    assert from_json(to_json([record, record])) == (record, record)


PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=8)


@settings(max_examples=60)
@given(st.recursive(PLAIN, lambda item: st.lists(item) | st.dictionaries(st.text(max_size=8), item), max_leaves=10))
def test_other_json_comes_back_too(value):
    assert to_json(from_json(to_json(value))) == to_json(value)


LAYER = to_json(LayerRecord("fc", "Dense", (2, 3), 6, 2, 3, 1, units=3, dead_units=1, regularized=True))
PRUNED = to_json(PruneRecord(0, 1e-3, 6, 4, 2, 0.5))
PHASE = to_json(DENSE)
REFUSED = "A record of type '{}' has a value that is not allowed. Argument"
SPARSIFIED = to_json(SparsifyRecord(Budget(error=1.0), "loss", False, "", (DENSE,), "", ()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "This JSON is nested too deeply for a record."),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "This JSON is nested too deeply for a record."),
        ("9" * 5_000, "This is not JSON: Exceeds the limit"),
        ("{", "This is not JSON: "),
        ("", "This is not JSON: "),
        ('{"record": "os.system"}', "Unknown record type 'os.system'; known are Budget, CandidateRecord, "),
        ('{"record": ["' + "x" * 10_000 + '"]}', "Unknown record type ['xxx"),
        ('{"record": "LayerRecord"}', "A record of type 'LayerRecord' has wrong fields: "),
        (LAYER.replace("}", ', "self": 1}'), "A record of type 'LayerRecord' has wrong fields: "),
        (LAYER.replace('"fc"', "7"), "A record of type 'LayerRecord' has a wrong field: `path` must be str, not 7."),
        (LAYER.replace("true", "1"), "A record of type 'LayerRecord' has a wrong field: `regularized` must be bool,"),
        (PRUNED.replace("0.5", '"0.5"'), "A record of type 'PruneRecord' has a wrong field: `penalty` must be float,"),
        (PRUNED.replace("0.001", "true"), "A record of type 'PruneRecord' has a wrong field: `threshold` must be"),
        (PHASE.replace("5.0", "null"), f"{REFUSED.format('PhaseRecord')} `error` must be a number where"),
        (
            PHASE.replace(": 10", ": 11", 1),
            f"{REFUSED.format('PhaseRecord')} `nonzero` must be from 0 to the total of 10",
        ),
        (PHASE.replace(": 10", ": 0"), f"{REFUSED.format('PhaseRecord')} `nonzero` must be from 0 to the total of 0"),
        (re.sub(r"\{[^{}]*dense[^{}]*\}", "", SPARSIFIED), f"{REFUSED.format('SparsifyRecord')} `phases` must be"),
        (SPARSIFIED.replace("true", "false"), f"{REFUSED.format('SparsifyRecord')} `phases` must be"),
        (PRUNED.replace("[]", "[3]", 1), "A record of type 'PruneRecord' has a wrong field: `kept_by_floor` must be"),
    ],
    ids=lambda text: text[:24],
)
def test_what_is_no_record_is_refused_in_a_short_message(text, message):
    with pytest.raises(DataError) as caught:
        from_json(text)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 1000
