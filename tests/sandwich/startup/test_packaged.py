"""Models in Python packages bring the sampling that their authors recommend."""

from __future__ import annotations

from sandwich.config import EngineConfig
from sandwich.startup.model import Model
from sandwich.startup.packaged import recommended_sampling


def test_the_packaged_model_is_sampled_as_its_authors_recommend() -> None:
    model = Model.of(EngineConfig(model="smollm2"))
    assert model.generation_defaults["temperature"] == 0.2
    assert model.generation_defaults["top_p"] == 0.9


def test_other_models_have_the_defaults_of_their_files_alone() -> None:
    assert recommended_sampling("/models/mine") == {}
