"""From the bytes of a request to a typed body, or to an error that names the field."""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

import msgspec

from sandwich.errors import InvalidRequestError
from sandwich.server.protocol import Body

BodyT = TypeVar("BodyT", bound=Body)

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>\w+)`")


def parse_body(raw: bytes, body: type[BodyT]) -> BodyT:
    """The body as its type.

    Raises InvalidRequestError if it is not JSON, not an object, or has a wrong name or type.
    """
    try:
        value = msgspec.json.decode(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"the body is not valid JSON: {error}", code="invalid_json"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequestError(
            f"the body must be a JSON object, not {_json_kind(value)}", code="invalid_json"
        )
    try:
        return msgspec.convert(_known_fields(value, body, ""), body)
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from error


def _known_fields(value: Any, body: type[Body], path: str) -> Any:
    """`value` without nulls and bookkeeping; refuses names that `body` does not know."""
    if isinstance(value, list):
        return [_known_fields(item, body, f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value  # the type check that follows names it
    known = {}
    for name, item in value.items():
        where = f"{path}.{name}" if path else name
        name, none_values = body.aliases.get(name, (name, ()))
        if item is None or _is_one_of(item, none_values) or name in body.ignored:
            continue
        if name in body.__struct_fields__:
            inner = body.nested.get(name)
            known[name] = item if inner is None else _known_fields(item, inner, where)
        elif name not in body.unsupported:
            raise _unknown_field(name, where, body)
        elif not _is_one_of(item, body.unsupported[name]):
            raise InvalidRequestError(
                f"`{where}` is not supported by this server; leave it out",
                param=where,
                code="unsupported_parameter",
            )
    return known


def _is_one_of(item: Any, values: tuple[Any, ...]) -> bool:
    """As JSON has it, where false is not 0."""
    is_flag = isinstance(item, bool)
    return any(item == value and is_flag == isinstance(value, bool) for value in values)


def _unknown_field(name: str, where: str, body: type[Body]) -> InvalidRequestError:
    names = {*body.__struct_fields__, *body.ignored, *body.unsupported, *body.aliases}
    close = difflib.get_close_matches(name[:64], sorted(names), n=1, cutoff=0.7)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return InvalidRequestError(
        f"unknown field `{where[:200]}`{hint}", param=where[:200], code="unknown_parameter"
    )


def _type_error(message: str) -> InvalidRequestError:
    """Msgspec says "Expected `int`, got `str` - at `$.n`"; the field's name belongs in front."""
    match = _PATH.match(message)
    assert match is not None
    what, path = match["what"], match["path"] or ""
    missing = _MISSING.search(what)
    if missing:
        where = f"{path}.{missing['name']}" if path else missing["name"]
        return InvalidRequestError(
            f"`{where}` is missing", param=where, code="missing_required_parameter"
        )
    return InvalidRequestError(
        f"`{path}`: {what[:1].lower()}{what[1:]}", param=path, code="invalid_type"
    )


def _json_kind(value: Any) -> str:
    if isinstance(value, list):
        return "an array"
    return "null" if value is None else f"a {type(value).__name__}"
