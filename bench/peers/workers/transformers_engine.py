"""transformers on torch: `transformers_engine.py FOLDER THREADS`. bf16 weights, SDPA, a cache."""

import statistics
import sys
import time
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.peers.workers.loop import answer_requests


def main() -> None:
    """Load and answer."""
    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        answer_requests(partial(seconds, model))


def seconds(model: Any, asked: dict[str, Any]) -> float:
    """Of a prompt up to the logits of its last token, or the median decode step."""
    is_prefill = asked["work"] == "prefill"
    size = (1, asked["tokens"]) if is_prefill else (asked["batch"], asked["context"])
    ids = torch.randint(model.config.vocab_size, size)
    started = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    if is_prefill:
        return time.perf_counter() - started
    times = []
    for _ in range(asked["steps"] + 1):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        started = time.perf_counter()
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
