"""POST /v1/embeddings, /v1/score and /v1/rerank: vectors of texts, and how near they are.

Sources: OpenAI's API reference for embeddings, vLLM's for score, Jina's for rerank.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from sandwich.errors import InvalidRequestError
from sandwich.models.embedding import EmbeddingUse
from sandwich.requests.pooling import Float32Array, unit
from sandwich.server.embedder import EmbeddingUsage, embed
from sandwich.server.protocol import EmbeddingBody, PoolingBody, RerankBody, ScoreBody
from sandwich.server.service import Service
from sandwich.server.validation import split_prompts
from sandwich.server.wire import json_response, new_id, read_body, service_of


class Embedding(Struct):
    index: int
    embedding: list[float] | str  # base64: little-endian float32
    object: str = "embedding"


class EmbeddingList(Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


class Score(Struct):
    index: int
    score: float
    object: str = "score"


class ScoreList(Struct):
    id: str
    data: list[Score]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


class Document(Struct):
    text: str


class RankedDocument(Struct):
    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class Ranking(Struct):
    id: str
    model: str
    usage: EmbeddingUsage
    results: list[RankedDocument]


async def embeddings(request: web.Request) -> web.Response:
    service = service_of(request)
    body = await read_body(request, EmbeddingBody)
    service.check_model(body.model)
    hidden_size = service.backend.engine.limits.hidden_size
    if body.encoding_format not in ("float", "base64"):
        raise InvalidRequestError(
            f"encoding_format is {body.encoding_format[:50]!r} but must be float or base64",
            "encoding_format",
        )
    if body.dimensions is not UNSET and not 1 <= body.dimensions <= hidden_size:
        raise InvalidRequestError(
            f"dimensions is {body.dimensions} but must be from 1 to {hidden_size}, the width of "
            "this model",
            "dimensions",
        )
    prompts = split_prompts(body.input, service.limits, "input")
    found = await embed(service, prompts, body)
    data = [
        Embedding(i, _encoded(unit(vector, body.dimensions or None), body.encoding_format))
        for i, vector in enumerate(found.vectors)
    ]
    return json_response(EmbeddingList(data, service.backend.model_name, found.usage))


def _encoded(vector: Float32Array, form: str) -> list[float] | str:
    if form == "float":
        return list(map(float, vector))
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def score(request: web.Request) -> web.Response:
    service = service_of(request)
    body = await read_body(request, ScoreBody)
    service.check_model(body.model)
    use = _use(service, "/v1/score")
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if not second or len(first) not in (1, len(second)):
        raise InvalidRequestError(
            f"text_1 has {len(first)} texts and text_2 has {len(second)}; give one and several, "
            "or as many of each",
            "text_1",
        )
    similarities, usage = await _similarities(service, use, body, first, second)
    name = service.backend.model_name
    data = [Score(i, similarity) for i, similarity in enumerate(similarities)]
    return json_response(ScoreList(new_id("score"), data, name, usage))


async def rerank(request: web.Request) -> web.Response:
    service = service_of(request)
    body = await read_body(request, RerankBody)
    service.check_model(body.model)
    use = _use(service, "/v1/rerank")
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    if not texts:
        raise InvalidRequestError("documents is an empty list; give it texts", "documents")
    if body.top_n is not UNSET and body.top_n < 1:
        raise InvalidRequestError(f"top_n is {body.top_n} but must be at least 1", "top_n")
    similarities, usage = await _similarities(service, use, body, [body.query], texts)
    order = sorted(range(len(texts)), key=lambda i: -similarities[i])
    results = [
        RankedDocument(i, similarities[i], Document(texts[i]) if body.return_documents else UNSET)
        for i in order[: body.top_n or None]
    ]
    return json_response(Ranking(new_id("rerank"), service.backend.model_name, usage, results))


def _use(service: Service, path: str) -> EmbeddingUse:
    use = service.backend.embedding_use
    if use is None:
        raise InvalidRequestError(
            f"{path} needs a model that was made to compare texts (a folder with modules.json); "
            f"`{service.backend.model_name}` was not",
            "model",
            "unsupported_model",
        )
    return use


async def _similarities(
    service: Service,
    use: EmbeddingUse,
    body: PoolingBody,
    queries: Sequence[str],
    documents: Sequence[str],
) -> tuple[list[float], EmbeddingUsage]:
    """Cosines between each query, or the one for all, and each document."""
    texts = [use.query_prompt + text for text in queries]
    texts += [use.document_prompt + text for text in documents]
    found = await embed(service, split_prompts(texts, service.limits, "documents"), body)
    vectors = np.stack([unit(vector) for vector in found.vectors])
    cosines = (vectors[: len(queries)] * vectors[len(queries) :]).sum(axis=1, dtype=np.float64)
    return cosines.tolist(), found.usage
