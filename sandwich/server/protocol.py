"""The bodies that clients send, as types. One writer of every request field's name and type.

A field that is absent, or `null` as OpenAI's clients like to send, is UNSET, so that the
checkpoint's own default can apply. Each struct also names the fields that are accepted and
ignored because they are a client's bookkeeping, and those that mean something Sandwich cannot do:
the latter are refused unless their value asks for nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec import UNSET, Struct, UnsetType

BOOKKEEPING = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)


class Body(Struct, kw_only=True):
    """A JSON object from a client, with the rules for the names it may use."""

    ignored: ClassVar[frozenset[str]] = frozenset()
    # Name -> the values that ask for nothing and are therefore accepted.
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    # Name -> the body of its objects, or of the objects in its list.
    nested: ClassVar[dict[str, type[Body]]] = {}


class StreamOptions(Body, kw_only=True):
    include_usage: bool = False
    # Usage comes once, in the last chunk, also for those who would like it in every one.
    ignored = frozenset({"include_obfuscation", "continuous_usage_stats"})


class SamplingBody(Body, kw_only=True):
    """What text and chat completions have in common."""

    model: str | UnsetType = UNSET
    n: int = 1
    max_tokens: int | UnsetType = UNSET
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    min_p: float | UnsetType = UNSET
    repetition_penalty: float | UnsetType = UNSET
    presence_penalty: float | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    logit_bias: dict[str, float] | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    stop: str | list[str] | UnsetType = UNSET
    stop_token_ids: list[int] | UnsetType = UNSET
    min_tokens: int | UnsetType = UNSET
    ignore_eos: bool | UnsetType = UNSET
    cache_salt: str = ""
    stream: bool = False
    stream_options: StreamOptions | UnsetType = UNSET
    nested: ClassVar[dict[str, type[Body]]] = {"stream_options": StreamOptions}

    @property
    def asked_max_tokens(self) -> int | UnsetType:
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not UNSET and self.stream_options.include_usage


class CompletionBody(SamplingBody, kw_only=True):
    """POST /v1/completions."""

    # One text, one list of token ids, or a list of either kind (`validation.split_prompts`).
    prompt: str | list[int | str | list[int]]
    echo: bool = False
    logprobs: int | UnsetType = UNSET
    best_of: int | UnsetType = UNSET
    add_special_tokens: bool = True
    ignored = BOOKKEEPING
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "suffix": ("",),
        "response_format": ({"type": "text"},),
        "prompt_logprobs": (),
    }


class TextPart(Body, kw_only=True):
    type: str
    text: str = ""
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "image_url": (),
        "input_audio": (),
        "file": (),
    }


class Message(Body, kw_only=True):
    """One message of a conversation. Only text is understood."""

    role: str
    content: str | list[TextPart] | UnsetType = UNSET
    name: str | UnsetType = UNSET
    ignored = frozenset({"annotations", "refusal", "reasoning", "reasoning_content"})
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "audio": (),
    }
    nested: ClassVar[dict[str, type[Body]]] = {"content": TextPart}


CHAT_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "prompt_logprobs": (),
}


class ChatBody(SamplingBody, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | UnsetType = UNSET
    logprobs: bool = False
    top_logprobs: int | UnsetType = UNSET
    add_generation_prompt: bool = True
    ignored = BOOKKEEPING | {"parallel_tool_calls"}
    unsupported = CHAT_UNSUPPORTED
    nested: ClassVar[dict[str, type[Body]]] = {
        "messages": Message,
        "stream_options": StreamOptions,
    }

    @property
    def asked_max_tokens(self) -> int | UnsetType:
        """OpenAI's newer name for it wins."""
        is_old = self.max_completion_tokens is UNSET
        return self.max_tokens if is_old else self.max_completion_tokens


class TokenizeBody(Body, kw_only=True):
    """POST /tokenize: a `prompt`, or `messages` that go through the chat template first."""

    model: str | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    messages: list[Message] | UnsetType = UNSET
    add_special_tokens: bool | UnsetType = UNSET
    add_generation_prompt: bool = True
    nested: ClassVar[dict[str, type[Body]]] = {"messages": Message}


class DetokenizeBody(Body, kw_only=True):
    """POST /detokenize."""

    model: str | UnsetType = UNSET
    tokens: list[int]
