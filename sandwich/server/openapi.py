"""The OpenAPI document of the server, made of the types that read requests and write answers.

Source: the OpenAPI Specification 3.1.0 (https://spec.openapis.org/oas/v3.1.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from sandwich import __version__
from sandwich.server.errors import ANTHROPIC_PATH, AnthropicError, ErrorBody, Handler
from sandwich.server.protocol import Body
from sandwich.server.routes import Route

PATH: Final = "/openapi.json"

_ERRORS: Final = {
    400: "the request is wrong; the message says where",
    401: "the API key is missing or wrong",
    404: "the model is not served here",
    408: "the body did not arrive in time",
    413: "the body is too large",
    429: "the queue is full; `Retry-After` says when to come back",
    500: "the server failed",
    503: "the model is loading, or the server is shutting down",
}
_REF: Final = "#/components/schemas/{name}"
_ID_HEADER: Final = {"X-Request-Id": {"schema": {"type": "string"}}}


def openapi_handler(routes: Sequence[Route]) -> Handler:
    """Answers with the document of these routes."""
    text = msgspec.json.encode(document(routes))

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=text, content_type="application/json")

    return handler


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sandwich", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "responses": {"200": _answer(route)} | {str(s): _error(route, s) for s in _ERRORS},
    }
    if not route.is_open:
        operation["security"] = [{}, {"key": []}]  # only where the server was given keys
    if "{model}" in route.path:
        schema = {"type": "string", "minLength": 1}
        operation["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": schema}
        ]
    if route.body is not None:
        content = {"application/json": {"schema": _ref(route.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _answer(route: Route) -> dict[str, Any]:
    if isinstance(route.answer, str):
        content: dict[str, Any] = {route.answer: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": _ref(route.answer)}}
    if route.events is not None:
        content["text/event-stream"] = {"schema": _event(route.events)}
    return {"description": route.summary, "content": content, "headers": _ID_HEADER}


def _event(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A server-sent event. Its data is JSON, but for the last one of some endpoints: `[DONE]`."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": _ref(kind)}
    properties = {"data": data, "event": {"type": "string"}}
    return {"type": "object", "properties": properties, "required": ["data"]}


def _error(route: Route, status: int) -> dict[str, Any]:
    kind = AnthropicError if route.path.startswith(ANTHROPIC_PATH) else ErrorBody
    content = {"application/json": {"schema": _ref(kind)}}
    return {"description": _ERRORS[status], "content": content, "headers": _ID_HEADER}


def _ref(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _schemas(routes: Sequence[Route]) -> dict[str, Any]:
    bodies = {route.body for route in routes if route.body is not None}
    answers = {route.answer for route in routes if not isinstance(route.answer, str)}
    for body in list(bodies):
        bodies |= _nested(body)
    events = {route.events for route in routes if route.events is not None}
    kinds = sorted(
        bodies | answers | events | {ErrorBody, AnthropicError}, key=lambda k: k.__name__
    )
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    names = [kind.__name__ for kind in kinds]
    assert len(set(names)) == len(names), "two types of one name"
    for body in bodies:
        _say_what_is_taken(schemas[body.__name__], body)
    return schemas


def _nested(body: type[Body]) -> set[type[Body]]:
    inner = set(body.nested.values())
    return inner.union(*(_nested(each) for each in inner))


def _say_what_is_taken(schema: dict[str, Any], body: type[Body]) -> None:
    """Add the rules of `Body`: null is as good as nothing, which names are ignored, which have
    another one, and which are refused unless their value asks for nothing.
    """
    properties: dict[str, Any] = schema["properties"]
    required = schema.get("required", ())
    for name, value in properties.items():
        if name not in required:
            properties[name] = _or_null(value)
    for other, (name, _) in body.aliases.items():
        properties[other] = properties[name] if name not in required else _or_null(properties[name])
    for name in sorted(body.ignored):
        properties[name] = {"description": "taken and ignored"}
    for name, values in sorted(body.unsupported.items()):
        properties[name] = {"enum": [None, *values]}
    schema["additionalProperties"] = False
    schema["required"] = [name for name in required if not _has_alias(name, body)]


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _has_alias(name: str, body: type[Body]) -> bool:
    return any(name == own for own, _ in body.aliases.values())
