"""Sampling defaults that a checkpoint brings along in generation_config.json."""

from __future__ import annotations

from typing import Any, Final

from sandwich.checkpoint.fields import Fields
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


def generation_defaults(generation: Fields) -> dict[str, Any]:
    """Fields of SamplingParams that the keys of a generation_config.json ask for.

    Raises ModelError if they ask for what SamplingParams refuses.
    """
    given = ((ours, generation.get(name)) for name, ours in _NAMES.items())
    defaults = {name: value for name, value in given if value is not None}
    try:
        SamplingParams(**defaults)
    except InvalidRequestError as error:
        raise ModelError(f"{generation.file}: {error}; correct or delete the entry") from error
    return defaults
