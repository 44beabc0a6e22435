"""The default model, straight out of its package: tokens and token ids are those of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sandwich import LLM, SamplingParams
from sandwich.checkpoint.formats import open_source
from sandwich.startup.hub import resolve_model
from sandwich.text.tokenizer import Tokenizer

NUM_TOKENS = 12
PROMPTS = ["The capital of France is", "def add(a, b):\n    return", "1 2 3 4"]
HEADS = {"attn_q": 9, "attn_k": 3}
PLACES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}
AWKWARD = [
    *("", " ", "  ", "   ", " " * 17, "\n", "\n\n", "\n\n\n\n", "\t", "\t\t x", "\r\n"),
    *(" \n ", "a ", "a  b", " a", "a\n", "\na", "a\n\n b", "  indented\n    more"),
    *("trailing   \n", "x" * 300, "0", "7", "42", "1234567890", "3.14159", "-1"),
    *("1,000,000", "1e-5", "0x1F", "²³¼", "٣٤", "３４", "don't", "DON'T"),
    *("it's we'll I've", "'s", "''", "o'clock", "l'été", "rock 'n' roll", "’s"),
    *("Hello, world!", "HELLO", "hElLo", "CamelCaseWord", "snake_case_word"),
    *("kebab-case", "a.b.c", "!!!", "?!?!", "...", "…", "—", "--", "(a)", "[b]", "{c}"),
    *("<d>", '"q"', "`code`", "a/b\\c", "café", "cafe\u0301", "naïve", "Ångström"),
    *("Å", "ﬁ", "ß", "İi", "ǅ", "a\u0300\u0301\u0302", "日本語", "中文字符", "한국어", "ไทย"),
    *("हिन्दी", "עברית", "العربية", "Ελληνικά", "Русский", "🇫🇷", "😀"),
    *("👩\u200d👩\u200d👧\u200d👦", "👍🏽", "🏳\ufe0f\u200d🌈", "a😀b", "\u200b", "\u200d"),
    *("\ufeff", "\u202eabc", "�", "\x00", "a\x00b", "\x7f", "\x1b[0m", "\u2028"),
    *("\u00a0", "a\u00a0b", "\u3000", "\U0010ffff", "<|im_start|>", "<|im_end|>x"),
    *("x<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n", "<|im_", "<|im_start|"),
    *("< |im_end|>", "<repo_name>a", "<empty_output>", "<s></s>", "[INST]", "<0x41>"),
    *("https://example.org/a?b=c&d=%20#e", "a@b.org", "C:\\dir\\file.txt"),
    *("#!/bin/sh\nset -e\n", "def f(x):\n\treturn x**2  # 平方\n"),
    *("<html>\n  <p>&amp;</p>\n</html>", '{"a": [1, null]}'),
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "to be, or not to be" * 20,
]


@pytest.fixture(scope="module")
def file() -> Path:
    return resolve_model("smollm2")


@pytest.fixture(scope="module")
def truth(file: Path) -> LlamaForCausalLM:
    """The model in transformers, float32, read with the `gguf` package."""
    state: dict[str, torch.Tensor] = {}
    for tensor in GGUFReader(file).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        *prefix, stem, kind = tensor.name.split(".")
        if stem in HEADS:  # neighbours become halves of a head
            pairs = values.reshape(HEADS[stem], -1, 2, values.shape[-1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        layer = f"model.layers.{prefix[1]}." if prefix else ""
        name = f"{layer}{PLACES[stem]}.{kind}"
        state[name] = torch.tensor(values)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()


def test_greedy_tokens_are_those_of_transformers(truth: LlamaForCausalLM, cache_dir: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    options: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4, "cache_dir": cache_dir}
    with LLM(dtype="float32", quantization="none", **options) as llm:
        results = llm.generate(PROMPTS, params, use_tqdm=False)
        assert llm.model_config.eos_token_ids == (2,)
    for result in results:
        ids = torch.tensor([result.prompt_token_ids])
        with torch.inference_mode():
            expected = truth.generate(
                ids,
                do_sample=False,
                max_new_tokens=NUM_TOKENS,
                min_new_tokens=NUM_TOKENS,
                eos_token_id=None,
                pad_token_id=2,
            )
        assert result.outputs[0].token_ids == expected[0, ids.shape[1] :].tolist()


def test_token_ids_of_awkward_texts_are_those_of_transformers(file: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = Tokenizer(open_source(file).tokenizer())
    assert len(set(AWKWARD)) == len(AWKWARD) >= 100
    for text in AWKWARD:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


def test_bytes_that_are_no_text_are_shown_as_such(file: Path) -> None:
    tokenizer = Tokenizer(open_source(file).tokenizer())
    ids = tokenizer.encode("日")
    assert len(ids) > 1
    assert tokenizer.decode(ids[:-1]) == "\ufffd"
    assert b"".join(map(tokenizer.token_bytes, ids)) == "日".encode()
