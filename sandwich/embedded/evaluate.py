"""Measure an exported model: perplexity on held-out source, and how often it writes a function.

Reads a Hugging Face folder, never a checkpoint; computes in float32, whatever the weights are.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from sandwich.embedded import SAMPLE_FILE
from sandwich.embedded.completion import documented_function_rate
from sandwich.embedded.corpus import Kind, SourceFile
from sandwich.embedded.network import total_loss
from sandwich.perplexity import Perplexity

NUM_COMPLETIONS = 600
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Metrics:
    """What the model card records."""

    library: Perplexity
    tests: Perplexity
    sample: Perplexity
    greedy_is_function: bool
    function_rate: float  # at TEMPERATURE, over NUM_COMPLETIONS samples

    @property
    def validation(self) -> Perplexity:
        """Over the whole held-out set."""
        return self.library + self.tests

    def rows(self) -> list[tuple[str, Perplexity]]:
        """The perplexities by the name of their text."""
        return [
            ("validation", self.validation),
            ("library files", self.library),
            ("test files", self.tests),
            (SAMPLE_FILE, self.sample),
        ]


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model in float32, ready for inference, and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def text_perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str
) -> Perplexity:
    """Of one document: each of its tokens predicted, the first from `<|endoftext|>`."""
    ids = np.asarray(tokenizer(text, verbose=False)["input_ids"])
    nats, num_tokens = total_loss(model, ids, autocast=False)
    return Perplexity(len(text.encode()), num_tokens, nats)


def evaluate(folder: Path, files: list[SourceFile]) -> Metrics:
    """Measure the model in `folder` on the held-out ones of `files`; minutes on two cores."""
    model, tokenizer = load(folder)
    by_kind = {Kind.LIBRARY: Perplexity(0, 0, 0.0), Kind.TESTS: Perplexity(0, 0, 0.0)}
    for file in files:
        if file.is_validation:
            by_kind[file.kind] += text_perplexity(model, tokenizer, file.text)
    sample = (folder / SAMPLE_FILE).read_text(encoding="utf-8")
    return Metrics(
        library=by_kind[Kind.LIBRARY],
        tests=by_kind[Kind.TESTS],
        sample=text_perplexity(model, tokenizer, sample),
        greedy_is_function=documented_function_rate(model, tokenizer, 1, 0.0) == 1.0,
        function_rate=documented_function_rate(model, tokenizer, NUM_COMPLETIONS, TEMPERATURE),
    )


def print_metrics(console: Console, metrics: Metrics) -> None:
    """A table of the perplexities and a line on the completions."""
    table = Table("text", "bytes", "tokens", "perplexity per token", "per byte", "bits per byte")
    for name, value in metrics.rows():
        figures = (value.per_token, value.per_byte, value.bits_per_byte)
        counts = (str(value.num_bytes), str(value.num_tokens))
        table.add_row(name, *counts, *(f"{figure:.3f}" for figure in figures))
    console.print(table)
    console.print(
        f"documented functions: {metrics.function_rate:.0%} of {NUM_COMPLETIONS} samples at"
        f" temperature {TEMPERATURE}; greedy: {'yes' if metrics.greedy_is_function else 'no'}"
    )
