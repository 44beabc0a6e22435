from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from sandwich.cli.local_model import Reply, print_reply
from sandwich.config import EngineConfig
from sandwich.errors import SandwichError
from sandwich.text.messages import Chat
from sandwich.text.output import OutputDelta
from sandwich.text.tokenizer import ChatPrompt, Tokenizer

Run = Callable[..., Any]


# ---- complete ----


def test_complete_prints_the_continuation_and_nothing_else(
    run: Run, built: list[EngineConfig], make_parts: Callable[..., Any]
) -> None:
    argv = ["complete", "def add", "--temperature", "0", "--max-tokens", "8", "--dtype", "bf16"]
    out, err = run(*argv)
    engine, tokenizer = make_parts().engine, make_parts().tokenizer
    ids = engine.executor.continuation(tokenizer.encode("def add"), 8)
    end = ids.index(1) if 1 in ids else len(ids)
    assert (out, err) == (tokenizer.decode(ids[:end]) + "\n", "")
    assert (built[0].model, built[0].dtype) == ("smollm2", "bfloat16")


@pytest.mark.usefixtures("built")
def test_complete_reads_stdin_echoes_and_tells_its_speed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("def add"))
    out, err = run("complete", "-", "--echo", "--stats", "--seed", "1", "--stop", "é")
    assert out.startswith("def add")
    assert "tokens, first after" in err


def test_complete_takes_a_model(run: Run, built: list[EngineConfig]) -> None:
    run("complete", "a", "--model", "some/model", "--max-tokens", "1")
    assert built[0].model == "some/model"


@pytest.mark.usefixtures("built")
def test_an_interrupted_completion_ends_with_the_code_of_shells(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = Reply("a", 1, 0.0, 0.0, is_interrupted=True)
    monkeypatch.setattr("sandwich.cli.complete.print_reply", lambda deltas: reply)
    assert run("complete", "a", code=130).err == ""


# ---- replies ----


def deltas(*texts: str) -> Iterator[OutputDelta]:
    for text in texts:
        yield OutputDelta(text, (70,))


def test_an_interrupt_ends_the_reply_and_keeps_what_was_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted() -> Iterator[OutputDelta]:
        yield OutputDelta("a", (70,))
        signal.raise_signal(signal.SIGINT)
        yield OutputDelta("b", (70,))
        raise AssertionError("asked for more after the interrupt")

    handler = signal.getsignal(signal.SIGINT)
    reply = print_reply(interrupted())
    assert (reply.text, reply.num_tokens, reply.is_interrupted) == ("ab", 2, True)
    assert capsys.readouterr().out == "ab"
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_interrupt_does_not_wait_for_the_step() -> None:
    def stuck() -> Iterator[OutputDelta]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield OutputDelta()

    with pytest.raises(KeyboardInterrupt):
        print_reply(stuck())


def test_a_failed_reply_is_an_error() -> None:
    with pytest.raises(SandwichError, match="the step failed"):
        print_reply(iter([OutputDelta(finish_reason="error", error="the step failed")]))


@pytest.mark.parametrize(
    ("reply", "summary"),
    [
        (Reply("", 0, 0.25, 0.25, False), "0 tokens, first after 250 ms"),
        (Reply("a", 1, 0.5, 0.5, True), "1 tokens, first after 500 ms, interrupted"),
        (Reply("a", 11, 0.5, 1.5, False), "11 tokens, first after 500 ms, 10.0 tokens/s"),
    ],
)
def test_a_reply_tells_its_speed(reply: Reply, summary: str) -> None:
    assert reply.summary() == summary


# ---- chat ----


def chat(run: Run, monkeypatch: pytest.MonkeyPatch, lines: str, *argv: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return run("chat", *argv, "--temperature", "0", "--max-tokens", "4").out


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The conversations that the model was asked to go on with."""
    seen: list[list[Any]] = []
    encode = Tokenizer.encode_chats

    def record(self: Tokenizer, chats: Sequence[Chat]) -> list[ChatPrompt]:
        seen.extend(list(chat.messages) for chat in chats)
        return encode(self, chats)

    monkeypatch.setattr(Tokenizer, "encode_chats", record)
    return seen


@pytest.mark.usefixtures("built")
def test_a_chat_remembers_until_it_is_cleared(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[Any]],
) -> None:
    chat(run, monkeypatch, "hello\n\nagain\n/clear\nnew\n", "--system", "Be brief.")
    roles = [[message["role"] for message in messages] for messages in prompts]
    assert roles == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user"],
    ]
    assert prompts[1][1]["content"] == "hello"


@pytest.mark.usefixtures("built")
def test_a_chat_ends_with_exit(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[Any]],
) -> None:
    out = chat(run, monkeypatch, "/what\n/exit\nnever\n")
    assert prompts == []
    assert "unknown command /what" in out


@pytest.mark.usefixtures("built")
def test_a_message_that_is_too_long_does_not_end_the_chat(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[Any]],
) -> None:
    out = chat(run, monkeypatch, "x " * 200 + "\nshort\n")
    assert "(/clear starts anew)" in out
    assert prompts[1] == [{"role": "user", "content": "short"}]
