"""Text and conversations to token ids and back, as transformers does it; text piece by piece."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import tokenizers

from sandwich.checkpoint.tokenizer_files import TokenizerFiles, read_tokenizer
from sandwich.errors import ModelError
from sandwich.text.chat_renderer import ChatRenderer, RenderedChat
from sandwich.text.chat_template import ChatTemplate
from sandwich.text.control_tokens import MarkedEncoder, special_token_pattern
from sandwich.text.messages import Chat
from sandwich.text.token_bytes import TokenBytes

_log = logging.getLogger(__name__)

_ID_LIMIT: Final = 1 << 32  # the library takes no id beyond
_NUM_CONTEXT_TOKENS: Final = 6  # of the prompt: enough to hold one whole character of text


class ChatPrompt(NamedTuple):
    """A rendered conversation: its text, and its token ids."""

    text: str
    token_ids: list[int]


class Tokenizer:
    """The tokenizer of a model. Thread-safe. Decoding never tidies up spaces."""

    def __init__(
        self,
        source: str | Path | TokenizerFiles,
        chat_template: str | None = None,
        *,
        special_tokens_in_content: bool = False,
    ) -> None:
        """`source`: a Hugging Face folder, or what was read of a model.

        `chat_template`: a file, or Jinja text, to use instead of the model's own.
        `special_tokens_in_content`: read special tokens inside messages as control tokens; else
        they are text there. Raises ModelError if the folder has no readable tokenizer.json, or the
        template cannot be used.
        """
        files = source if isinstance(source, TokenizerFiles) else read_tokenizer(Path(source))
        self.special_tokens = files.special_tokens
        self._backend = files.backend
        self._bytes = TokenBytes(_decoder_state(self._backend))
        self._has_warned_of_bos = threading.Event()
        added = self._backend.get_added_tokens_decoder().values()
        special = () if special_tokens_in_content else (t.content for t in added if t.special)
        templates = (
            {"default": _given_template(chat_template)} if chat_template else files.chat_templates
        )
        self._renderer = ChatRenderer(
            templates, self.special_tokens, special_token_pattern(special)
        )
        if chat_template:
            self.chat_template()  # a bad one is refused now, not at the first request

    # ---- facts ----

    @property
    def vocab_size(self) -> int:
        """Number of ids in use; a model's vocabulary may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that never become text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of("eos_token")

    @property
    def has_chat_template(self) -> bool:
        return self._renderer.has_template

    def to_json(self) -> str:
        """The tokenizer as a tokenizer.json, tokens of the other files included."""
        return self._backend.to_str()

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary, as the vocabulary writes it."""
        return self._backend.token_to_id(token)

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_id(token)

    # ---- text -> ids ----

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with what the model wants around it (such as BOS) by default."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """As `encode` for each text, on several cores."""
        encodings = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in encodings]

    def encode_prompts(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """As `encode_batch`, but a text that begins with BOS itself is not given another one."""
        ids = self.encode_batch(texts, add_special_tokens)
        return [self._with_one_bos(each) for each in ids] if add_special_tokens else ids

    def _with_one_bos(self, token_ids: list[int]) -> list[int]:
        bos = self.bos_token_id
        if not self.adds_bos or token_ids[:2] != [bos, bos]:
            return token_ids
        if not self._has_warned_of_bos.is_set():
            self._has_warned_of_bos.set()
            _log.warning(
                "a prompt begins with %s, which this model's tokenizer adds by itself; one of the "
                "two is left out, here and in later prompts",
                self.special_tokens["bos_token"],
            )
        return token_ids[1:]

    @cached_property
    def adds_bos(self) -> bool:
        """Whether a text begins with BOS once it is encoded."""
        return self.bos_token_id is not None and self.encode("")[:1] == [self.bos_token_id]

    # ---- ids -> text ----

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; bytes that are no UTF-8 become U+FFFD, unknown ids nothing."""
        known = [token_id for token_id in token_ids if 0 <= token_id < _ID_LIMIT]
        return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, a leading space included; empty for an unknown id."""
        token = self._token(token_id)
        if token is None:
            return b""
        return token.encode() if token_id in self.special_ids else self._bytes.of(token)

    def token_text(self, token_id: int) -> str:
        """One token as text, for lists of log probabilities; half a character shows as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def is_text(self, token_id: int) -> bool:
        """Whether the id becomes text: known, and not special."""
        return token_id not in self.special_ids and self._token(token_id) is not None

    def num_open_tokens(self, pending: Sequence[int]) -> int:
        """As TokenBytes.num_open, for ids for which `is_text` holds."""
        return self._bytes.num_open([self._token(token_id) or "" for token_id in pending])

    def _token(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id) if 0 <= token_id < _ID_LIMIT else None

    # ---- chat ----

    def chat_template(self, has_tools: bool = False) -> ChatTemplate:
        """The compiled template; InvalidRequestError if the model has none."""
        return self._renderer.template(has_tools)

    def render_chat(self, chat: Chat) -> str:
        """The prompt's text. Raises InvalidRequestError as `encode_chats` does."""
        return self._renderer.render(chat).plain_text

    def encode_chats(self, chats: Sequence[Chat]) -> list[ChatPrompt]:
        """The prompt of each conversation: what templates write, with contents as text.

        Raises InvalidRequestError if there is no template, it refuses the messages, or a message is
        of a form that no model can be told.
        """
        rendered = [self._renderer.render(chat) for chat in chats]
        return [self._encode_chat(*pair) for pair in zip(chats, rendered, strict=True)]

    def _encode_chat(self, chat: Chat, rendered: RenderedChat) -> ChatPrompt:
        if rendered.marks is None:
            [ids] = self.encode_prompts([rendered.text], chat.add_special_tokens)
            return ChatPrompt(rendered.text, ids)
        ids = self._marked.encode(rendered.text, rendered.marks)
        bos = self.bos_token_id
        if bos is not None and chat.add_special_tokens and self.adds_bos and ids[:1] != [bos]:
            ids = [bos, *ids]
        return ChatPrompt(rendered.plain_text, ids)

    @cached_property
    def _marked(self) -> MarkedEncoder:
        return MarkedEncoder(self._backend)


class IncrementalDetokenizer:
    """Text of a token stream, piece by piece, as early as it is certain.

    No piece holds part of a character, and the pieces joined are what `decode` makes of
    prompt + output, minus the text of the prompt. Costs two short decodes for a token.

    Invariant: the text of `_context` is emitted (or belongs to the prompt); `_pending` is not.
    `_context` is there because a decoder may treat the first token of a text in its own way.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []
        texts = (token_id for token_id in reversed(prompt_ids) if tokenizer.is_text(token_id))
        for token_id in reversed(list(islice(texts, _NUM_CONTEXT_TOKENS))):
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """Add one token; returns the text that is certain now, often empty."""
        if not self._tokenizer.is_text(token_id):
            return ""
        self._pending.append(token_id)
        return self._release(len(self._pending) - self._tokenizer.num_open_tokens(self._pending))

    def flush(self) -> str:
        """The stream has ended: the rest of the text, with U+FFFD for an incomplete character."""
        return self._release(len(self._pending))

    def _release(self, count: int) -> str:
        if count == 0:
            return ""
        group, self._pending = self._pending[:count], self._pending[count:]
        text = self._tokenizer.decode(self._context + group)
        piece = text[len(self._context_text) :]
        if group_text := self._tokenizer.decode(group):
            self._context, self._context_text = group, group_text
        else:  # its text depends on what stands before it, so that stays
            self._context, self._context_text = self._context + group, text
        return piece


def _decoder_state(backend: tokenizers.Tokenizer) -> bytes:
    return b"null" if backend.decoder is None else bytes(backend.decoder.__getstate__())


def _given_template(text: str) -> str:
    if "{%" in text or "{{" in text or "\n" in text:
        return text
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"chat template {text!r} cannot be read: {error}; give a file") from error
