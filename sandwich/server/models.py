"""The small endpoints: models, health, version, metrics, tokens and back."""

from __future__ import annotations

from aiohttp import web
from msgspec import UNSET
from prometheus_client import CONTENT_TYPE_LATEST

from sandwich import __version__
from sandwich.errors import InvalidRequestError, UnavailableError
from sandwich.server.bridge import BridgeState
from sandwich.server.protocol import DetokenizeBody, TokenizeBody
from sandwich.server.responses import Health, ModelCard, ModelList, Text, Tokens, Version
from sandwich.server.service import Service
from sandwich.server.state import STATE
from sandwich.server.validation import conversation
from sandwich.server.wire import json_response, read_body, service_of


async def health(request: web.Request) -> web.Response:
    """200 if a request sent now would be taken, else 503."""
    state = service_of(request).bridge.state
    if state is not BridgeState.READY:
        raise UnavailableError(f"the server is {state.value}")
    return json_response(Health("ok"))


async def version(_: web.Request) -> web.Response:
    return json_response(Version(__version__))


async def metrics(request: web.Request) -> web.Response:
    text = request.app[STATE].metrics.text()
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def list_models(request: web.Request) -> web.Response:
    return json_response(ModelList(data=[_card(service_of(request))]))


async def get_model(request: web.Request) -> web.Response:
    service = service_of(request)
    service.check_model(request.match_info["model"])
    return json_response(_card(service))


def _card(service: Service) -> ModelCard:
    backend = service.backend
    return ModelCard(
        id=backend.model_name,
        created=backend.created,
        root=backend.root,
        max_model_len=backend.max_model_len,
    )


async def tokenize(request: web.Request) -> web.Response:
    service = service_of(request)
    body = await read_body(request, TokenizeBody)
    service.check_model(body.model)
    if (body.prompt is UNSET) == (body.messages is UNSET):
        raise InvalidRequestError("give either prompt or messages", "prompt")
    with service.bridge.open(num_places=1):  # the work is bounded as completions are
        if body.messages is not UNSET:
            tokens = (await service.encode_chat(conversation(body))).token_ids
        else:
            assert body.prompt is not UNSET
            [tokens] = await service.encode([body.prompt], body.add_special_tokens is not False)
    return json_response(Tokens(tokens, len(tokens), service.backend.max_model_len))


async def detokenize(request: web.Request) -> web.Response:
    service = service_of(request)
    body = await read_body(request, DetokenizeBody)
    service.check_model(body.model)
    limit = service.backend.max_model_len
    if len(body.tokens) > limit:
        raise InvalidRequestError(
            f"tokens has {len(body.tokens)} ids, but the limit is {limit}; send fewer", "tokens"
        )
    service.check_token_ids(body.tokens, "tokens")
    return json_response(Text(service.tokenizer.decode(body.tokens, skip_special_tokens=False)))
