"""OpenVINO GenAI: `openvino_engine.py FILE.gguf THREADS`. The precisions are its own choice."""

import statistics
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import openvino
import openvino_genai

from bench.peers.workers.loop import answer_requests

FIRST_ID, NUM_IDS = 100, 1000  # random tokens out of these: all vocabularies have them


def main() -> None:
    """Load and answer."""
    path, threads = sys.argv[1], int(sys.argv[2])
    pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
    answer_requests(partial(seconds, pipeline, np.random.default_rng(0)))


def seconds(pipeline: Any, rng: np.random.Generator, asked: dict[str, Any]) -> float:
    """Of a prompt up to its first new token, or the median time between two new tokens.

    Prompts are new ones each time: it keeps what it has computed of the earlier ones.
    """
    is_prefill = asked["work"] == "prefill"
    size = (1, asked["tokens"]) if is_prefill else (asked["batch"], asked["context"])
    ids = rng.integers(FIRST_ID, FIRST_ID + NUM_IDS, size)
    tokens = openvino_genai.TokenizedInputs(
        openvino.Tensor(ids), openvino.Tensor(np.ones(size, np.int64))
    )
    config = openvino_genai.GenerationConfig(do_sample=False, ignore_eos=True)
    config.max_new_tokens = 1 if is_prefill else asked["steps"] + 2
    started = time.perf_counter()
    metrics = pipeline.generate(tokens, config).perf_metrics.raw_metrics
    if is_prefill:
        return time.perf_counter() - started
    # microseconds: the prompt, then a step each, of which the first is left out
    return float(statistics.median(metrics.token_infer_durations[2:])) / 1e6


if __name__ == "__main__":
    main()
