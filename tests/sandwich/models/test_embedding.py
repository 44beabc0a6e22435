"""What a folder of sentence-transformers says of how its model embeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandwich.errors import ModelError
from sandwich.models.embedding import EmbeddingUse, embedding_use
from sandwich.requests.pooling import Pooling

KIND = "sentence_transformers.models."
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": KIND + "Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": KIND + "Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": KIND + "Normalize"},
]
LAST = {"word_embedding_dimension": 8, "pooling_mode_lasttoken": True, "include_prompt": True}
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def write(folder: Path, modules: Any = MODULES, pooling: Any = LAST, **settings: Any) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if settings:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def test_other_folders_say_nothing(tmp_path: Path) -> None:
    assert embedding_use(tmp_path) is None


@pytest.mark.parametrize(("pooling", "kind"), [(LAST, Pooling.LAST), (MEAN, Pooling.MEAN)])
def test_the_pooling_is_read(tmp_path: Path, pooling: Any, kind: Pooling) -> None:
    assert embedding_use(write(tmp_path, pooling=pooling)) == EmbeddingUse(kind)


def test_prompts_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path, prompts={"query": "Query: ", "document": "", "odd": None})
    assert embedding_use(folder) == EmbeddingUse(Pooling.LAST, "Query: ", "")


@pytest.mark.parametrize(
    ("modules", "pooling", "reason"),
    [
        ([*MODULES, {"type": KIND + "Dense", "path": "3_Dense"}], LAST, "module Dense"),
        (MODULES[:1], LAST, "no module Pooling"),
        (MODULES, {"pooling_mode_cls_token": True}, "pooling_mode_cls_token is not supported"),
        (MODULES, LAST | MEAN, "pooling_mode_lasttoken and pooling_mode_mean_tokens"),
        (MODULES, {}, "none is not supported"),
    ],
)
def test_what_is_not_here_is_said(
    tmp_path: Path, modules: Any, pooling: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert embedding_use(write(tmp_path, modules, pooling)) is None
    assert reason in caplog.text


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_a_broken_list_of_modules_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=r"modules\.json"):
        embedding_use(tmp_path)
