"""A model in a GGUF file, or in several that are one model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from sandwich.checkpoint.fields import Fields
from sandwich.checkpoint.gguf.architectures import LONGROPE_FACTORS, ROPE_FACTORS, read_config
from sandwich.checkpoint.gguf.checkpoint import GgufCheckpoint
from sandwich.checkpoint.gguf.header import MAGIC, Header
from sandwich.checkpoint.gguf.rope_factors import llama3_scaling, longrope_scaling, read_factors
from sandwich.checkpoint.gguf.split import first_file, read_headers
from sandwich.checkpoint.gguf.tokenizer import end_token_ids, read_tokenizer
from sandwich.checkpoint.tokenizer_files import TokenizerFiles

# Key behind "general.sampling." -> key of generation_config.json.
_SAMPLING: Final = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class GgufModel:
    """The model at `path`: a file, any file of a split one, or a folder with one model."""

    path: Path

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether it is a file of that kind, or a folder that holds some and no safetensors."""
        if path.is_dir():
            return any(path.glob("*.gguf")) and not any(path.glob("*.safetensors"))
        with path.open("rb") as stream:
            return path.suffix == ".gguf" or stream.read(len(MAGIC)) == MAGIC

    @property
    def name(self) -> str:
        return first_file(self.path).stem

    @property
    def has_tensors(self) -> bool:
        return bool(self._header.tensors)

    def config(self) -> Fields:
        config = read_config(self._header)
        if ROPE_FACTORS in self._header.tensors:
            factors = read_factors(self._header.tensors[ROPE_FACTORS])
            config["rope_scaling"] = llama3_scaling(factors, config, self._header.file)
        elif all(name in self._header.tensors for name in LONGROPE_FACTORS):
            lists = {
                key: read_factors(self._header.tensors[name]).tolist()
                for name, key in LONGROPE_FACTORS.items()
            }
            config["rope_scaling"] = longrope_scaling(lists, self._header)
        return Fields(config, self._header.file)

    def generation(self) -> Fields:
        metadata = self._header.metadata
        found = {ours: metadata.get(f"general.sampling.{key}") for key, ours in _SAMPLING.items()}
        ids = end_token_ids(self._header)
        return Fields(found | {"eos_token_id": ids}, self._header.file)

    def tokenizer(self) -> TokenizerFiles:
        return read_tokenizer(self._header)

    def checkpoint(self) -> GgufCheckpoint:
        return GgufCheckpoint(self._header)

    @cached_property
    def _header(self) -> Header:
        return read_headers(first_file(self.path))
