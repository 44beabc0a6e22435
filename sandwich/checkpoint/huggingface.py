"""A folder in the Hugging Face layout: JSON settings, tokenizer.json, safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandwich.checkpoint.fields import Fields, read_json
from sandwich.checkpoint.quantized.methods import open_folder
from sandwich.checkpoint.safetensors import SafetensorsCheckpoint, has_weights
from sandwich.checkpoint.strangers import what_is
from sandwich.checkpoint.tokenizer_files import TokenizerFiles, read_tokenizer
from sandwich.errors import ModelError


@dataclass(frozen=True)
class HuggingFaceFolder:
    """The model in `folder`, as transformers writes one."""

    folder: Path

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether `path` is a folder; what it lacks is said when it is read."""
        return path.is_dir()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def has_tensors(self) -> bool:
        return has_weights(self.folder)

    def config(self) -> Fields:
        file = self.folder / "config.json"
        found = None if file.is_file() else what_is(self.folder)
        if found is not None:
            raise ModelError(f"{self.folder}: holds no config.json, but {found}")
        return Fields(read_json(file), file)

    def generation(self) -> Fields:
        file = self.folder / "generation_config.json"
        return Fields(read_json(file) if file.is_file() else {}, file)

    def tokenizer(self) -> TokenizerFiles:
        return read_tokenizer(self.folder)

    def checkpoint(self) -> SafetensorsCheckpoint:
        return open_folder(self.folder, self.config())
