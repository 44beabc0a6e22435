"""Small tokenizers of the kinds that exist, and an engine without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from sandwich.cli import main
from sandwich.config import ENVIRONMENT
from sandwich.engine.engine import Engine
from sandwich.executor.base import ExecutorLimits
from sandwich.executor.null import NullExecutor
from sandwich.llm import LLM
from sandwich.text.tokenizer import Tokenizer

SPECIAL_TOKENS = ["<s>", "</s>", "<|user|>", "<|end|>"]
CORPUS = ["def add(a, b):\n    return a + b\n", "hello world, the café 😀 is 日本 \n\n"] * 4
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2 and Llama 3: every token is a string of bytes."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    backend.add_tokens(["<tool>", "déjà"])  # added, but not special
    return backend


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2: pieces with a mark for the space, `<0x0A>` for what no piece has."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    pieces = ["▁", "a", "b", "c", "é", "▁▁", "▁a", "▁b", "ab", "▁ab", "▁abc", "�"]
    vocab |= {piece: 259 + index for index, piece in enumerate(pieces)}
    merges = [("▁", "▁"), ("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b"), ("▁ab", "c")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return backend


def metaspace() -> tokenizers.Tokenizer:
    """As SentencePiece unigram models: marks for spaces, no bytes."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "é", "😀", "▁a", "▁é", "ab", "▁▁"]
    backend = tokenizers.Tokenizer(
        models.Unigram([(piece, -float(len(pieces) - i)) for i, piece in enumerate(pieces)], 0)
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


BUILDERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
}


def write_tokenizer(folder: Path, kind: str = "byte_level", **config: Any) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json, as a hub model has them."""
    folder.mkdir(parents=True, exist_ok=True)
    BUILDERS[kind]().save(str(folder / "tokenizer.json"))
    defaults = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "clean_up_tokenization_spaces": True,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(defaults | config))
    return folder


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[..., Path]:
    """`save_tokenizer(folder, kind, **tokenizer_config)` makes the folder of a tokenizer."""
    return write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: write_tokenizer(root / kind, kind) for kind in BUILDERS}


@pytest.fixture(scope="session")
def tokenizers_by_kind(tokenizer_folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {kind: Tokenizer(folder) for kind, folder in tokenizer_folders.items()}


@pytest.fixture(scope="session")
def tokenizer(tokenizers_by_kind: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers_by_kind["byte_level"]


@dataclass(frozen=True)
class NullParts:
    """What an LLM needs of a built engine, over an executor without a model."""

    engine: Engine
    tokenizer: Tokenizer
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = (1,)
    embedding_use: None = None

    @property
    def model_config(self) -> NullParts:
        return self


@pytest.fixture
def make_parts(tokenizer: Tokenizer) -> Callable[..., NullParts]:
    """`make_parts(generation_defaults, failing_runs, **limits)`: an engine without a model."""

    def make(
        generation_defaults: dict[str, Any] | None = None,
        failing_runs: tuple[int, ...] = (),
        **changes: int,
    ) -> NullParts:
        sizes = {
            "block_size": 8,
            "num_blocks": 64,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 16,
            "max_model_len": 128,
            "vocab_size": tokenizer.vocab_size,
        }
        limits = ExecutorLimits(**(sizes | changes))
        engine = Engine(NullExecutor(limits, failing_runs))
        return NullParts(engine, tokenizer, generation_defaults or {})

    return make


@pytest.fixture
def llm(make_parts: Callable[..., NullParts]) -> Iterator[LLM]:
    parts: Any = make_parts()
    with LLM.from_parts(parts) as llm:
        yield llm
        assert not llm._engine.has_work()
        llm._engine.scheduler.check_integrity()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, make_parts: Callable[..., NullParts]) -> list[Any]:
    """Engines are built without a model from now on; the configurations they were asked for."""
    configs: list[Any] = []

    def build_engine(config: Any) -> NullParts:
        configs.append(config)
        return make_parts()

    monkeypatch.setattr("sandwich.startup.build.build_engine", build_engine)
    return configs


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`run(*argv, code=0)`: what the command prints, as (out, err), when it ends with that code."""
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable.name, raising=False)

    def run_command(*argv: str, code: int = 0) -> Any:
        assert main(argv) == code
        return capsys.readouterr()

    return run_command
