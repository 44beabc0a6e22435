"""Texts or token ids to unit vectors, through the engine: the road of every call that embeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET

from sandwich.models.embedding import chosen_pooling
from sandwich.requests.pooling import Float32Array
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.server.call import last_tokens
from sandwich.server.errors import RequestFailedError
from sandwich.server.protocol import EmbeddingBody, PoolingBody
from sandwich.server.request_stream import RequestStream
from sandwich.server.service import Service
from sandwich.server.validation import Prompt
from sandwich.server.wire import new_id

_NO_TOKENS = SamplingParams(max_tokens=0)


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Embedded:
    """Vectors of prompts, in order, and what they took."""

    vectors: list[Float32Array]  # (hidden_size,) each
    num_tokens: int

    @property
    def usage(self) -> EmbeddingUsage:
        return EmbeddingUsage(self.num_tokens, self.num_tokens)


async def embed(service: Service, prompts: Sequence[Prompt], body: PoolingBody) -> Embedded:
    """The pooled hidden states of each prompt.

    Raises what the client did wrong, QueueFullError, UnavailableError or RequestFailedError.
    """
    arrival_time = time.monotonic()
    name = new_id("embd")
    asked = body.pooling if isinstance(body, EmbeddingBody) and body.pooling is not UNSET else None
    pooling = chosen_pooling(asked, service.backend.embedding_use)
    with service.bridge.open(len(prompts)) as stream:
        encoded = await service.encode_prompts(prompts, body.add_special_tokens)
        requests = []
        for i, token_ids in enumerate(encoded):
            request = Request(
                f"{name}-{i}",
                last_tokens(token_ids, body.truncate_prompt_tokens, service),
                _NO_TOKENS,
                arrival_time=arrival_time,
                cache_salt=body.cache_salt,
                priority=body.priority,
                pooling=pooling,
            )
            service.bridge.check(request)
            requests.append(request)
        vectors = await _run(stream, requests)
    num_tokens = sum(request.num_prompt_tokens for request in requests)
    return Embedded([vectors[request.request_id] for request in requests], num_tokens)


async def _run(stream: RequestStream, requests: Sequence[Request]) -> dict[str, Float32Array]:
    """The embedding of each request by its id."""
    stream.submit(requests)
    vectors: dict[str, Float32Array] = {}
    while len(vectors) < len(requests):
        for event in await stream.next():
            assert event.finish_reason is not None
            stream.settle(event.request_id, event.finish_reason)
            if event.embedding is None:
                raise RequestFailedError(event.error or "the engine ended the request")
            vectors[event.request_id] = event.embedding
    return vectors
