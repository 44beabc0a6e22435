"""The tokenizer in a GGUF file's metadata, as a `tokenizers` object that gives the same ids.

Two kinds: byte-level BPE ("gpt2"), whose merges are listed and whose way to cut a text into words
has a name; and SentencePiece's BPE ("llama") with scores, or its unigrams ("t5").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from sandwich.checkpoint.gguf.header import Header
from sandwich.checkpoint.gguf.vocabulary import PREFIX, TokenKind, Vocabulary
from sandwich.checkpoint.gguf.words import WORDS
from sandwich.checkpoint.tokenizer_files import TokenizerFiles
from sandwich.errors import ModelError

_SPACE_MARK: Final = "▁"
_SPECIAL: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # the specification spells it so
    "mask_token": "mask_token_id",
}
_END_IDS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
# What ends a turn where `eot_token_id` does not say so.
_ENDS_OF_TURN: Final = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")


def read_tokenizer(header: Header) -> TokenizerFiles:
    """The tokenizer. Raises ModelError if there is none, or one of a kind that is not known."""
    vocabulary = Vocabulary(header)
    kind = vocabulary.get("model")
    if kind not in _BUILDERS:
        raise vocabulary.error("model", f"supported: {', '.join(_BUILDERS)}")
    try:
        backend, adds_bos = _BUILDERS[kind](vocabulary)
        _add_tokens(backend, vocabulary)
    except ModelError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{header.file}: its tokenizer is damaged: {error}") from error
    named = {name: token for name, key in _SPECIAL.items() if (token := vocabulary.token(key))}
    _frame(backend, vocabulary, named, adds_bos)
    return TokenizerFiles(backend, named, _chat_templates(header.metadata))


def end_token_ids(header: Header) -> list[int]:
    """Ids that end a reply: those that are named, and the usual marks of an end of turn."""
    ids = [header.metadata.get(PREFIX + key) for key in _END_IDS]
    tokens = header.metadata.get(PREFIX + "tokens", ())
    types = header.metadata.get(PREFIX + "token_type", ())
    if isinstance(tokens, list) and isinstance(types, list):
        control = [i for i, kind in enumerate(types[: len(tokens)]) if kind == TokenKind.CONTROL]
        ids += [index for index in control if tokens[index] in _ENDS_OF_TURN]
    return list(dict.fromkeys(index for index in ids if isinstance(index, int)))


def _byte_level(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """Byte-level BPE, as GPT-2's; and whether a text begins with BOS unless the file says."""
    name = vocabulary.get("pre")
    if name not in WORDS:
        raise vocabulary.error("pre", f"supported: {', '.join(WORDS)}")
    words = WORDS[name]
    merges = [_merge(vocabulary, text) for text in vocabulary.strings("merges")]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary.ids(),
            merges=merges,
            ignore_merges=words.ignores_merges,
            fuse_unk=False,
        )
    )
    if words.is_composed:
        backend.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if words.has_single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if words.expression:
        steps.append(pre_tokenizers.Split(Regex(words.expression), "isolated"))
    use_regex = not words.expression
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend, words.adds_bos


def _merge(vocabulary: Vocabulary, text: str) -> tuple[str, str]:
    at = text.find(" ", 1)
    if at < 0:
        raise vocabulary.error("merges", f"{text[:80]!r} is not two parts with a space between")
    return text[:at], text[at + 1 :]


def _sentencepiece_bpe(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """SentencePiece's BPE: two pieces merge in the order of the score of what they make."""
    ids = vocabulary.ids()
    unknown = vocabulary.token("unknown_token_id")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_scored_merges(vocabulary, ids),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    _set_space_marks(backend, has_prefix=vocabulary.flag("add_space_prefix", default=True))
    return backend, True


def _unigram(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """SentencePiece's unigram model."""
    pairs = list(zip(vocabulary.tokens, vocabulary.scores(), strict=True))
    unknown = vocabulary.get("unknown_token_id")
    has_bytes = "<0x00>" in vocabulary.tokens
    backend = tokenizers.Tokenizer(models.Unigram(pairs, unknown, has_bytes))
    _set_space_marks(backend, has_prefix=vocabulary.flag("add_space_prefix", default=True))
    return backend, False


def _set_space_marks(backend: tokenizers.Tokenizer, has_prefix: bool) -> None:
    """Marks for spaces, and one in front of the text if `has_prefix`."""
    scheme = "first" if has_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE_MARK, scheme, split=False)
    steps: list[decoders.Decoder] = [
        decoders.Replace(_SPACE_MARK, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if has_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)


def _scored_merges(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first; of equal ones, the lowest ids."""
    found = []
    for token, score in zip(vocabulary.tokens, vocabulary.scores(), strict=True):
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in ids and right in ids:
                found.append((-score, ids[token], ids[left], left, right))
    found.sort(key=lambda entry: entry[:3])
    return [(left, right) for *_, left, right in found]


def _add_tokens(backend: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    """Tokens that are found in a text before it is cut: control tokens, and those a user added."""
    special = vocabulary.added(TokenKind.CONTROL, TokenKind.UNKNOWN)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    plain = vocabulary.added(TokenKind.USER_DEFINED)
    backend.add_tokens([AddedToken(token, normalized=False) for token in plain])


def _frame(
    backend: tokenizers.Tokenizer,
    vocabulary: Vocabulary,
    named: Mapping[str, str],
    adds_bos: bool,
) -> None:
    """Put BOS in front of a text and EOS behind it, if the file wants that."""
    parts = ["$A"]
    if vocabulary.flag("add_bos_token", adds_bos) and "bos_token" in named:
        parts.insert(0, named["bos_token"])
    if vocabulary.flag("add_eos_token", default=False) and "eos_token" in named:
        parts.append(named["eos_token"])
    special = [part for part in parts if part != "$A"]
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single=parts,
            special_tokens=[(token, backend.token_to_id(token)) for token in set(special)],
        )


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name, the usual one under "default"."""
    key = "tokenizer.chat_template"
    found = {
        name.removeprefix(key + "."): text
        for name, text in metadata.items()
        if name.startswith(key + ".") and isinstance(text, str)
    }
    default = metadata.get(key)
    return found | ({"default": default} if isinstance(default, str) else {})


_BUILDERS: Final[dict[Any, Callable[[Vocabulary], tuple[tokenizers.Tokenizer, bool]]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece_bpe,
    "t5": _unigram,
}
