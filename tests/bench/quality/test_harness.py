"""The harness gets from our engine what transformers gives it: scores, answers, a task's result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="an extra: pip install 'sandwich-llm[eval]'")

import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM

from bench.quality.harness import HarnessModel
from sandwich import LLM
from sandwich.cli import main

LENGTH, BOS, EOS = 64, 256, 257
PAIRS = [
    ("The capital of France is", " Paris."),
    ("", "no context"),
    ("ends with spaces  ", "and goes on"),
    ("x", "y"),
    ("long " * 40, "than the model takes"),
]
TEXTS = ["a", "One text.", "A text that is longer than the model takes. " * 4]


def byte_backend() -> Backend:
    """Bytes in the order of their characters, with BOS in front of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LENGTH,
        "initializer_range": 0.2, "bos_token_id": BOS, "eos_token_id": EOS,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(made)
    byte_backend().save(str(made / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>"}
    (made / "tokenizer_config.json").write_text(json.dumps(names))
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[HarnessModel]:
    with closing(LLM(str(folder), executor="reference", dtype="float32", max_num_seqs=4)) as llm:
        yield HarnessModel(llm, LENGTH)


class Theirs:
    """Log-likelihoods by transformers, of tokens counted one by one."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = LlamaForCausalLM.from_pretrained(folder).eval()
        self._backend = byte_backend()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def score(self, context: list[int], rest: list[int]) -> tuple[float, bool]:
        ids = (context + rest)[-LENGTH:]
        with torch.no_grad():
            logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
        rows = np.arange(len(ids) - len(rest) - 1, len(ids) - 1)
        is_greedy = bool((logprobs[rows].argmax(1) == rest).all())
        return float(logprobs[rows, rest].astype(np.float64).sum()), is_greedy


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Theirs:
    return Theirs(folder)


def instances(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def test_scores_of_continuations_are_those_of_transformers(
    ours: HarnessModel, theirs: Theirs
) -> None:
    found = ours.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, continuation), (logprob, is_greedy) in zip(PAIRS, found, strict=True):
        spaces = len(context) - len(context.rstrip())
        rest = context[len(context) - spaces :] + continuation
        ids = [BOS, *theirs.encode(context.rstrip())]
        expected = theirs.score(ids, theirs.encode(rest))
        assert logprob == pytest.approx(expected[0], abs=2e-3)
        assert is_greedy == expected[1]


def test_a_greedy_continuation_is_known_as_one(ours: HarnessModel, theirs: Theirs) -> None:
    wishes = {"until": [], "max_gen_toks": 1}
    [answer] = ours.generate_until(instances("generate_until", ("x = ", wishes)), disable_tqdm=True)
    found = ours.loglikelihood(
        instances("loglikelihood", ("x =", f" {answer}"), ("x =", " !!")), disable_tqdm=True
    )
    for (_, is_greedy), rest in zip(found, (f" {answer}", " !!"), strict=True):
        assert is_greedy == theirs.score([BOS, *theirs.encode("x =")], theirs.encode(rest))[1]


def test_whole_texts_are_scored_in_windows_of_the_model(ours: HarnessModel, theirs: Theirs) -> None:
    texts = [(text,) for text in TEXTS]
    found = ours.loglikelihood_rolling(
        instances("loglikelihood_rolling", *texts), disable_tqdm=True
    )
    for text, logprob in zip(TEXTS, found, strict=True):
        ids, most = theirs.encode(text), LENGTH - 1
        expected, before = 0.0, BOS
        for start in range(0, len(ids), most):
            part = ids[start : start + most]
            if len(part) < most and start:  # the last window is as long as the others
                context = ids[len(ids) - most - 1 : start]
                expected += theirs.score(context, part)[0]
            else:
                expected += theirs.score([before], part)[0]
            before = part[-1]
        assert logprob == pytest.approx(expected, abs=2e-3 * len(ids))


def test_an_answer_ends_before_its_stop_string(ours: HarnessModel) -> None:
    free = {"until": [], "max_gen_toks": 12}
    [whole] = ours.generate_until(instances("generate_until", ("What?", free)), disable_tqdm=True)
    stop = whole[4:6]
    [cut] = ours.generate_until(
        instances("generate_until", ("What?", free | {"until": [stop]})), disable_tqdm=True
    )
    assert cut == whole[: whole.index(stop)]


def test_a_task_in_a_folder_runs_to_its_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    documents = [{"q": f"{i} and {i} is", "choices": ["even", "odd"], "a": 0} for i in range(6)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'data.jsonl'}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{q}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{a}}'\nmetric_list:\n  - metric: acc\n"
    )
    command = ["eval", "tasks", str(folder), "--include-path", str(tmp_path), "--tasks", "sums"]
    file = tmp_path / "result.json"
    flags = ["--executor", "reference", "--limit", "4", "--json", str(file)]
    assert main([*command, *flags]) == 0
    assert "sums" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert 0 <= result["results"]["sums"]["acc,none"] <= 1
    assert result["n-samples"]["sums"]["effective"] == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks", "no_such_task"], "no_such_task"),
        (["--tasks", "x", "--include-path", "no-such-folder"], "no-such-folder"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "tasks", str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
