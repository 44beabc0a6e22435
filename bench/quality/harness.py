"""A model of ours as EleutherAI's lm-evaluation-harness drives one: scores of continuations, scores
of whole texts, and text up to a stop string.

Log-likelihoods are sums of the log probabilities that a request with `prompt_logprobs` gets. The
package `lm_eval` is an extra (`eval`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bench.driver import BenchmarkError
from sandwich.llm import LLM
from sandwich.requests.sampling_params import SamplingParams
from sandwich.text.messages import Chat
from sandwich.text.output import RequestOutput

DEFAULT_NEW_TOKENS: Final = 256  # where a task does not say how long an answer may be
_SCORED: Final = SamplingParams(max_tokens=0, prompt_logprobs=0)
# Of the parameters a task may ask to sample by, those that mean here what they mean there.
_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p")

Encoded = tuple[tuple[str, str], list[int], list[int]]  # texts, ids of context and continuation


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Drives `llm`, which stays the caller's. Contexts that are too long lose their beginning."""

    def __init__(self, llm: LLM, max_model_len: int) -> None:
        super().__init__()
        self._llm, self._max_model_len = llm, max_model_len

    @property
    def eot_token_id(self) -> int:
        tokenizer = self._llm.tokenizer
        found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else self._bos
        if found is None:
            raise BenchmarkError("the tokenizer names no eos and no bos token to begin a text with")
        return found

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: bos, or eos for a model without one."""
        return self.eot_token_id if self._bos is None else self._bos

    @property
    def _bos(self) -> int | None:
        return self._llm.tokenizer.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        """A key under which the harness may keep rendered prompts."""
        return self._llm.model_config.name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; a text that begins with BOS is not given another one."""
        [ids] = self._llm.tokenizer.encode_prompts([string], add_special_tokens is not False)
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation."""
        chat = Chat(messages=chat_history, add_generation_prompt=add_generation_prompt)
        [prompt] = self._llm.tokenizer.encode_chats([chat])
        return prompt.text

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, each token predicted once, in windows of the model."""
        windows: list[Encoded] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            rolled = get_rolling_token_windows(
                ids, self.prefix_token_id, self._max_model_len - 1, 1
            )
            for pair in map(make_disjoint_window, rolled):
                windows.append((("", ""), *pair))
                owners.append(owner)
        found = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for owner, (logprob, _) in zip(owners, scores, strict=True):
            found[owner] += logprob
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, unless a task asks to sample, without their stop strings."""
        params = [self._params(request.args[1]) for request in requests]
        ids = [
            self._fitting(self.tok_encode(request.args[0]), each.max_tokens or 0)
            for request, each in zip(requests, params, strict=True)
        ]
        outputs = self._run(ids, params, disable_tqdm)
        return [output.outputs[0].text for output in outputs]

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding would say it) of each continuation."""
        ids = [self._fitting(context + rest, 0) for _, context, rest in requests]
        outputs = self._run(ids, [_SCORED] * len(ids), disable_tqdm)
        return [
            _continuation_score(output, len(rest))
            for output, (_, _, rest) in zip(outputs, requests, strict=True)
        ]

    def _fitting(self, ids: list[int], num_new: int) -> list[int]:
        """The last tokens that leave room for `num_new` more."""
        return ids[-max(self._max_model_len - num_new, 1) :]

    def _params(self, wishes: dict[str, Any]) -> SamplingParams:
        until = wishes.get("until") or ()
        chosen: dict[str, Any] = {"temperature": 0.0}
        if wishes.get("do_sample", wishes.get("temperature", 0) > 0):
            chosen = {"temperature": 1.0} | {
                name: wishes[name] for name in _SAMPLING if name in wishes
            }
        return SamplingParams(
            max_tokens=int(wishes.get("max_gen_toks", DEFAULT_NEW_TOKENS)),
            stop=until,
            **chosen,
        )

    def _run(
        self, ids: list[list[int]], params: Sequence[SamplingParams], is_quiet: bool
    ) -> list[RequestOutput]:
        outputs = self._llm.generate(
            prompt_token_ids=ids, sampling_params=params, use_tqdm=not is_quiet
        )
        for output in outputs:
            if output.outputs[0].finish_reason == "error":
                raise BenchmarkError(f"request {output.request_id} failed; see the log")
        return outputs


def _continuation_score(output: RequestOutput, num_tokens: int) -> tuple[float, bool]:
    """Of the last `num_tokens` tokens of the prompt."""
    ids, entries = output.prompt_token_ids, output.prompt_logprobs
    assert entries is not None
    first = max(len(ids) - num_tokens, 1)
    scored = [entry[token] for token, entry in zip(ids, entries, strict=True) if entry][first - 1 :]
    return math.fsum(each.logprob for each in scored), all(each.rank == 1 for each in scored)
