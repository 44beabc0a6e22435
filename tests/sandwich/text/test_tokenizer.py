from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import example, given
from hypothesis import strategies as st

from sandwich.errors import InvalidRequestError, ModelError
from sandwich.text.messages import Chat
from sandwich.text.token_bytes import TokenBytes, incomplete_utf8_suffix
from sandwich.text.tokenizer import IncrementalDetokenizer, Tokenizer

Save = Callable[..., Path]
TOKENIZER_KINDS = ("byte_level", "byte_fallback", "metaspace")
CODE = "def add(a, b):\n    return a + b\n"
TEXTS = [
    "",
    "a",
    " a",
    "hello  world",
    "café 😀\n\n日本",
    "<s>a</s> b",
    "\ufffd",
    "a\x00b",
    CODE,
]
MESSAGES = [
    {"role": "system", "content": "Be {brief}."},
    {"role": "user", "content": "Héllo <b>\n 'x' </b> & \"y\""},
]
# Rows of the byte-fallback vocabulary: runs of bytes are common in it, so they are drawn often.
BYTE_IDS = {"byte_level": st.integers(4, 260), "byte_fallback": st.integers(3, 258)}


def pieces_of(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt or ())
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def token_ids(kind: str) -> st.SearchStrategy[list[int]]:
    any_id = st.one_of(st.integers(0, 320), st.sampled_from([-1, 2**32]))  # unknown ones too
    return st.lists(st.one_of(any_id, BYTE_IDS.get(kind, any_id)), max_size=24)


# ---- pieces of text ----


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@given(data=st.data())
def test_the_pieces_joined_are_the_decoded_text(
    tokenizers_by_kind: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    ids = data.draw(token_ids(kind))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@given(data=st.data())
def test_after_a_prompt_the_pieces_are_what_the_output_adds(
    tokenizers_by_kind: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    prompt = tokenizer.encode(data.draw(st.text("ab é", max_size=8)))
    ids = data.draw(token_ids(kind))
    added = tokenizer.decode(prompt + ids).removeprefix(tokenizer.decode(prompt))
    assert "".join(pieces_of(tokenizer, ids, prompt)) == added


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@given(text=st.text(max_size=12))
@example("😀é")
@example(" \ufffd\ufffd")
def test_no_piece_of_a_valid_text_holds_half_a_character(
    tokenizers_by_kind: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = "".join(pieces_of(tokenizer, ids))
    assert shown.count("\ufffd") == text.count("\ufffd")
    assert shown == text


def test_a_character_of_several_tokens_comes_with_its_last_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ß", add_special_tokens=False)
    assert len(ids) == 2
    assert pieces_of(tokenizer, ids) == ["", "ß", ""]


def test_an_incomplete_character_at_the_end_is_shown_as_such_by_flush(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aß", add_special_tokens=False)
    assert pieces_of(tokenizer, ids[:-1]) == ["a", "", "\ufffd"]


def test_a_wrong_byte_does_not_hold_back_what_follows(tokenizer: Tokenizer) -> None:
    [lead, _] = tokenizer.encode("ß", add_special_tokens=False)
    [letter] = tokenizer.encode("a", add_special_tokens=False)
    assert pieces_of(tokenizer, [lead, lead, letter]) == ["", "\ufffd", "\ufffda", ""]


def test_a_leading_space_is_kept_inside_a_text_and_after_a_prompt(
    tokenizers_by_kind: dict[str, Tokenizer],
) -> None:
    for kind in ("byte_fallback", "metaspace"):
        tokenizer = tokenizers_by_kind[kind]
        ids = tokenizer.encode("a a")
        assert pieces_of(tokenizer, ids) == ["a", " a", ""]
        assert pieces_of(tokenizer, ids, prompt=ids) == [" a", " a", ""]


def test_a_special_token_between_two_words_takes_no_space_away(
    tokenizers_by_kind: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers_by_kind["byte_fallback"]
    [word] = tokenizer.encode("a")
    assert tokenizer.eos_token_id is not None
    assert pieces_of(tokenizer, [word, tokenizer.eos_token_id, word]) == ["a", "", " a", ""]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"a", 0),
        ("é".encode(), 0),
        ("é".encode()[:1], 1),
        ("日".encode()[:2], 2),
        (b"a" + "😀".encode()[:3], 3),
        ("😀".encode(), 0),
        (b"\x80\x80\x80\x80", 0),  # no character begins like this
        (b"\xff", 0),
        (b"\xc0", 0),
    ],
)
def test_an_incomplete_character_is_recognised(data: bytes, expected: int) -> None:
    assert incomplete_utf8_suffix(data) == expected


# ---- bytes of tokens ----


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@given(text=st.text(max_size=12).filter(lambda text: not text.startswith(" ")))
def test_the_bytes_of_the_tokens_make_up_the_text(
    tokenizers_by_kind: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(tokenizer.token_bytes(token_id) for token_id in ids)
    prefix = b" " if kind == "byte_fallback" and text else b""
    assert joined == prefix + text.encode()


def test_a_single_token_has_a_text_of_its_own(tokenizer: Tokenizer) -> None:
    [lead, last] = tokenizer.encode("ß", add_special_tokens=False)
    assert tokenizer.token_text(lead) == tokenizer.token_text(last) == "\ufffd"
    assert tokenizer.token_text(0) == "<s>"
    assert tokenizer.token_text(10_000) == ""


def test_a_token_that_ends_one_character_and_begins_another_is_shown_with_what_it_ends() -> None:
    byte_level = TokenBytes(b'{"type": "ByteLevel"}')
    lead, middle, last = ("\u00c2", "\u00a5\u00e2", "\u0124\u00ac")  # of a yen and a euro sign
    assert b"".join(byte_level.of(t) for t in (lead, middle, last)) == "¥€".encode()
    assert byte_level.num_open([lead, middle]) == 2
    assert byte_level.num_open([lead, middle, last]) == 0
    assert byte_level.num_open([last, lead]) == 1


def test_a_tokenizer_without_a_decoder_has_plain_tokens() -> None:
    plain = TokenBytes(b"null")
    assert plain.of("<0x41>") == b"<0x41>"
    assert plain.num_open(["<0xC3>"]) == 0


# ---- as transformers does ----


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_ids_and_texts_are_those_of_transformers(
    tokenizer_folders: dict[str, Path], kind: str, add_special_tokens: bool
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_folders[kind])
    ours = Tokenizer(tokenizer_folders[kind])
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens)
        assert ids == theirs.encode(text, add_special_tokens=add_special_tokens)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode_batch(TEXTS) == [ours.encode(text) for text in TEXTS]


@pytest.mark.parametrize("config", [{"add_eos_token": True}, {"add_bos_token": False}])
def test_bos_and_eos_are_those_of_the_tokenizer_file(
    save_tokenizer: Save, tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = save_tokenizer(tmp_path, **config)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert Tokenizer(folder).encode("a b") == theirs.encode("a b")


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_chat_is_rendered_as_transformers_renders_it(
    save_tokenizer: Save,
    tokenizer_folders: dict[str, Path],
    tmp_path: Path,
    add_generation_prompt: bool,
) -> None:
    template = (
        "{%- set state = namespace(count=0) -%}\n"
        "{{ bos_token }}{{ strftime_now('%Y') }}\n"
        "{% for message in messages %}\n"
        "    {% if loop.index > 9 %}{% break %}{% endif %}\n"
        "    {% set state.count = state.count + 1 %}\n"
        "{{ state.count }}{{ message | tojson }}{{ message.content | trim }}\n"
        "{% generation %}[{{ message['role'] }}]{% endgeneration %}\n"
        "{% endfor %}\n"
        "{{ tools | tojson(indent=2) }}{% if add_generation_prompt %}>{% endif %}{{ eos_token }}"
    )
    folder = save_tokenizer(tmp_path, chat_template=template)
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    chat = Chat(messages=MESSAGES, add_generation_prompt=add_generation_prompt)
    assert Tokenizer(folder).render_chat(chat) == theirs


# ---- chat templates ----


def test_the_template_file_wins_over_the_configuration(
    save_tokenizer: Save, tmp_path: Path
) -> None:
    folder = save_tokenizer(tmp_path)
    (folder / "chat_template.jinja").write_text("file: {{ messages[0].content }}")
    assert Tokenizer(folder).render_chat(Chat(messages=MESSAGES[:1])) == "file: Be {brief}."


def test_of_several_templates_the_default_is_taken(save_tokenizer: Save, tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    tokenizer = Tokenizer(save_tokenizer(tmp_path, chat_template=named))
    assert tokenizer.render_chat(Chat(messages=MESSAGES)) == "yes"
    assert tokenizer.render_chat(Chat(messages=MESSAGES, tools=[{"type": "function"}])) == "yes"


def test_a_template_for_tools_is_taken_where_there_are_tools(
    save_tokenizer: Save, tmp_path: Path
) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "none"}]
    tokenizer = Tokenizer(save_tokenizer(tmp_path, chat_template=named))
    assert tokenizer.render_chat(Chat(messages=MESSAGES)) == "none"
    assert tokenizer.render_chat(Chat(messages=MESSAGES, tools=[{"type": "function"}])) == "tools"


def test_a_given_template_may_be_a_file_or_the_text_itself(
    save_tokenizer: Save, tmp_path: Path
) -> None:
    folder = save_tokenizer(tmp_path / "model")
    file = tmp_path / "mine.jinja"
    file.write_text("plain")
    assert Tokenizer(folder, str(file)).render_chat(Chat(messages=MESSAGES)) == "plain"
    assert Tokenizer(folder, "{{ 1 + 1 }}").render_chat(Chat(messages=MESSAGES)) == "2"


@pytest.mark.parametrize("template", ["no/such/file.jinja", "{% for %}", "{{ a b }}"])
def test_a_given_template_that_cannot_be_used_is_refused_at_once(
    save_tokenizer: Save, tmp_path: Path, template: str
) -> None:
    with pytest.raises(ModelError, match="chat template"):
        Tokenizer(save_tokenizer(tmp_path), template)


def test_a_model_without_a_template_says_what_to_use_instead(
    save_tokenizer: Save, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(save_tokenizer(tmp_path, chat_template=None))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequestError, match="no chat template; use /v1/completions") as error:
        tokenizer.render_chat(Chat(messages=MESSAGES))
    assert error.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", MESSAGES, "roles must alternate"),
        ("{{ messages[0].content + 1 }}", MESSAGES, "can only concatenate"),
        ("{{ messages.append(1) }}", MESSAGES, "append"),
        ("{{ ''.__class__.__mro__ }}", MESSAGES, "unsafe"),
        ("{% set n = namespace(_a=1) %}", MESSAGES, "not allowed"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", MESSAGES, "not allowed"),
        ("fine", [], "must not be empty"),
    ],
)
def test_a_template_that_fails_is_the_fault_of_the_messages(
    save_tokenizer: Save, tmp_path: Path, template: str, messages: list[dict[str, str]], reason: str
) -> None:
    tokenizer = Tokenizer(save_tokenizer(tmp_path, chat_template=template))
    with pytest.raises(InvalidRequestError, match=reason):
        tokenizer.render_chat(Chat(messages=messages))


# ---- files ----


def test_special_tokens_are_found_by_name_and_never_become_text(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert {0, 1, 2, 3} <= tokenizer.special_ids
    assert not tokenizer.is_text(0)
    assert tokenizer.decode([0, 1]) == ""
    assert tokenizer.decode([0, 1], skip_special_tokens=False) == "<s></s>"


def test_an_end_token_is_special_even_if_the_tokenizer_file_forgot_it(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>", "pad_token": "<new>"}')
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.special_ids == {1}
    assert tokenizer.vocab_size == 2  # a token of no id is not invented


def test_truncation_and_padding_in_the_file_do_not_touch_a_prompt(
    save_tokenizer: Save, tmp_path: Path
) -> None:
    folder = save_tokenizer(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(CODE)) == CODE


def test_a_missing_configuration_is_no_error(save_tokenizer: Save, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer(folder)
    assert tokenizer.eos_token_id is None
    assert not tokenizer.has_chat_template


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"model": 1})])
def test_a_damaged_file_is_named(
    save_tokenizer: Save, tmp_path: Path, name: str, content: str
) -> None:
    folder = save_tokenizer(tmp_path)
    (folder / name).write_text(content)
    if name == "tokenizer_config.json" and content.startswith('{"'):
        Tokenizer(folder)
        return
    with pytest.raises(ModelError, match=name):
        Tokenizer(folder)


def test_a_folder_without_a_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json.*save_pretrained"):
        Tokenizer(tmp_path)
