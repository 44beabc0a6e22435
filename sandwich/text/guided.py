"""Grammars -> masks over the vocabulary, by llguidance: a reply that always fits its grammar.

A grammar is compiled once and kept; each request goes its own way through it. The first use reads
the tokenizer into llguidance, which takes about a second for a vocabulary of 128k.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sandwich.errors import InvalidRequestError, SandwichError
from sandwich.requests.grammar import Grammar
from sandwich.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_NUM_KEPT: Final = 64  # compiled grammars, the last used ones
# So that no model can go on with spaces for ever.
_WHITESPACE: Final = r"[ \n\r\t]{1,16}"
_MAX_MESSAGE: Final = 300  # characters of llguidance's words


class GrammarStuckError(SandwichError):
    """A grammar that compiled cannot go on: a limit of the parser, or a token it did not allow."""


class GrammarProcessor:
    """The way of one request through a grammar; a `LogitsProcessor`."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)

    def mask(self, row: npt.NDArray[np.float32]) -> None:
        """Keep what may come next; once the text is complete, that is the end of sequence."""
        bits = self._bits
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error():
            message = self._matcher.get_error()[:_MAX_MESSAGE]
            raise GrammarStuckError(f"the reply's grammar cannot go on: {message}")
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: len(row)]
        np.copyto(row, -np.inf, where=allowed == 0)

    def accept(self, token_id: int) -> None:
        """A token that does not fit ends the matcher in an error, which the next mask tells."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)


class CompiledGrammar:
    """A grammar for one vocabulary."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def processor(self) -> GrammarProcessor:
        """For one more request, at the grammar's begin."""
        return GrammarProcessor(self._matcher.deep_copy(), self._vocab_size)


class GrammarCompiler:
    """Compiles grammars for one model and keeps them. Thread-safe; not for an event loop."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """`vocab_size`: of the model's logits, which may be padded beyond the tokenizer's."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The compiled grammar. Raises InvalidRequestError if it is none, or asks too much."""
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
            vocabulary = self._vocabulary
        compiled = self._compiled(grammar, vocabulary)
        with self._lock:
            self._kept[grammar] = compiled
            while len(self._kept) > _NUM_KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _compiled(self, grammar: Grammar, vocabulary: LLTokenizer) -> CompiledGrammar:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(vocabulary, _source(grammar), log_level=0)
        except ValueError as error:
            raise _refusal(grammar, str(error)) from error
        if matcher.is_error():
            raise _refusal(grammar, matcher.get_error())
        return CompiledGrammar(matcher, self._vocab_size)

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if not self._eos_token_ids:
            raise InvalidRequestError(
                "this model has no end-of-sequence token, without which a reply cannot follow a "
                "grammar; leave response_format out",
                "response_format",
            )
        return LLTokenizer(
            self._tokenizer.to_json(), n_vocab=self._vocab_size, eos_token=self._eos_token_ids
        )


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance takes it."""
    from llguidance import LLMatcher, gbnf_to_lark

    match grammar.kind:
        case "json_schema":
            options: Any = {"whitespace_pattern": _WHITESPACE, "lenient": not grammar.is_strict}
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides=options)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "choice":
            texts = " | ".join(json.dumps(text) for text in json.loads(grammar.text))
            return LLMatcher.grammar_from_lark(f"start: {texts}")
        case "grammar":
            return LLMatcher.grammar_from_lark(gbnf_to_lark.any_to_lark(grammar.text))


def _refusal(grammar: Grammar, words: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the {grammar.kind.replace('_', ' ')} cannot be used: {words.strip()[:_MAX_MESSAGE]}",
        "response_format",
        "invalid_grammar",
    )
