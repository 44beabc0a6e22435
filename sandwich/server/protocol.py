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
        "request_id",
        "id_slot",
        "cache_prompt",  # what is cached changes no answer
    }
)
# Fields of other servers that choose tokens otherwise -> the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "typical_p": (1.0,),
    "tfs_z": (1.0,),
    "mirostat": (0,),
    "dynatemp_range": (0.0,),
    "xtc_probability": (0.0,),
    "dry_multiplier": (0.0,),
    "repeat_last_n": (-1,),
    "n_probs": (0,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "logits_processors": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "prompt_logprobs": (),
}


class Body(Struct, kw_only=True):
    """A JSON object from a client, with the rules for the names it may use."""

    ignored: ClassVar[frozenset[str]] = frozenset()
    # Name -> the values that ask for nothing and are therefore accepted.
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    # What other servers call a field -> its name here, and the values that leave it out.
    aliases: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {}
    # Name -> the body of its objects, or of the objects in its list.
    nested: ClassVar[dict[str, type[Body]]] = {}


class StreamOptions(Body, kw_only=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    ignored = frozenset({"include_obfuscation"})


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
    include_stop_str_in_output: bool | UnsetType = UNSET
    truncate_prompt_tokens: int | UnsetType = UNSET
    response_format: dict[str, Any] | UnsetType = UNSET
    structured_outputs: dict[str, Any] | UnsetType = UNSET
    cache_salt: str = ""
    priority: int = 0
    stream: bool = False
    stream_options: StreamOptions | UnsetType = UNSET
    return_progress: bool = False  # of the prompt, in a stream
    nested: ClassVar[dict[str, type[Body]]] = {"stream_options": StreamOptions}
    aliases: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {
        "n_predict": ("max_tokens", (-1,)),
        "repeat_penalty": ("repetition_penalty", ()),
    }

    @property
    def asked_max_tokens(self) -> int | UnsetType:
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not UNSET and self.stream_options.include_usage

    @property
    def has_continuous_usage(self) -> bool:
        """Whether every chunk has the usage so far."""
        return (
            self.includes_usage
            and self.stream_options is not UNSET
            and self.stream_options.continuous_usage_stats
        )


class CompletionBody(SamplingBody, kw_only=True):
    """POST /v1/completions."""

    # One text, one list of token ids, or a list of either kind (`validation.split_prompts`).
    prompt: str | list[int | str | list[int]]
    echo: bool = False
    logprobs: int | UnsetType = UNSET
    best_of: int | UnsetType = UNSET
    add_special_tokens: bool = True
    suffix: str = ""
    ignored = BOOKKEEPING
    unsupported = NEUTRAL


class Message(Body, kw_only=True):
    """One message of a conversation; `sandwich.text.messages` says what may be in it."""

    role: str
    content: str | list[str | dict[str, Any]] | UnsetType = UNSET
    name: str | UnsetType = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    ignored = frozenset({"annotations", "refusal", "reasoning_details", "id", "status"})
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"function_call": (), "audio": ()}


CHAT_UNSUPPORTED: dict[str, tuple[Any, ...]] = NEUTRAL | {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "verbosity": ("medium",),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "best_of": (1,),
}


class ChatBody(SamplingBody, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | UnsetType = UNSET
    logprobs: bool = False
    top_logprobs: int | UnsetType = UNSET
    add_generation_prompt: bool | UnsetType = UNSET
    continue_final_message: bool = False
    add_special_tokens: bool | UnsetType = UNSET
    chat_template_kwargs: dict[str, Any] = {}
    reasoning_effort: str | UnsetType = UNSET
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    ignored = BOOKKEEPING
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


class ReasoningOptions(Body, kw_only=True):
    effort: str | UnsetType = UNSET
    ignored = frozenset({"summary", "generate_summary"})


class TextOptions(Body, kw_only=True):
    format: dict[str, Any] | UnsetType = UNSET
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}


class ResponsesBody(Body, kw_only=True):
    """POST /v1/responses."""

    model: str | UnsetType = UNSET
    input: str | list[dict[str, Any]]
    instructions: str | UnsetType = UNSET
    max_output_tokens: int | UnsetType = UNSET
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    min_p: float | UnsetType = UNSET
    repetition_penalty: float | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    stop: str | list[str] | UnsetType = UNSET
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    text: TextOptions | UnsetType = UNSET
    reasoning: ReasoningOptions | UnsetType = UNSET
    include: list[str] = []
    top_logprobs: int | UnsetType = UNSET
    chat_template_kwargs: dict[str, Any] = {}
    cache_salt: str = ""
    priority: int = 0
    metadata: dict[str, str] = {}
    stream: bool = False
    stream_options: StreamOptions | UnsetType = UNSET
    ignored = BOOKKEEPING - {"metadata"}
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "previous_response_id": (),
        "conversation": (),
        "prompt": (),
        "background": (False,),
        "truncation": ("disabled",),
        "max_tool_calls": (),
    }
    nested: ClassVar[dict[str, type[Body]]] = {
        "text": TextOptions,
        "reasoning": ReasoningOptions,
        "stream_options": StreamOptions,
    }


class PoolingBody(Body, kw_only=True):
    """What all that embed texts have in common."""

    model: str | UnsetType = UNSET
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | UnsetType = UNSET
    cache_salt: str = ""
    priority: int = 0
    ignored = BOOKKEEPING


class EmbeddingBody(PoolingBody, kw_only=True):
    """POST /v1/embeddings."""

    # As the prompt of a completion.
    input: str | list[int | str | list[int]]
    encoding_format: str = "float"
    dimensions: int | UnsetType = UNSET
    pooling: str | UnsetType = UNSET


class ScoreBody(PoolingBody, kw_only=True):
    """POST /v1/score."""

    text_1: str | list[str]
    text_2: str | list[str]
    aliases: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {
        "queries": ("text_1", ()),
        "documents": ("text_2", ()),
    }


class TextDocument(Body, kw_only=True):
    text: str


class RerankBody(PoolingBody, kw_only=True):
    """POST /v1/rerank."""

    query: str
    documents: list[str | TextDocument]
    top_n: int | UnsetType = UNSET
    return_documents: bool = True
    nested: ClassVar[dict[str, type[Body]]] = {"documents": TextDocument}


class TokenizeBody(Body, kw_only=True):
    """POST /tokenize: a `prompt`, or `messages` that go through the chat template first."""

    model: str | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    messages: list[Message] | UnsetType = UNSET
    add_special_tokens: bool | UnsetType = UNSET
    add_generation_prompt: bool | UnsetType = UNSET
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = {}
    nested: ClassVar[dict[str, type[Body]]] = {"messages": Message}


class DetokenizeBody(Body, kw_only=True):
    """POST /detokenize."""

    model: str | UnsetType = UNSET
    tokens: list[int]
