"""How far the loading is, for whoever asks meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from platforms.memory import Arena
from sandwich.checkpoint.safetensors import SafetensorsCheckpoint
from sandwich.weights import load as weights_module
from sandwich.weights.load import load_weights
from tests.sandwich.weights.test_load import (
    make_config,
    make_layout,
    make_tensors,
    write_checkpoint,
)


def test_the_share_that_is_packed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "CHUNK_VALUES", 36 * 16)
    config = make_config()
    checkpoint = SafetensorsCheckpoint(write_checkpoint(tmp_path, make_tensors(config)))
    layout = make_layout(config, "float32")
    shares: list[float] = []
    load_weights(checkpoint, config, layout, Arena(layout.weight_bytes, "weights"), shares.append)
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert shares[-1] == 1
