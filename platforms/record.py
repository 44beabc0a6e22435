"""Frozen dataclasses to JSON values and back, without loss, guided by their type annotations.

Handles nested dataclasses, tuples, optional values, scalars, sets of words (as one string, space
between) and CPU lists (as the kernel writes them, "0-3,8").
"""

import dataclasses
import types
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from platforms.sysfs import format_cpu_list, parse_cpu_list


class RecordError(ValueError):
    """A JSON record does not fit its type; the message names the place."""


def to_record(value: object, hint: Any) -> Any:
    """The JSON value for `value`, which is of type `hint`."""
    hint, value_is_none = _without_none(hint, value)
    if value_is_none:
        return None
    if get_origin(hint) is Annotated:
        assert isinstance(value, tuple)
        return format_cpu_list(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        return {name: to_record(getattr(value, name), hints[name]) for name in hints}
    if get_origin(hint) is tuple:
        assert isinstance(value, tuple)
        return [to_record(item, get_args(hint)[0]) for item in value]
    if get_origin(hint) is frozenset:
        assert isinstance(value, frozenset)
        return " ".join(sorted(value))
    return value


def from_record(data: Any, hint: Any, place: str) -> Any:
    """The inverse of `to_record`. `place` names `data` in errors. Raises RecordError."""
    hint, data_is_none = _without_none(hint, data)
    if data_is_none:
        return None
    if dataclasses.is_dataclass(hint):
        return _dataclass_from_record(data, hint, place)
    if get_origin(hint) is Annotated:
        try:
            return parse_cpu_list(_expect(data, str, place))
        except ValueError as error:
            raise RecordError(f"{place}: {error}") from error
    if get_origin(hint) is tuple:
        items: Iterable[Any] = _expect(data, list, place)
        inner = get_args(hint)[0]
        return tuple(from_record(item, inner, f"{place}[{i}]") for i, item in enumerate(items))
    if get_origin(hint) is frozenset:
        return frozenset(_expect(data, str, place).split())
    if hint is float and type(data) is int:
        return float(data)
    return _expect(data, hint, place)


def _dataclass_from_record(data: Any, hint: Any, place: str) -> Any:
    fields = _expect(data, dict, place)
    hints = _hints(hint)
    for name in hints:
        if name not in fields:
            raise RecordError(f"{place}: {name!r} is missing")
    for name in fields:
        if name not in hints:
            raise RecordError(f"{place}: {name!r} is not known; one of {', '.join(hints)} is")
    return hint(**{n: from_record(fields[n], hints[n], f"{place}.{n}") for n in hints})


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _without_none(hint: Any, value: object) -> tuple[Any, bool]:
    """`hint` without its "| None", and whether the value is that None."""
    if get_origin(hint) is types.UnionType or type(None) in get_args(hint):
        (inner,) = (arg for arg in get_args(hint) if arg is not type(None))
        return inner, value is None
    return hint, False


def _expect(data: Any, kind: type, place: str) -> Any:
    if type(data) is not kind:
        raise RecordError(f"{place}: {data!r} is not of type {kind.__name__}")
    return data
