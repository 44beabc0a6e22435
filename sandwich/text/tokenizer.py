"""Text to token ids and back: the tokenizer of a Hugging Face folder, and text piece by piece.

Reads `tokenizer.json` and `tokenizer_config.json` and behaves as transformers does, without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final

import tokenizers

from sandwich.checkpoint.fields import read_json
from sandwich.errors import InvalidRequestError, ModelError
from sandwich.text.chat_template import ChatTemplate, Message
from sandwich.text.token_bytes import TokenBytes

_SPECIAL_TOKEN_NAMES: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_ID_LIMIT: Final = 1 << 32  # the library takes no id beyond
_NUM_CONTEXT_TOKENS: Final = 6  # of the prompt: enough to hold one whole character of text


class Tokenizer:
    """The tokenizer of the model in `folder`. Thread-safe. Decoding never tidies up spaces.

    Raises ModelError if the folder has no readable tokenizer.json.
    """

    def __init__(self, folder: str | Path, chat_template: str | None = None) -> None:
        """`chat_template`: a file, or Jinja text, to use instead of the model's own."""
        self.folder = Path(folder)
        config_file = self.folder / "tokenizer_config.json"
        config = read_json(config_file) if config_file.is_file() else {}
        self.special_tokens = _named_special_tokens(config)
        self._backend = _load_backend(self.folder / "tokenizer.json", self.special_tokens.values())
        self._bytes = TokenBytes(_decoder_state(self._backend))
        self._template_source = (
            _given_template(chat_template) if chat_template else _own_template(self.folder, config)
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
        return self._template_source is not None

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)

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

    def chat_template(self) -> ChatTemplate:
        """The compiled template; InvalidRequestError if the model has none."""
        return self._compiled_template

    @cached_property
    def _compiled_template(self) -> ChatTemplate:
        if self._template_source is None:
            raise InvalidRequestError(
                "this model has no chat template; use /v1/completions or `sandwich complete`, "
                "or give a template with --chat-template",
                param="messages",
            )
        return ChatTemplate(self._template_source, self.special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt for `messages`. Encode it with `add_special_tokens=False`: they are in it.

        Raises InvalidRequestError if there is no template or it refuses the messages.
        """
        return self.chat_template().render(
            messages, add_generation_prompt=add_generation_prompt, **variables
        )


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


def _load_backend(path: Path, special_tokens: Iterable[str]) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelError(
            f"{path.parent} has no tokenizer.json; transformers makes one of other files: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path} is not a tokenizer: {error}; fetch the model again") from error
    backend.no_truncation()
    backend.no_padding()
    known = [token for token in special_tokens if backend.token_to_id(token) is not None]
    backend.add_special_tokens(known)
    return backend


def _decoder_state(backend: tokenizers.Tokenizer) -> bytes:
    return b"null" if backend.decoder is None else bytes(backend.decoder.__getstate__())


def _named_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and so on -> text; a token is written as a string or as {"content": ...}."""
    found = {}
    for name in _SPECIAL_TOKEN_NAMES:
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _given_template(text: str) -> str:
    if "{%" in text or "{{" in text or "\n" in text:
        return text
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"chat template {text!r} cannot be read: {error}; give a file") from error


def _own_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The model's template: its file wins; a list of named ones gives the one called "default"."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
