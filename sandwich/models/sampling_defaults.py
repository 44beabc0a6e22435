"""Sampling defaults that a checkpoint brings along in generation_config.json."""

from __future__ import annotations

import logging
from typing import Any, Final

from sandwich.checkpoint.fields import Fields
from sandwich.errors import InvalidRequestError
from sandwich.requests.sampling_params import SamplingParams

_log = logging.getLogger(__name__)

# generation_config.json's name -> SamplingParams' name.
_NAMES: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "stop_strings": "stop",
}
_OF_SAMPLING: Final = ("temperature", "top_k", "top_p", "min_p")
# What would change the text and is not done -> the values that ask for nothing.
_NOT_DONE: Final[dict[str, tuple[Any, ...]]] = {
    "min_new_tokens": (0,),
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "penalty_alpha": (0.0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({},),
}


def generation_defaults(generation: Fields) -> dict[str, Any]:
    """Fields of SamplingParams that the keys of a generation_config.json ask for.

    A value that cannot be used is left out, with a warning: the file is often written by a
    training script, and a request can say better. With `do_sample: false` the model's default is
    greedy, and its filters mean nothing.
    """
    given = {ours: _whole(generation.get(name)) for name, ours in _NAMES.items()}
    if generation.get("do_sample") is False:
        given |= dict.fromkeys(_OF_SAMPLING) | {"temperature": 0.0}
    defaults = {}
    for name, value in given.items():
        if value is None:
            continue
        try:
            SamplingParams(**{name: value})
        except InvalidRequestError as error:
            _log.warning("%s: %s; the entry is left out", generation.file, error)
        else:
            defaults[name] = value
    for name, harmless in _NOT_DONE.items():
        value = generation.get(name)
        if value is not None and value not in harmless:
            _log.warning("%s: %s is %r, which has no effect here", generation.file, name, value)
    return defaults


def _whole(value: Any) -> Any:
    """50.0 as 50: some scripts write every number as a float."""
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value
