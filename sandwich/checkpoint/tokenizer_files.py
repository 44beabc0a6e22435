"""What the files of a Hugging Face folder say of its tokenizer, read as transformers 5 reads them.

Beside `tokenizer.json` stand `tokenizer_config.json` and, in older folders, `added_tokens.json` and
`special_tokens_map.json`. They name the special tokens, add tokens, and for Llama's own class
decide about the space in front of a text. `add_bos_token` and `add_eos_token` change nothing where
there is a `tokenizer.json`, whose post-processor decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, decoders, pre_tokenizers

from sandwich.checkpoint.fields import read_json
from sandwich.checkpoint.strangers import unreadable
from sandwich.errors import ModelError

_CONFIG: Final = "tokenizer_config.json"
_SPECIAL_TOKENS: Final = "special_tokens_map.json"
_ADDED_TOKENS: Final = "added_tokens.json"
_LLAMA_CLASSES: Final = ("LlamaTokenizer", "LlamaTokenizerFast")
# What Llama's class assumes where no file names them.
_LLAMA_TOKENS: Final = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_SPACE_MARK: Final = "▁"
_TOKEN_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer of a folder, its named special tokens, and its chat templates by name."""

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]  # `bos_token` and so on -> text, as templates see them
    chat_templates: dict[str, str]


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Read the files. Raises ModelError if there is no tokenizer.json, or one that is damaged."""
    config = _read_if_there(folder / _CONFIG)
    backend = _load_backend(folder / "tokenizer.json")
    is_llama = config.get("tokenizer_class") in _LLAMA_CLASSES and not _is_byte_level(backend)
    if is_llama:
        _set_prefix_space(backend, config)
    named = {**(_LLAMA_TOKENS if is_llama else {}), **_named_tokens(config)}
    added = config.get("added_tokens_decoder")
    if isinstance(added, Mapping):
        tokens = [_added_token(added[index]) for index in sorted(added, key=int)]
    else:
        named |= _named_tokens(_read_if_there(folder / _SPECIAL_TOKENS))
        tokens = _legacy_added_tokens(folder, backend, set(named.values()))
    _add_tokens(backend, tokens, named, _extra_special_tokens(config))
    return TokenizerFiles(backend, named, _chat_templates(folder, config))


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelError(
            f"{path.parent} has no tokenizer.json; transformers makes one of other files: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise unreadable(path, f"is not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Whether it splits or joins bytes as GPT-2 does, which Llama's class does not stand for."""
    state = json.loads(backend.to_str())
    return any(
        '"ByteLevel"' in json.dumps(state.get(part)) for part in ("pre_tokenizer", "decoder")
    )


def _set_prefix_space(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """As Llama's class does: marks for spaces, and one in front of the text unless told not to."""
    has_prefix = config.get("add_prefix_space") is not False
    scheme = "never" if not has_prefix else "always" if config.get("legacy") else "first"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE_MARK, prepend_scheme=scheme, split=False
    )
    steps: list[Any] = [
        decoders.Replace(_SPACE_MARK, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if has_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)


def _named_tokens(values: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and so on; a token is written as a string or as {"content": ...}."""
    found = {}
    for name, token in values.items():
        text = token.get("content") if isinstance(token, Mapping) else token
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    extra = values.get("extra_special_tokens")
    if isinstance(extra, Mapping):  # tokens with names of the model's own
        found |= {name: str(_added_token(token)) for name, token in extra.items()}
    return found


def _extra_special_tokens(config: Mapping[str, Any]) -> list[AddedToken]:
    """Special tokens without a name; "additional" is what transformers 4 called them."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    return [] if isinstance(extra, Mapping) else [_added_token(token, True) for token in extra]


def _added_token(token: Any, is_special: bool = False) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=is_special, normalized=not is_special)
    if isinstance(token, Mapping) and isinstance(token.get("content"), str):
        flags = {name: bool(token[name]) for name in _TOKEN_FLAGS if name in token}
        return AddedToken(token["content"], **flags)
    raise ModelError(f"{_CONFIG}: {str(token)[:200]!r} is not a token; fetch the model again")


def _legacy_added_tokens(
    folder: Path, backend: tokenizers.Tokenizer, special: set[str]
) -> list[AddedToken]:
    """Those of added_tokens.json (text -> id), in the order of their ids.

    Where tokenizer.json has one of them too, its flags hold.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    added = _read_if_there(folder / _ADDED_TOKENS)
    return [
        AddedToken(text, special=text in special, normalized=text not in special)
        for text in sorted(added, key=added.__getitem__)
        if text not in known
    ]


def _add_tokens(
    backend: tokenizers.Tokenizer,
    tokens: Iterable[AddedToken],
    named: Mapping[str, str],
    extra: Iterable[AddedToken],
) -> None:
    """Give the tokens of the other files to `backend`.

    A name (`pad_token`) whose token the vocabulary lacks invents none: its id would be one that the
    model has no embedding for.
    """
    listed = list(tokens)
    for token in listed:
        token.special = token.special or token.content in named.values()
    backend.add_tokens(listed)
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in extra if token.content not in known])
    backend.add_special_tokens(
        [text for text in named.values() if backend.token_to_id(text) is not None]
    )


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name, the usual one under "default"; files win over tokenizer_config.json."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in (folder / "additional_chat_templates").glob("*.jinja")}
    found = {name: file.read_text("utf-8") for name, file in files.items() if file.is_file()}
    if found:
        return found
    template = config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return {"default": template} if isinstance(template, str) else {}
