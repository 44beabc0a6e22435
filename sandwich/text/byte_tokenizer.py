"""A tokenizer for models without one: each byte is a token."""

from __future__ import annotations

from typing import Final

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sandwich.checkpoint.tokenizer_files import TokenizerFiles

_FIRST_ID: Final = 3  # of the bytes; ids below are mostly special


def byte_tokenizer() -> TokenizerFiles:
    """Ids 3 to 258 are the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: _FIRST_ID + index for index, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return TokenizerFiles(backend, special_tokens={}, chat_templates={})
