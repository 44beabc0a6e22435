"""Sampling defaults that a checkpoint brings along in generation_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sandwich.checkpoint.fields import read_json
from sandwich.errors import InvalidRequestError, ModelError
from sandwich.requests.sampling_params import SamplingParams

# generation_config.json's name -> SamplingParams' name.
_NAMES: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def generation_defaults(folder: Path) -> dict[str, Any]:
    """Fields of SamplingParams that the model in `folder` asks for; nothing without the file.

    Raises ModelError if the file is damaged or asks for what SamplingParams refuses.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return {}
    given = read_json(file)
    defaults = {ours: given[name] for name, ours in _NAMES.items() if given.get(name) is not None}
    try:
        SamplingParams(**defaults)
    except InvalidRequestError as error:
        raise ModelError(f"{file}: {error}; correct or delete the entry") from error
    return defaults
