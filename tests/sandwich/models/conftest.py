"""Random tiny models built with transformers, and a driver that runs any executor on them.

An executor under test is one line in EXECUTORS. Models are written once per session.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from codegen.layout.model import KvLayout, ModelLayout
from codegen.spec import ModelShape, Phase
from platforms.isa import select_isa
from platforms.memory import Arena
from sandwich.checkpoint.huggingface import HuggingFaceFolder
from sandwich.checkpoint.safetensors import SafetensorsCheckpoint
from sandwich.executor.assembly import compiled_executor
from sandwich.executor.base import Executor, ExecutorLimits
from sandwich.executor.reference import ReferenceExecutor
from sandwich.models.config import ModelConfig
from sandwich.weights.load import ModelWeights, load_weights
from schedules.tiles.default_plans import default_plans
from tests.sandwich.executor.conftest import Sequences
from tests.sandwich.models.cases import CASES, MAX_MODEL_LEN, Case

BLOCK_SIZE = 32
NUM_TOKENS = 2 * BLOCK_SIZE + 6  # of the prompt whose logits are compared
NUM_GREEDY = 12

torch.set_num_threads(1)  # tiny matrices

ExecutorFactory = Callable[[Path, str], Executor]


def read_config(folder: Path) -> ModelConfig:
    return ModelConfig.from_source(HuggingFaceFolder(folder))


def load_into(layout: ModelLayout, folder: Path, config: ModelConfig) -> ModelWeights:
    arena = Arena(layout.weight_bytes, "weights")
    return load_weights(SafetensorsCheckpoint(folder), config, layout, arena)


def load(folder: Path, dtype: str, lanes: int = 8, panel: int = 32) -> ModelWeights:
    config = read_config(folder)
    layout = ModelLayout.build(config.shape(MAX_MODEL_LEN), dtype, lanes, panel)
    return load_weights(
        SafetensorsCheckpoint(folder), config, layout, Arena(layout.weight_bytes, "weights")
    )


def limits_of(config: ModelConfig, max_model_len: int = MAX_MODEL_LEN) -> ExecutorLimits:
    return ExecutorLimits(
        block_size=BLOCK_SIZE,
        num_blocks=max(13, 4 * max_model_len // BLOCK_SIZE),
        max_num_seqs=4,
        max_num_batched_tokens=MAX_MODEL_LEN,
        max_model_len=max_model_len,
        vocab_size=config.vocab_size,
    )


def kv_layout(shape: ModelShape, lanes: int, dtype: str, limits: ExecutorLimits) -> KvLayout:
    return KvLayout(
        shape.num_layers,
        shape.num_kv_heads,
        shape.head_dim,
        BLOCK_SIZE,
        lanes,
        dtype,
        limits.num_blocks,
    )


def make_reference(folder: Path, dtype: str) -> Executor:
    """The model of `folder` in the NumPy executor; dtype of products and cache."""
    weights = load(folder, dtype)
    shape, limits = (
        weights.layout.shape,
        limits_of(read_config(folder)),
    )
    return ReferenceExecutor(weights, kv_layout(shape, 8, dtype, limits), limits)


def make_compiled(folder: Path, dtype: str, max_model_len: int = MAX_MODEL_LEN) -> Executor:
    """The model of `folder` in the compiled executor of the best ISA of this machine."""
    isa, config = select_isa(), read_config(folder)
    limits, shape = limits_of(config, max_model_len), config.shape(max_model_len)
    plans = default_plans(isa, (0,), shape)
    layout = ModelLayout.build(shape, dtype, isa.lanes, plans.panel)
    return compiled_executor(
        plans,
        layout,
        kv_layout(shape, isa.lanes, dtype, limits),
        limits,
        lambda: load_weights(
            SafetensorsCheckpoint(folder), config, layout, Arena(layout.weight_bytes, "weights")
        ),
        Path(tempfile.gettempdir()) / "sandwich-test-programs",
    )


EXECUTORS: dict[str, ExecutorFactory] = {"reference": make_reference, "compiled": make_compiled}


@dataclass
class TinyModel:
    """A case's checkpoint on disk, and transformers' answers in float32."""

    case: Case
    folder: Path
    model: PreTrainedModel = field(repr=False)

    @cached_property
    def token_ids(self) -> list[int]:
        ids = np.random.default_rng(3).integers(0, self.case.config["vocab_size"], NUM_TOKENS)
        return [int(i) for i in ids]

    @cached_property
    def logits(self) -> np.ndarray:
        """(NUM_TOKENS, vocab) of `token_ids`."""
        return self.logits_of(self.token_ids)

    def logits_of(self, token_ids: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return self.model(torch.tensor([token_ids])).logits[0].numpy()

    def states_of(self, token_ids: Sequence[int]) -> np.ndarray:
        """Hidden states behind the final norm, (len(token_ids), hidden_size)."""
        with torch.no_grad():
            return self.model.base_model(torch.tensor([token_ids])).last_hidden_state[0].numpy()

    @cached_property
    def greedy_token_ids(self) -> list[int]:
        """The NUM_GREEDY tokens that follow the first BLOCK_SIZE - 3 of `token_ids`."""
        tokens = self.token_ids[: BLOCK_SIZE - 3]
        for _ in range(NUM_GREEDY):
            tokens = [*tokens, int(self.logits_of(tokens)[-1].argmax())]
        return tokens[-NUM_GREEDY:]


def write_model(case: Case, folder: Path) -> TinyModel:
    """Weights large enough that attention is not flat and logits differ by units."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(case.family, **case.config), attn_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "embed_tokens" in name or parameter.ndim == 1:
                parameter.normal_(std=0.5)
            else:
                parameter.normal_(std=1.2 * parameter.shape[1] ** -0.5)
    model.to(case.dtype).save_pretrained(folder, max_shard_size=case.max_shard_size)
    if case.transformers_4:
        rewrite_config_as_transformers_4(folder / "config.json")
    truth = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return TinyModel(case, folder, truth.eval())


def rewrite_config_as_transformers_4(file: Path) -> None:
    data = json.loads(file.read_text())
    rope = data.pop("rope_parameters")
    data["rope_theta"] = rope.pop("rope_theta")
    data["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if rope["rope_type"] == "linear":  # as the first releases with it wrote it
        data["rope_scaling"] = {"type": "linear", "factor": rope["factor"]}
    data["torch_dtype"] = data.pop("dtype")
    if data["head_dim"] * data["num_attention_heads"] == data["hidden_size"]:
        del data["head_dim"]
    data["transformers_version"] = "4.40.0"
    file.write_text(json.dumps(data))


class Driver:
    """Feeds sequences to an executor, each in scattered blocks of its own, without a scheduler."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._sequences = Sequences(executor.limits)

    def run(self, phase: Phase, chunks: dict[int, Sequence[int]]) -> list[np.ndarray]:
        """Append a chunk of tokens to each of some sequences; logits of every new token of each."""
        batch = self._sequences.batch(phase, chunks)
        output = self.executor.run(batch)
        assert output.argmax == output.logits.argmax(axis=1).tolist()
        ends = np.cumsum(batch.num_new)[:-1]
        return [part.copy() for part in np.split(output.logits, ends)]

    def prefill(self, token_ids: Sequence[int], chunk: int, seq: int = 0) -> np.ndarray:
        """Logits of every token of a sequence that is fed `chunk` tokens at a time."""
        parts = [
            self.run(Phase.PREFILL, {seq: token_ids[start : start + chunk]})[0]
            for start in range(0, len(token_ids), chunk)
        ]
        return np.concatenate(parts)

    def decode(self, token_id: int, seq: int = 0) -> np.ndarray:
        """Logits after one more token, (vocab,)."""
        return self.run(Phase.DECODE, {seq: [token_id]})[0][0]


@pytest.hookimpl(tryfirst=True)  # before markers decide over what is run
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        case = given.get("tiny")
        if isinstance(case, Case) and case.is_slow and given.get("make_executor") == "compiled":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    case: Case = request.param
    return write_model(case, tmp_path_factory.mktemp(case.name))


@pytest.fixture(scope="session", params=EXECUTORS)
def make_executor(request: pytest.FixtureRequest) -> ExecutorFactory:
    return EXECUTORS[request.param]


@pytest.fixture(scope="session")
def executor(tiny: TinyModel, make_executor: ExecutorFactory) -> Iterator[Executor]:
    with closing(make_executor(tiny.folder, "float32")) as made:
        yield made


@pytest.fixture(scope="session")
def bf16_executor(tiny: TinyModel, make_executor: ExecutorFactory) -> Iterator[Executor]:
    with closing(make_executor(tiny.folder, "bfloat16")) as made:
        yield made


@pytest.fixture
def driver(executor: Executor) -> Driver:
    """The model in float32, its sequences empty; the cache still holds what others left there."""
    return Driver(executor)


@pytest.fixture
def bf16_driver(bf16_executor: Executor) -> Driver:
    """The same with bf16 weights, products and cache."""
    return Driver(bf16_executor)
