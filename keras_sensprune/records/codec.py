"""Records as JSON: every record type is registered here under its name."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar, dataclass_transform

from keras_sensprune.errors import ArgumentError, DataError

RECORD_TYPES: dict[str, type] = {}
_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def record(cls: type[_T]) -> type[_T]:
    """Class decorator: a frozen dataclass that JSON files may name."""
    frozen = dataclasses.dataclass(frozen=True)(cls)
    RECORD_TYPES[cls.__name__] = frozen
    return frozen


def to_dict(value: Any) -> Any:
    """A record as plain dictionaries, lists, numbers and strings; the key "record" names its type."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"record": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    return value


def from_dict(value: Any) -> Any:
    """The inverse of `to_dict`.

    Raises:
        DataError: if the named record type or one of its fields is unknown, or a field has a value of another type.
    """
    if isinstance(value, list):
        return tuple(from_dict(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: from_dict(item) for key, item in value.items() if key != "record"}
    if "record" not in value:
        return fields
    name = value["record"]
    kind = RECORD_TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise DataError(f"Unknown record type {_cut(repr(name))}; known are {', '.join(sorted(RECORD_TYPES))}.")
    try:
        made = kind(**fields)
    except TypeError as error:
        raise DataError(f"A record of type {name!r} has wrong fields: {_cut(str(error))}.") from None
    except ArgumentError as error:
        raise DataError(f"A record of type {name!r} has a value that is not allowed. {error}") from None
    for field, hint in typing.get_type_hints(kind).items():
        if not _fits(getattr(made, field), hint):
            wanted, got = getattr(hint, "__name__", hint), _cut(repr(getattr(made, field)))
            raise DataError(f"A record of type {name!r} has a wrong field: `{field}` must be {wanted}, not {got}.")
    return made


def _cut(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field of a record declares; an int is a float, a bool is neither."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = (parts[0],) * len(value) if parts[1:] == (...,) else parts
        return len(items) == len(value) and all(map(_fits, value, items))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def to_json(value: Any) -> str:
    """A record as JSON text, two spaces of indent."""
    return json.dumps(to_dict(value), indent=2)


def from_json(text: str) -> Any:
    """The inverse of `to_json`.

    Raises:
        DataError: if the text is no JSON, is nested too deeply, or holds a record that is unknown or wrong.
    """
    try:
        return from_dict(json.loads(text))
    except DataError:
        raise
    except RecursionError:
        raise DataError("This JSON is nested too deeply for a record.") from None
    except ValueError as error:  # also an integer of more digits than Python takes
        raise DataError(f"This is not JSON: {_cut(str(error))}.") from None
