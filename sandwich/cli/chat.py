"""`sandwich chat [MODEL]`: a conversation in the terminal, in this process, without a server."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing, suppress

from rich.console import Console

from sandwich.cli.local_model import (
    add_generation_arguments,
    open_llm,
    print_reply,
    sampling_params,
)
from sandwich.cli.options import add_model_argument
from sandwich.errors import InvalidRequestError
from sandwich.llm import LLM
from sandwich.requests.sampling_params import SamplingParams
from sandwich.text.messages import Message

_MAX_TOKENS = 512
_HELP = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops a reply"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told beforehand")
    add_generation_arguments(parser, _MAX_TOKENS)


def main(args: argparse.Namespace) -> None:
    console = Console(highlight=False, markup=False)
    with suppress(ImportError):  # some builds of Python lack it; it only edits and recalls lines
        import readline  # noqa: F401
    with open_llm(args) as llm:
        params = sampling_params(args, llm)
        llm.tokenizer.chat_template()  # a model without one is refused before anybody types
        console.print(_HELP, style="dim")
        _Conversation(llm, params, args.system, console).run()


class _Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None, console: Console
    ) -> None:
        self._llm = llm
        self._params = params
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._system)
        self._console = console

    def run(self) -> None:
        while (line := self._read_line()) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/clear":
                    self._messages = list(self._system)
                case command if command.startswith("/"):
                    self._console.print(f"unknown command {command}; {_HELP}", style="dim")
                case text:
                    self._answer(text)

    def _read_line(self) -> str | None:
        """What the user typed; None at the end of the input."""
        try:
            if sys.stdin.isatty():
                return self._console.input("> ")
            return sys.stdin.readline() or None
        except EOFError:
            return None

    def _answer(self, text: str) -> None:
        asked = [*self._messages, {"role": "user", "content": text}]
        try:
            with closing(self._llm.chat_stream(asked, self._params)) as deltas:
                reply = print_reply(deltas)
        except InvalidRequestError as error:  # too long, or refused by the template
            self._console.print(f"{error} (/clear starts anew)", style="red")
            return
        self._messages = [*asked, {"role": "assistant", "content": reply.text}]
        self._console.print()
        self._console.print(reply.summary(), style="dim")
