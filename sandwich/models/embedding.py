"""How a model that was made for embeddings wants to be used, as sentence-transformers writes it.

Such a folder has a `modules.json` beside its config.json: the transformer, then how its hidden
states become one vector (https://sbert.net/docs/package_reference/sentence_transformer/models.html).
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sandwich.checkpoint.fields import Fields, read_json
from sandwich.errors import InvalidRequestError, ModelError
from sandwich.requests.pooling import Pooling

_log = logging.getLogger(__name__)

_MODULES: Final = "modules.json"
_PROMPTS: Final = "config_sentence_transformers.json"
# Modules by the last part of their type; a vector of length 1 is what the server gives anyway.
_KNOWN: Final = ("Transformer", "Pooling", "Normalize")
_MODES: Final = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST,
}


@dataclass(frozen=True)
class EmbeddingUse:
    """`query_prompt` and `document_prompt` stand in front of texts that are compared."""

    pooling: Pooling
    query_prompt: str = ""
    document_prompt: str = ""


def chosen_pooling(asked: str | None, use: EmbeddingUse | None) -> Pooling:
    """What a caller asks for, or what the model was made for, or the mean. Raises
    InvalidRequestError for a pooling that is not known.
    """
    if asked is None:
        return Pooling.MEAN if use is None else use.pooling
    if asked not in list(Pooling):
        raise InvalidRequestError(
            f"pooling is {str(asked)[:50]!r} but must be {' or '.join(Pooling)}", "pooling"
        )
    return Pooling(asked)


def embedding_use(folder: Path) -> EmbeddingUse | None:
    """What `folder` says; None if it was not made for embeddings, or needs what is not here.

    Raises ModelError if its files cannot be read.
    """
    if not (folder / _MODULES).is_file():
        return None
    modules = _modules(folder / _MODULES)
    kinds = {str(module.get("type", "")).rpartition(".")[2]: module for module in modules}
    unknown = sorted(kinds.keys() - set(_KNOWN))
    if unknown or "Pooling" not in kinds:
        why = f"has the module {unknown[0]}" if unknown else "has no module Pooling"
        _log.warning(
            "%s %s; embeddings are served without it, score and rerank are not", folder, why
        )
        return None
    file = folder / str(kinds["Pooling"].get("path", "")) / "config.json"
    pooling = Fields(read_json(file), file)
    modes = [mode for key, mode in _MODES.items() if pooling.flag(key)]
    on = [key for key in pooling if key.startswith("pooling_mode") and pooling.get(key)]
    if len(modes) != 1 or len(on) != 1:
        _log.warning("%s: %s is not supported; the mean is taken", file, " and ".join(on) or "none")
        return None
    prompts = _prompts(folder / _PROMPTS)
    return EmbeddingUse(modes[0], prompts.get("query", ""), prompts.get("document", ""))


def _modules(file: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
        raise ModelError(f"{file}: must be a list of modules; fetch it again")
    return modules


def _prompts(file: Path) -> dict[str, str]:
    found = read_json(file).get("prompts") if file.is_file() else None
    if not isinstance(found, dict):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)}
