"""Does the model write Python? Complete a signature and see whether a function comes of it.

Knows the transformers interface of a model; knows nothing of training.
"""

import ast

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


def is_documented_function(text: str) -> bool:
    """Whether `text`, cut at its first dedent, compiles as one function with docstring and body."""
    try:
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
    """Prompt and continuation of each sample, special tokens left out; temperature 0 is greedy."""
    torch.manual_seed(seed)
    sampling: dict[str, bool | float | None] = {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
    }
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    ids = model.generate(
        **tokenizer(prompt, return_tensors="pt", return_token_type_ids=False),
        **sampling,
        num_return_sequences=num_samples,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.eos_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def documented_function_rate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    num_samples: int,
    temperature: float,
    seed: int = 0,
) -> float:
    """Share of the seeded samples of PROMPT that are documented functions, 0 to 1."""
    texts = complete(model, tokenizer, PROMPT, num_samples, temperature, seed)
    return sum(map(is_documented_function, texts)) / num_samples
