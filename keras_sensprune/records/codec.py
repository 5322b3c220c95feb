"""Records as JSON: every record type is registered here under its name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypeVar, dataclass_transform

from keras_sensprune.errors import DataError

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
        DataError: if the named record type or one of its fields is unknown.
    """
    if isinstance(value, list):
        return tuple(from_dict(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: from_dict(item) for key, item in value.items() if key != "record"}
    if "record" not in value:
        return fields
    kind = RECORD_TYPES.get(str(value["record"]))
    if kind is None:
        raise DataError(f"Unknown record type {value['record']!r}; known are {', '.join(sorted(RECORD_TYPES))}.")
    try:
        return kind(**fields)
    except TypeError as error:
        raise DataError(f"A record of type {value['record']!r} has wrong fields: {error}.") from None


def to_json(value: Any) -> str:
    """A record as JSON text, two spaces of indent."""
    return json.dumps(to_dict(value), indent=2)


def from_json(text: str) -> Any:
    """The inverse of `to_json`.

    Raises:
        DataError: if the text is no JSON or holds an unknown record.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"This is not JSON: {error}.") from None
    return from_dict(value)
