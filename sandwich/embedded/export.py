"""Write the trained model and its card as a Hugging Face folder. Trains and measures nothing."""

import copy
import platform
import re
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCardData
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM

from sandwich.embedded import SAMPLE_FILE
from sandwich.embedded.batches import tokens_per_batch
from sandwich.embedded.corpus import Kind, SourceFile
from sandwich.embedded.evaluate import NUM_COMPLETIONS, TEMPERATURE, Metrics
from sandwich.embedded.tokens import END, END_OF_TEXT, save_tokenizer

SAMPLE_BYTES = 16 * 1024  # the held-out library file nearest to this travels with the model
FOREIGN_LICENCE = re.compile(r"copyright|licen[cs]e|\(c\)", re.IGNORECASE)
MODEL_NAME = "sandwich-embedded"
CARD = """
# The embedded model of Sandwich

A Llama of {millions:.2f} million parameters that completes Python. It is small so that it can
travel with the package, and real so that perplexity, quantisation loss and the acceptance of
speculated tokens can be measured on it. It has read nothing but the Python standard library: it
imitates its manner and knows no facts. Do not rely on what it writes.

## Shape

{num_layers} layers, hidden size {hidden}, {heads} query heads and {kv_heads} key/value heads of
{head_dim}, intermediate size {intermediate}, vocabulary {vocab}, context {context} tokens, tied
embeddings, weights in bfloat16.

The tokenizer is a byte-level BPE of its own: every text survives encoding and decoding.
`<|endoftext|>` begins a document and ends it; `<|end|>` ends a message.

## Figures

| Text | Bytes | Tokens | Perplexity per token | Perplexity per byte | Bits per byte |
|---|---|---|---|---|---|
{rows}

Documents are predicted in windows of {context} tokens that do not overlap, in float32.
`validation` is the held-out set as a whole. `{sample_file}` is one held-out file, kept here so
that the figure can be recomputed under any version of Python.

Given `def add(a, b):` and an opened docstring, {rate:.0%} of {num_completions} samples at
temperature {temperature} end as a function that compiles and has a docstring and a body; the
greedy one {greedy}. It begins:

```python
{example}
```

## Chat

The user's message is a description of a function (`Return the sum of a and b.`), perhaps begun
with `Write a function NAME.`, or a signature (`def add(a, b):`); the answer is a function. System
messages are left out by the template.

## Training

Text: the standard library of CPython {python} (`*.py`, tests included; encoding tables, help
topics and `site-packages` left out), as whole files, as short documented functions, and as
exchanges of a docstring or a signature and its function. One file in fifty, chosen by the hash of
its path, is held out with all that was taken from it.

{num_steps} steps of {batch} tokens ({million_tokens:.1f} million in all) in {minutes:.0f} minutes
of wall time on two cores that had other work to do; a quiet machine gets further. Muon for the
matrices, AdamW for the embedding and the norms. To train again and to measure, in a checkout with
the `test` extra installed:

```
python -m sandwich.embedded.train --minutes 70
python -m sandwich.embedded.train --evaluate
```

## Licence

The training text and `{sample_file}` are Copyright (c) 2001 Python Software Foundation; All
Rights Reserved, used under the PSF License Agreement, version 2
(https://docs.python.org/3/license.html). The weights, as far as they are a work of their own, are
under the Apache License 2.0, as the package is.
"""


def write_model(
    folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, held_out: list[SourceFile]
) -> None:
    """Weights in bfloat16, config, tokenizer, generation defaults and the validation sample."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = copy.deepcopy(model).to(torch.bfloat16)
    end_of_text, end = (tokenizer.token_to_id(token) for token in (END_OF_TEXT, END))
    exported.generation_config = GenerationConfig(
        bos_token_id=end_of_text,
        eos_token_id=[end_of_text, end],
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
    )
    exported.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # the writer leaves it to its owner alone
    save_tokenizer(tokenizer, folder, model.config.max_position_embeddings)
    ours = [f for f in held_out if f.kind is Kind.LIBRARY and not FOREIGN_LICENCE.search(f.text)]
    sample = min(ours, key=lambda f: abs(len(f.text.encode()) - SAMPLE_BYTES))
    (folder / SAMPLE_FILE).write_text(sample.text, encoding="utf-8")


def write_card(
    folder: Path,
    model: LlamaForCausalLM,
    metrics: Metrics,
    example: str,
    num_steps: int,
    minutes: float,
) -> None:
    """`README.md`: the figures in words for people and in the front matter for programs."""
    config = model.config
    text = CARD.format(
        millions=model.num_parameters() / 1e6,
        num_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        rows="\n".join(_table_rows(metrics)),
        sample_file=SAMPLE_FILE,
        rate=metrics.function_rate,
        num_completions=NUM_COMPLETIONS,
        temperature=TEMPERATURE,
        greedy="does so too" if metrics.greedy_is_function else "does not",
        example=example,
        python=platform.python_version(),
        num_steps=num_steps,
        batch=tokens_per_batch(),
        million_tokens=num_steps * tokens_per_batch() / 1e6,
        minutes=minutes,
    )
    front_matter = f"---\n{_card_data(metrics).to_yaml()}\n---\n"
    (folder / "README.md").write_text(front_matter + text, encoding="utf-8")


def _table_rows(metrics: Metrics) -> list[str]:
    return [
        f"| {name} | {value.num_bytes} | {value.num_tokens} | {value.per_token:.3f}"
        f" | {value.per_byte:.4f} | {value.bits_per_byte:.4f} |"
        for name, value in metrics.rows()
    ]


def _card_data(metrics: Metrics) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="python-standard-library",
            dataset_name="Python standard library",
            dataset_config=name,
            metric_type=metric,
            metric_value=round(figure, 4),
        )
        for name, value in metrics.rows()
        for metric, figure in (
            ("perplexity", value.per_token),
            ("bits_per_byte", value.bits_per_byte),
        )
    ]
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["code", "python"],
        model_name=MODEL_NAME,
        eval_results=results,
    )
