"""The bodies that clients get, as types. One writer of every response field's name.

A field at UNSET is left out; None is written as null.
"""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType


class PromptTokensDetails(Struct):
    cached_tokens: int = 0


class CompletionTokensDetails(Struct):
    reasoning_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET  # if the model reasons
    max_completion_tokens: int | UnsetType = UNSET  # what fits, where more was asked for


class Timings(Struct):
    """Prefill and decode apart, in the names of llama.cpp. Milliseconds and tokens per second."""

    cache_n: int  # prompt tokens found in the cache
    prompt_n: int  # the others
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class PromptProgress(Struct):
    """How far the prompts of a call are, in the names of llama.cpp."""

    total: int  # tokens
    cache: int  # of those, found in the cache
    processed: int  # of all, done so far
    time_ms: float  # since the call came


class CompletionLogprobs(Struct):
    """Parallel lists, one entry per token; the first token of a prompt has no logprob."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Completion(Struct, kw_only=True):
    """A whole text completion, or one chunk of a streamed one: OpenAI gives both the same shape."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]


class Function(Struct):
    arguments: str  # JSON, as the model wrote it
    name: str | UnsetType = UNSET


class ToolCall(Struct):
    id: str
    function: Function
    type: str = "function"


class ToolCallPart(Struct):
    """More of a call, in a stream: the first part has id and name."""

    index: int
    function: Function
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatMessage(Struct):
    content: str | None
    role: str = "assistant"
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None = None


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings


class Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallPart] | UnsetType = UNSET


class ChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET


class ChatCompletionChunk(Struct, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET


class ModelCard(Struct, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "sandwich"
    root: str
    parent: str | None = None
    max_model_len: int


class ModelList(Struct, kw_only=True):
    object: str = "list"
    data: list[ModelCard]


class Health(Struct):
    status: str


class Version(Struct):
    version: str


class Tokens(Struct):
    tokens: list[int]
    count: int
    max_model_len: int


class Text(Struct):
    prompt: str


class PlanStatus(Struct):
    """Why the plans are as they are, in words, and the cores of each phase as an SVG picture."""

    prefill: str
    decode: str
    mixed: str
    picture: str


class PhaseStatus(Struct):
    num_steps: int
    num_tokens: int
    step_seconds: float


class EngineStatus(Struct, kw_only=True):
    """What the engine is, and its counters since the start; shares are from 0 to 1."""

    version: str
    model: str
    max_model_len: int
    machine: str
    isa: str
    weights: str
    kv_cache: str
    plans: PlanStatus
    num_requests_running: int
    num_requests_waiting: int
    kv_cache_usage: float
    prompt_tokens: int
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    plan_switches: int
    time_to_first_token: float | None  # seconds, of the request that began to answer last
    phases: dict[str, PhaseStatus]
