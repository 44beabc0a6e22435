"""Token ids and rendered chats equal transformers' for every layout of files that it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, models, processors

from sandwich.errors import ModelError
from sandwich.text.messages import Chat
from sandwich.text.tokenizer import Tokenizer
from tests.sandwich.conftest import BUILDERS

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}"
    "{% endfor %}{{ image_token }}{{ pad_token }}"
)
TEXTS = [
    "",
    "a b",
    " a",
    "a<|extra|>b",
    "a <|new|> b",
    "<s>a b</s> a",
    "</s>a\n b",
    "a<|im_end|>b",
    "a déjà b",
]
MESSAGES = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": " a"}]
LLAMA_CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@dataclass(frozen=True)
class Layout:
    """The files of a folder. `config` is tokenizer_config.json beside the template."""

    name: str
    kind: str = "byte_level"
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    model_config: dict[str, Any] | None = None

    def write(self, folder: Path) -> Path:
        backend = BUILDERS[self.kind]()
        if self.kind == "byte_fallback":  # as Llama 2's file: BOS in front
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 1)]
            )
        backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
        files = {"tokenizer_config.json": config | self.config} | self.files
        if self.model_config is not None:
            files["config.json"] = self.model_config
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        return folder


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": content, **plain, **flags}


NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
ADDED = {"330": token("<|extra|>"), "331": token("<|im_end|>", special=True, lstrip=True)}
LLAMA = {"tokenizer_class": "LlamaTokenizerFast", **NAMED}
LAYOUTS = [
    Layout("all in tokenizer_config", config=NAMED),
    Layout(
        "added token objects",
        config={k: token(v) | {"__type": "AddedToken"} for k, v in NAMED.items()},
    ),
    Layout("special_tokens_map as strings", files={"special_tokens_map.json": NAMED}),
    Layout(
        "special_tokens_map as objects",
        files={"special_tokens_map.json": {k: token(v) for k, v in NAMED.items()}},
    ),
    Layout(
        "special_tokens_map wins",
        config={"eos_token": "<|end|>"},
        files={"special_tokens_map.json": {"eos_token": "</s>"}},
    ),
    Layout(
        "added_tokens_decoder, which silences special_tokens_map",
        config={"added_tokens_decoder": ADDED, "eos_token": "<|im_end|>"},
        files={"special_tokens_map.json": NAMED},
    ),
    Layout(
        "added_tokens_decoder out of order",
        config={"added_tokens_decoder": dict(reversed(ADDED.items()))},
    ),
    Layout(
        "added_tokens_decoder repeats tokenizer.json",
        config={"added_tokens_decoder": {"0": token("<s>", special=True), "328": token("<tool>")}},
    ),
    Layout(
        "added_tokens.json",
        config=NAMED,
        files={"added_tokens.json": {"<|im_end|>": 331, "<|extra|>": 330}},
    ),
    Layout(
        "additional special tokens", config={"additional_special_tokens": ["<|new|>", "<tool>"]}
    ),
    Layout("extra special tokens", config={"extra_special_tokens": ["<|new|>"]}),
    Layout("tokens with names of their own", config={"image_token": "<tool>", **NAMED}),
    Layout(
        "a map of tokens with names of their own",
        config={"extra_special_tokens": {"image_token": "<|user|>"}, **NAMED},
    ),
    Layout(
        "no template in the config",
        config={"chat_template": None},
        files={"chat_template.jinja": TEMPLATE},
    ),
    Layout(
        "named templates",
        config={
            "chat_template": [
                {"name": "default", "template": TEMPLATE},
                {"name": "rag", "template": "x"},
            ]
        },
    ),
    Layout(
        "templates in a folder",
        config={"chat_template": None},
        files={"chat_template.jinja": TEMPLATE, "additional_chat_templates/rag.jinja": "x"},
    ),
    Layout("llama class, byte level file", config=LLAMA),
    Layout("llama class", "byte_fallback", LLAMA, model_config=LLAMA_CONFIG),
    Layout("llama class without a model", "byte_fallback", LLAMA),
    Layout("llama class, names left out", "byte_fallback", {"tokenizer_class": "LlamaTokenizer"}),
    Layout(
        "llama class, no prefix",
        "byte_fallback",
        {**LLAMA, "add_prefix_space": False},
        model_config=LLAMA_CONFIG,
    ),
    Layout("llama class, prefix", "byte_fallback", {**LLAMA, "add_prefix_space": True}),
    Layout("llama class, legacy", "byte_fallback", {**LLAMA, "legacy": True}),
    Layout("sentencepiece file, general class", "byte_fallback", NAMED),
    Layout("unigram", "metaspace", NAMED),
]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.name)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    layout: Layout = request.param
    return layout.write(tmp_path)


def test_ids_and_texts_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        for add_special_tokens in (True, False):
            ids = ours.encode(text, add_special_tokens)
            assert ids == theirs.encode(text, add_special_tokens=add_special_tokens), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_chats_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    [prompt] = ours.encode_chats([Chat(messages=MESSAGES)])
    assert prompt.text == theirs.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )
    assert prompt.token_ids == theirs.encode(prompt.text, add_special_tokens=False)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_a_tokenizer_whose_files_name_no_bos_has_none(
    save_tokenizer: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_tokenizer(tmp_path, bos_token=None, eos_token=None)
    assert Tokenizer(folder).special_tokens == {}


@pytest.mark.parametrize("added", [{"330": 5}, {"330": {"special": True}}])
def test_an_added_token_without_text_is_refused(
    save_tokenizer: Callable[..., Path], tmp_path: Path, added: dict[str, Any]
) -> None:
    folder = save_tokenizer(tmp_path, added_tokens_decoder=added)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: .* is not a token"):
        Tokenizer(folder)


def test_flags_of_an_added_token_hold(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "<x>": 2}, unk_token="b"))
    backend.add_tokens([AddedToken("<x>", lstrip=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"added_tokens_decoder": {"2": token("<x>", lstrip=True, special=True)}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer(tmp_path).special_ids == {2}
