"""The fields that ask for a form of the reply -> the grammar it must follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import UNSET

from sandwich.errors import InvalidRequestError
from sandwich.requests.grammar import Grammar
from sandwich.server.protocol import SamplingBody


def asked_grammar(body: SamplingBody) -> Grammar | None:
    """What `response_format` or `structured_outputs` ask for; None: any text.

    Raises InvalidRequestError naming the field that cannot be understood.
    """
    if body.response_format is not UNSET and body.structured_outputs is not UNSET:
        raise InvalidRequestError(
            "both response_format and structured_outputs are given; give one", "structured_outputs"
        )
    if body.structured_outputs is not UNSET:
        return _structured_outputs(body.structured_outputs)
    return None if body.response_format is UNSET else _response_format(body.response_format)


def _response_format(given: Mapping[str, Any]) -> Grammar | None:
    where = "response_format"
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            schema = given.get("schema")  # as llama.cpp takes it
            if schema is None:
                return Grammar.json_object()
            return Grammar.json_schema(_schema(schema, f"{where}.schema"))
        case "json_schema":
            wrapped = _object(given.get("json_schema"), f"{where}.json_schema")
            schema = _schema(wrapped.get("schema"), f"{where}.json_schema.schema")
            return Grammar.json_schema(schema, is_strict=wrapped.get("strict") is True)
        case "regex":
            return Grammar.regex(_text(given.get("pattern"), f"{where}.pattern"))
        case "grammar":
            return Grammar.grammar(_text(given.get("grammar"), f"{where}.grammar"))
        case kind:
            raise InvalidRequestError(
                f"response_format.type is {str(kind)[:50]!r} but must be text, json_object, "
                "json_schema, regex or grammar",
                f"{where}.type",
            )


def _choices(value: Any, where: str) -> Grammar:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise InvalidRequestError(f"{where} must be a list of texts", where, "invalid_type")
    if not value:
        raise InvalidRequestError(f"{where} is empty; give it a text", where)
    return Grammar.choice(value)


# vLLM's names.
_KINDS: Final[dict[str, Callable[[Any, str], Grammar | None]]] = {
    "json": lambda value, where: Grammar.json_schema(_schema(value, where)),
    "json_object": lambda value, where: Grammar.json_object() if value else None,
    "regex": lambda value, where: Grammar.regex(_text(value, where)),
    "choice": _choices,
    "grammar": lambda value, where: Grammar.grammar(_text(value, where)),
}


def _structured_outputs(given: Mapping[str, Any]) -> Grammar | None:
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1 or names[0] not in _KINDS:
        raise InvalidRequestError(
            f"structured_outputs has {', '.join(names) or 'nothing'} but must have one of "
            f"{', '.join(_KINDS)}",
            "structured_outputs",
        )
    return _KINDS[names[0]](given[names[0]], f"structured_outputs.{names[0]}")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"`{where}` must be an object", where, "invalid_type")
    return value


def _schema(value: Any, where: str) -> Mapping[str, Any] | str:
    if not isinstance(value, Mapping | str):
        raise InvalidRequestError(f"`{where}` must be a JSON schema", where, "invalid_type")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"`{where}` must be a text", where, "invalid_type")
    return value
