from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandwich.text.byte_tokenizer import byte_tokenizer
from sandwich.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_tokenizer())


@given(text=st.text())
def test_every_byte_of_a_text_is_a_token(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert b"".join(map(TOKENIZER.token_bytes, ids)) == text.encode()
    assert TOKENIZER.decode(ids) == text


def test_ids_are_below_the_smallest_vocabulary() -> None:
    assert TOKENIZER.encode("".join(map(chr, range(0x800))))
    assert TOKENIZER.vocab_size == 256
    assert TOKENIZER.token_bytes(3) == b"!"
    assert TOKENIZER.token_bytes(2) == TOKENIZER.token_bytes(259) == b""
