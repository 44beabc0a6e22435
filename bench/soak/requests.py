"""Random requests of every kind, good and bad, and what may become of each.

Knows nothing of servers and connections.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

OK, REFUSED = frozenset({200}), frozenset({400, 404, 405, 413})
_WORDS: Final = (
    "the",
    "sandwich",
    "is",
    "made",
    "of",
    "bread",
    "and",
    "numbers",
    "é",
    "日本",
    "\n",
)


class Manner(Enum):
    """How a client treats its connection."""

    PATIENT = "reads to the end"
    LEAVES = "leaves before the answer"
    LEAVES_AMID = "leaves in the middle of the answer"
    HALF_A_BODY = "announces more than it sends, and leaves"
    SLOW = "reads little by little"


@dataclass(frozen=True)
class Shot:
    """A request. `statuses`: what a server with room for it may answer."""

    kind: str
    method: str
    path: str
    body: bytes
    statuses: frozenset[int]
    manner: Manner = Manner.PATIENT

    @property
    def is_streamed(self) -> bool:
        return b'"stream": true' in self.body


class Shooter:
    """Makes one random request after the other; the same for the same seed."""

    def __init__(self, seed: int, max_model_len: int, has_chats: bool) -> None:
        self._random = random.Random(seed)
        self._max_model_len = max_model_len
        good: list[Callable[[], Shot]] = [
            self._completion,
            self._completion,
            self._scored,
            self._embedding,
            self._tokenize,
        ]
        if has_chats:
            good += [self._chat, self._chat, self._guided, self._response, self._message]
        self._good = good
        self._bad: list[Callable[[], Shot]] = [
            self._garbage,
            self._wrong_type,
            self._too_long,
            self._unknown_path,
            self._unknown_model,
        ]

    def shot(self) -> Shot:
        """The next one: one in six is wrong, one in five comes from a client that misbehaves."""
        make = self._random.choice(self._bad if self._random.random() < 1 / 6 else self._good)
        made = make()
        if self._random.random() < 4 / 5:
            return made
        manners = [Manner.LEAVES, Manner.HALF_A_BODY]
        if made.is_streamed:
            manners += [Manner.LEAVES_AMID, Manner.SLOW]
        manner = self._random.choice(manners)
        return Shot(made.kind, made.method, made.path, made.body, made.statuses, manner)

    # ---- good ----

    def _text(self, most: int = 120) -> str:
        words = self._random.choices(_WORDS, k=self._random.randint(1, most))
        return " ".join(words)

    def _sampling(self) -> dict[str, Any]:
        chance = self._random
        fields: dict[str, Any] = {"max_tokens": chance.choice((1, 2, 8, 24, 48))}
        options: dict[str, Any] = {
            "temperature": chance.choice((0, 0.7, 2)),
            "top_p": chance.choice((0.1, 0.9, 1)),
            "top_k": chance.choice((1, 40)),
            "seed": chance.randint(0, 99),
            "n": chance.choice((1, 2, 4)),
            "stop": [chance.choice(_WORDS)],
            "presence_penalty": 0.5,
            "priority": chance.choice((-1, 0, 2)),
            "cache_salt": chance.choice(("", "mine")),
        }
        for name in chance.sample(sorted(options), k=chance.randint(0, 3)):
            fields[name] = options[name]
        if chance.random() < 0.5:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        return fields

    def _completion(self) -> Shot:
        return _post("completion", "/v1/completions", {"prompt": self._text()} | self._sampling())

    def _scored(self) -> Shot:
        body = {"prompt": self._text(40), "echo": True, "logprobs": 3, "max_tokens": 1}
        return _post("scores", "/v1/completions", body)

    def _embedding(self) -> Shot:
        texts = [self._text(30) for _ in range(self._random.randint(1, 4))]
        return _post("embedding", "/v1/embeddings", {"input": texts})

    def _tokenize(self) -> Shot:
        return _post("tokenize", "/tokenize", {"prompt": self._text()})

    def _messages(self) -> list[dict[str, str]]:
        roles = ["user", "assistant"] * 2
        count = self._random.choice((1, 3))
        return [{"role": role, "content": self._text(60)} for role in roles[:count]]

    def _chat(self) -> Shot:
        body = {"messages": self._messages()} | self._sampling()
        return _post("chat", "/v1/chat/completions", body)

    def _guided(self) -> Shot:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        body = {"messages": self._messages(), "max_tokens": 24, "response_format": form}
        return _post("guided", "/v1/chat/completions", body)

    def _response(self) -> Shot:
        body = {"input": self._text(60), "max_output_tokens": 16}
        streams = self._random.random() < 0.5
        return _post("response", "/v1/responses", body | ({"stream": True} if streams else {}))

    def _message(self) -> Shot:
        body = {"messages": self._messages(), "max_tokens": 16}
        streams = self._random.random() < 0.5
        return _post("message", "/v1/messages", body | ({"stream": True} if streams else {}))

    # ---- bad ----

    def _garbage(self) -> Shot:
        body = self._random.randbytes(self._random.randint(0, 200))
        return Shot("garbage", "POST", "/v1/completions", body, REFUSED)

    def _wrong_type(self) -> Shot:
        name = self._random.choice(("max_tokens", "temperature", "stop", "logit_bias", "n"))
        value: Any = self._random.choice((-1, "x", {"a": []}, [[]], 1e300))
        body = {"prompt": "x", "max_tokens": 4, name: value}
        return _post("wrong type", "/v1/completions", body, OK | REFUSED)

    def _too_long(self) -> Shot:
        body = {"prompt": [5] * (self._max_model_len + 1), "max_tokens": 4}
        return _post("too long", "/v1/completions", body, REFUSED)

    def _unknown_path(self) -> Shot:
        return Shot("unknown path", "GET", "/v1/nothing", b"", REFUSED)

    def _unknown_model(self) -> Shot:
        body = {"model": "nobody", "prompt": "x"}
        return _post("unknown model", "/v1/completions", body, REFUSED)


def _post(kind: str, path: str, body: dict[str, Any], statuses: frozenset[int] = OK) -> Shot:
    return Shot(kind, "POST", path, json.dumps(body).encode(), statuses)
