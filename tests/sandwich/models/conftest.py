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
from typing import Any

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

BLOCK_SIZE = 32
MAX_MODEL_LEN = 128
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


@dataclass(frozen=True)
class Case:
    """A tiny model: what the config of its family is given, and how the checkpoint is written."""

    name: str
    config: dict[str, Any]
    family: str = "llama"  # model_type
    transformers_4: bool = False  # config.json as transformers 4 wrote it
    max_shard_size: str = "1GB"
    dtype: torch.dtype = torch.float32


def sizes(hidden: int, heads: int, kv_heads: int, head_dim: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "num_hidden_layers": 2,
        "intermediate_size": 52,
        "vocab_size": 101,
        "max_position_embeddings": MAX_MODEL_LEN,
        "eos_token_id": [7, 9],
        **more,
    }


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
BIASES = {"attention_bias": True, "mlp_bias": True}

CASES = [
    Case("gqa-tied", sizes(64, 4, 2, 16, tie_word_embeddings=True)),
    Case("mha-untied-transformers4", sizes(64, 4, 4, 16, rms_norm_eps=1e-5), transformers_4=True),
    Case("3-heads-of-20", sizes(60, 3, 1, 20, intermediate_size=47)),
    Case("5-heads-of-24-wider-than-hidden", sizes(40, 5, 5, 24, vocab_size=64)),
    Case("4-heads-of-80", sizes(320, 4, 2, 80)),
    Case("6-heads-of-20-in-pairs-tied", sizes(66, 6, 3, 20, tie_word_embeddings=True)),
    Case("biases", sizes(48, 3, 3, 16, **BIASES)),
    Case("biases-sharded", sizes(60, 3, 1, 24, vocab_size=97, **BIASES), max_shard_size="30KB"),
    Case("llama3-rope", sizes(64, 4, 2, 16, rope_parameters=LLAMA3_ROPE)),
    Case(
        "llama3-rope-transformers4",
        sizes(64, 4, 2, 24, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
        transformers_4=True,
        max_shard_size="40KB",
    ),
    Case("linear-rope", sizes(40, 5, 1, 8, rope_parameters=LINEAR_ROPE), transformers_4=True),
    Case("stored-as-bf16", sizes(64, 4, 2, 16), dtype=torch.bfloat16),
    Case("stored-as-f16-tied", sizes(64, 4, 2, 16, tie_word_embeddings=True), dtype=torch.float16),
    Case("mistral", sizes(64, 4, 2, 16, sliding_window=40), "mistral"),
    Case("mistral-narrow-window", sizes(60, 3, 1, 20, sliding_window=7), "mistral"),
    Case("mixtral", sizes(60, 3, 1, 20, sliding_window=9, num_local_experts=4), "mixtral"),
    Case(
        "qwen2-windows-in-turn",
        sizes(
            *(64, 4, 2, 16),
            num_hidden_layers=5,
            use_sliding_window=True,
            sliding_window=33,
            layer_types=["sliding_attention", "full_attention"] * 2 + ["full_attention"],
        ),
        "qwen2",
    ),
    Case(
        "gemma2",
        sizes(
            *(60, 3, 1, 20),
            num_hidden_layers=3,
            sliding_window=7,
            query_pre_attn_scalar=11,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=4.0,
        ),
        "gemma2",
    ),
    Case(
        "gemma3",
        sizes(
            *(64, 4, 2, 16),
            num_hidden_layers=7,
            sliding_window=33,
            rope_parameters={
                "full_attention": LINEAR_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        ),
        "gemma3_text",
    ),
    Case("olmo2", sizes(60, 3, 1, 20), "olmo2"),
    Case("olmoe", sizes(60, 3, 1, 20, num_experts=5, num_experts_per_tok=2), "olmoe"),
    Case("qwen2", sizes(64, 4, 2, 16, rms_norm_eps=1e-6), "qwen2"),
    Case("qwen3", sizes(60, 3, 1, 20, rms_norm_eps=1e-6), "qwen3"),
    Case(
        "qwen3-moe",
        sizes(
            *(64, 4, 2, 16),
            num_experts=17,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            norm_topk_prob=True,
        ),
        "qwen3_moe",
    ),
    Case("qwen3-wide-heads-tied", sizes(40, 4, 2, 32, tie_word_embeddings=True), "qwen3"),
]


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
