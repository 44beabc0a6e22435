"""The table of endpoints: what listens where, what it is sent, what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from sandwich.server import (
    anthropic,
    chat,
    completions,
    embeddings,
    models,
    page,
    responses,
    responses_api,
)
from sandwich.server.anthropic_format import Answer, Event
from sandwich.server.errors import ANTHROPIC_PATH, Handler
from sandwich.server.protocol import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    RerankBody,
    ResponsesBody,
    ScoreBody,
    TokenizeBody,
)
from sandwich.server.responses_format import Response, ResponseEvent


@dataclass(frozen=True)
class Route:
    """An endpoint. `answer`: the type of its JSON, or another media type. `body`: of a POST.

    `events`: the type of the server-sent events that it answers with instead, if the body says
    `stream`. `is_open`: it needs no API key.
    """

    path: str
    handler: Handler
    summary: str
    answer: type[msgspec.Struct] | str
    body: type[Body] | None = None
    events: type[msgspec.Struct] | None = None
    is_open: bool = False

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"


ROUTES: Final = (
    Route(
        "/v1/completions",
        completions.completions,
        "Continue texts or token ids",
        responses.Completion,
        CompletionBody,
        responses.Completion,
    ),
    Route(
        "/v1/chat/completions",
        chat.chat_completions,
        "Reply to a conversation",
        responses.ChatCompletion,
        ChatBody,
        responses.ChatCompletionChunk,
    ),
    Route(
        "/v1/responses",
        responses_api.create_response,
        "Reply to a conversation, in OpenAI's newer form",
        Response,
        ResponsesBody,
        ResponseEvent,
    ),
    Route(
        ANTHROPIC_PATH,
        anthropic.messages,
        "Reply to a conversation, in Anthropic's form",
        Answer,
        anthropic.MessagesBody,
        Event,
    ),
    Route(
        f"{ANTHROPIC_PATH}/count_tokens",
        anthropic.count_tokens,
        "Tokens of a conversation's prompt",
        anthropic.TokenCount,
        anthropic.CountBody,
    ),
    Route(
        "/v1/embeddings",
        embeddings.embeddings,
        "Texts or token ids to vectors",
        embeddings.EmbeddingList,
        EmbeddingBody,
    ),
    Route(
        "/v1/score",
        embeddings.score,
        "How near texts are to each other",
        embeddings.ScoreList,
        ScoreBody,
    ),
    Route(
        "/v1/rerank",
        embeddings.rerank,
        "Documents in the order of their nearness to a query",
        embeddings.Ranking,
        RerankBody,
    ),
    Route("/v1/models", models.list_models, "The models that are served", responses.ModelList),
    Route("/v1/models/{model}", models.get_model, "One model", responses.ModelCard),
    Route("/tokenize", models.tokenize, "Text to token ids", responses.Tokens, TokenizeBody),
    Route("/detokenize", models.detokenize, "Token ids to text", responses.Text, DetokenizeBody),
    Route(page.PATH, page.index, "A web page with a chat", "text/html", is_open=True),
    Route("/status", page.status, "What the web page shows", responses.EngineStatus),
    Route(
        "/health",
        models.health,
        "Whether requests are taken now",
        responses.Health,
        is_open=True,
    ),
    Route("/version", models.version, "The server's version", responses.Version, is_open=True),
    Route("/metrics", models.metrics, "Prometheus metrics", "text/plain", is_open=True),
)
