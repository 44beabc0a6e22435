"""How byte-level tokenizers cut a text into words, by the names that GGUF files give to it."""

from __future__ import annotations

from typing import Final, NamedTuple

_GPT2: Final = ""  # the regular expression that ByteLevel has itself
_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2: Final = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
_CASED: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CASED_REST: Final = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN: Final = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_REST}"
_GPT4O: Final = (
    rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_REST}"
)


class Words(NamedTuple):
    """How a text is cut before merges are applied; the expressions are those of tokenizer.json."""

    expression: str
    has_single_digits: bool = False  # cut out first
    is_composed: bool = False  # Unicode's NFC first
    ignores_merges: bool = False  # a word that is a token is that token
    adds_bos: bool = False  # where the file does not say


# Value of `tokenizer.ggml.pre` -> how words are cut.
WORDS: Final = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), Words(_GPT2)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"),
        Words(_GPT2, has_single_digits=True),
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        Words(_LLAMA3, ignores_merges=True, adds_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Words(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Words(_QWEN2, is_composed=True)),
    "stablelm2": Words(_QWEN2),
    "tekken": Words(_TEKKEN, ignores_merges=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Words(_GPT4O)),
}
