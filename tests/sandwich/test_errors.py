"""Errors carry what the server and the user need."""

from __future__ import annotations

from sandwich.errors import (
    ContextLengthError,
    InvalidRequestError,
    MemoryLimitError,
    QueueFullError,
    SandwichError,
)


def test_a_context_length_error_is_an_invalid_request_about_the_prompt() -> None:
    error = ContextLengthError("too long")
    assert isinstance(error, InvalidRequestError)
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")
    assert str(error) == error.message == "too long"


def test_a_memory_error_names_need_limit_and_remedy() -> None:
    error = MemoryLimitError(3 * 2**20, 2**20, "take a smaller model", what="the KV cache")
    expected = "the KV cache needs 3.0 MiB (3145728 bytes) but the limit is 1.0 MiB (1048576 bytes)"
    assert str(error) == f"{expected}; take a smaller model"
    assert (error.needed, error.limit, error.remedy) == (3 * 2**20, 2**20, "take a smaller model")


def test_a_full_queue_says_when_to_come_back() -> None:
    error = QueueFullError("full", retry_after_s=2.5)
    assert isinstance(error, SandwichError)
    assert error.retry_after_s == 2.5
