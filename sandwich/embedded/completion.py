"""Does the model write Python? Complete a signature and see whether a function comes of it."""

import ast
import warnings

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PROMPT = 'def add(a, b):\n    """'
MAX_NEW_TOKENS = 128


def first_function(text: str) -> str:
    """`text` up to its first dedent: the first line after the `def` that begins at the margin.

    Lines inside the docstring count too, so a docstring that falls to the margin ends the function.
    """
    lines = text.split("\n")
    for index, line in enumerate(lines[1:], start=1):
        if line and not line[0].isspace():
            return "\n".join(lines[:index])
    return text


def has_ended(text: str) -> bool:
    """Whether anything follows the function: what was cut short may parse only by luck."""
    return first_function(text) != text


def is_documented_function(text: str) -> bool:
    """Whether `text`, cut at its first dedent, compiles as one function with docstring and body."""
    try:
        with warnings.catch_warnings(action="ignore"):  # odd escapes and comparisons still compile
            tree = ast.parse(first_function(text))
            compile(tree, "<completion>", "exec")
    except (SyntaxError, ValueError):
        return False
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        return False
    function = tree.body[0]
    return bool(ast.get_docstring(function)) and len(function.body) > 1


def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str = PROMPT,
    num_samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """Prompt and continuation of each sample; temperature 0 is greedy.

    Special tokens are left out but for the one that ends a sample: a text without it was cut short.
    """
    torch.manual_seed(seed)
    sampling: dict[str, bool | float | None] = {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
    }
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(
        **inputs,
        **sampling,
        num_return_sequences=num_samples,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.eos_token_id,
    )
    num_prompt, ends = inputs["input_ids"].shape[1], model.generation_config.eos_token_id
    return [prompt + _decode(tokenizer, row, ends) for row in ids[:, num_prompt:].tolist()]


def documented_function_rate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    num_samples: int,
    temperature: float,
    seed: int = 0,
) -> float:
    """Share of the seeded samples of PROMPT that end and are documented functions, 0 to 1."""
    texts = complete(model, tokenizer, PROMPT, num_samples, temperature, seed)
    return sum(has_ended(t) and is_documented_function(t) for t in texts) / num_samples


def _decode(tokenizer: PreTrainedTokenizerFast, ids: list[int], ends: list[int]) -> str:
    """Text up to and with the first end token, which is put on a line of its own."""
    stop = next((i for i, token_id in enumerate(ids) if token_id in ends), None)
    text: str = tokenizer.decode(ids[:stop], skip_special_tokens=True)
    return text if stop is None else f"{text}\n{tokenizer.decode([ids[stop]])}"
