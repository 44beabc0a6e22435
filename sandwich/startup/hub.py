"""The model argument -> a path on disk: a local file or folder, a packaged model, a hub id.

The only importer of huggingface_hub, and only when a hub id is given.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from sandwich.errors import ConfigError
from sandwich.startup.packaged import PACKAGED, packaged_file

_HUB_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.model")


def resolve_model(model: str) -> Path:
    """The path of a model: a local one, one in a Python package, or a hub id's, fetched if needed.

    Raises:
        ConfigError: the path does not exist, or the hub does not have or give the model.
    """
    if model in PACKAGED:
        return packaged_file(model)
    path = Path(model).expanduser()
    if model and path.exists():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) is None or model.startswith("."):
        raise ConfigError(
            f"model {model!r} is no file, folder or hub id; write a path, ORGANISATION/NAME, or "
            f"a name: {', '.join(PACKAGED)}"
        )
    return _fetch(model)


def _fetch(model: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(_HUB_FILES)))
    except errors.GatedRepoError:
        reason = "its authors give it on request: ask on its page, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "the hub has no such model (a private one needs `hf auth login`)"
    except errors.LocalEntryNotFoundError:
        reason = (
            "it is not in the local cache and the hub is out of reach; go online or give a folder"
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = f"the hub did not give it: {error}"
    raise ConfigError(f"model {model!r} is not a folder here, and as a hub id: {reason}")
