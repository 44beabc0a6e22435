"""Prompts that are filled in the middle: between a prefix and a suffix, by tokens made for that.

Prefix, suffix, then what is missing (PSM; Bavarian et al., arXiv 2207.14255). Models that want
another order (Codestral) are not known here.
"""

from __future__ import annotations

from typing import Final

from sandwich.errors import InvalidRequestError
from sandwich.text.tokenizer import Tokenizer

# In front of the prefix, of the suffix, and of the middle.
_FAMILIES: Final = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


def infill_prompt(
    tokenizer: Tokenizer, prefix: str, suffix: str, add_special_tokens: bool = True
) -> list[int]:
    """Token ids of a prompt whose continuation stands between `prefix` and `suffix`.

    Raises InvalidRequestError if the tokenizer has no tokens for it.
    """
    for family in _FAMILIES:
        begin, hole, end = (tokenizer.token_id(token) for token in family)
        if begin is None or hole is None or end is None:
            continue
        first, second = tokenizer.encode_batch([prefix, suffix], add_special_tokens=False)
        start = tokenizer.encode("")[:1] if add_special_tokens and tokenizer.adds_bos else []
        return [*start, begin, *first, hole, *second, end]
    raise InvalidRequestError(
        "this model's tokenizer has no tokens to fill in a middle; leave `suffix` out",
        "suffix",
        "unsupported_parameter",
    )
