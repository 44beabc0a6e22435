"""The embedded model as it is shipped: folder, tokenizer, card, and whether it writes Python."""

import ast
import json
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from sandwich.embedded import MODEL_DIR, SAMPLE_FILE
from sandwich.embedded.completion import PROMPT, complete, documented_function_rate
from sandwich.embedded.evaluate import load, text_perplexity
from sandwich.embedded.network import llama_config
from sandwich.embedded.tokens import ASSISTANT, END, END_OF_TEXT, USER

MAX_WEIGHT_BYTES = 15_000_000


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaForCausalLM]:
    """In float32 on one thread: matrices this small lose more to waiting than they gain."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load(MODEL_DIR)[0]
    torch.set_num_threads(num_threads)


@cache
def shipped_tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def card_value(text: str, metric: str) -> float:
    results = ModelCard.load(MODEL_DIR / "README.md").data.eval_results
    return next(
        r.metric_value for r in results if r.dataset_config == text and r.metric_type == metric
    )


def test_the_weights_are_bfloat16_and_fit_in_fifteen_megabytes() -> None:
    path = MODEL_DIR / "model.safetensors"
    assert path.stat().st_size <= MAX_WEIGHT_BYTES
    with safe_open(path, framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118


def test_the_config_is_the_one_the_training_script_builds() -> None:
    config = AutoConfig.from_pretrained(MODEL_DIR)
    ours = llama_config(shipped_tokenizer().convert_tokens_to_ids(END_OF_TEXT))
    assert config.architectures == ["LlamaForCausalLM"]
    ignored = {"architectures", "dtype", "transformers_version", "_name_or_path"}
    written, built = config.to_dict(), ours.to_dict()
    assert {k: v for k, v in written.items() if k not in ignored} == {
        k: v for k, v in built.items() if k not in ignored
    }


def test_every_weight_is_finite(model: LlamaForCausalLM) -> None:
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_generation_ends_at_the_end_of_a_text_and_of_a_message() -> None:
    config = json.loads((MODEL_DIR / "generation_config.json").read_text())
    expected = shipped_tokenizer().convert_tokens_to_ids([END_OF_TEXT, END])
    assert config["eos_token_id"] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        "    ",
        "\t\tif x:\r\n\r\n",
        "\0",
        "".join(map(chr, range(256))),
        "naïve 日本語 😀 e\u0301 \ufeff",
        'def add(a, b):\n    """',
        "__init__ . ._x  y.z 1234567",
        f"a{END}b{USER} c",
        " don't , isn 't",
    ],
)
def test_a_text_survives_encoding_and_decoding(text: str) -> None:
    tokenizer = shipped_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@settings(max_examples=100, deadline=None)
@given(st.binary())
def test_every_byte_has_a_token_of_its_own(data: bytes) -> None:
    tokenizer = shipped_tokenizer()
    text = data.decode("latin-1")
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_id_below_the_vocabulary_size_is_a_token() -> None:
    tokenizer = shipped_tokenizer()
    assert len(tokenizer) == AutoConfig.from_pretrained(MODEL_DIR).vocab_size
    assert None not in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


def test_a_prompt_begins_with_the_end_of_text_token_once() -> None:
    tokenizer = shipped_tokenizer()
    ids = tokenizer.encode("x")
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1:] == tokenizer.encode("x", add_special_tokens=False)


def test_a_chat_is_rendered_with_one_marker_per_message_and_without_the_system_message() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    text = shipped_tokenizer().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert text == (f"{END_OF_TEXT}{USER}one{END}{ASSISTANT}two{END}{USER}three{END}{ASSISTANT}")


def test_the_perplexity_of_the_sample_is_the_one_on_the_card(model: LlamaForCausalLM) -> None:
    text = (MODEL_DIR / SAMPLE_FILE).read_text(encoding="utf-8")
    measured = text_perplexity(model, shipped_tokenizer(), text)
    recorded = card_value(SAMPLE_FILE, "perplexity")
    assert measured.per_token == pytest.approx(recorded, rel=1e-3)
    assert measured.bits_per_byte == pytest.approx(
        card_value(SAMPLE_FILE, "bits_per_byte"), rel=1e-3
    )


def test_more_than_half_of_the_sampled_completions_are_documented_functions(
    model: LlamaForCausalLM,
) -> None:
    assert documented_function_rate(model, shipped_tokenizer(), 200, temperature=0.8) > 0.5


def test_the_same_seed_gives_the_same_completions(model: LlamaForCausalLM) -> None:
    first, again = (
        complete(model, shipped_tokenizer(), PROMPT, 4, 0.8, seed=3, max_new_tokens=8)
        for _ in range(2)
    )
    assert first == again


def test_a_chat_is_answered_with_a_function(model: LlamaForCausalLM) -> None:
    tokenizer = shipped_tokenizer()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Return the sum of a and b."}],
        tokenize=False,
        add_generation_prompt=True,
    ).removeprefix(END_OF_TEXT)
    answer = complete(model, tokenizer, prompt, max_new_tokens=24)[0].removeprefix(prompt)
    signature, rest = answer.split("\n", 1)
    ast.parse(f"{signature} ...")
    assert rest.startswith('    """')
