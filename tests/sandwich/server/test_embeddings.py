"""Embeddings with OpenAI's client, and scores and rankings made of them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest

from sandwich.models.embedding import EmbeddingUse
from sandwich.requests.pooling import Pooling
from tests.sandwich.server.conftest import BOS, MODEL, Rig, StartRig, byte_ids

MADE_FOR_IT = EmbeddingUse(Pooling.LAST, "Q:", "D:")


def states(text: str) -> np.ndarray:
    """Those of the null executor."""
    ids, positions = np.array([BOS, *byte_ids(text)])[:, None], np.arange(1 + len(text))[:, None]
    return np.sin((ids + 1) * np.arange(1, 17) + positions)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def cosine(first: str, second: str) -> float:
    return float(unit(states("Q:" + first)[-1]) @ unit(states("D:" + second)[-1]))


async def embed(rig: Rig, given: Any, **fields: Any) -> Any:
    return await rig.client.embeddings.create(model=MODEL, input=given, **fields)


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_texts_become_unit_vectors(rig: Rig, form: str) -> None:
    texts = ["a", "forty two tokens of text, in three chunks"]
    answer = await embed(rig, texts, encoding_format=form)
    assert (answer.object, answer.model) == ("list", MODEL)
    assert [each.index for each in answer.data] == [0, 1]
    for each, text in zip(answer.data, texts, strict=True):
        vector = each.embedding
        if form == "base64":
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        np.testing.assert_allclose(vector, unit(states(text).mean(axis=0)), atol=1e-6)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 2 + sum(map(len, texts))
    await rig.check_nothing_is_left()


async def test_the_clients_own_choice_of_form_is_read_by_it(rig: Rig) -> None:
    [each] = (await embed(rig, "abc")).data
    np.testing.assert_allclose(each.embedding, unit(states("abc").mean(axis=0)), atol=1e-6)


async def test_dimensions_are_the_first_ones_made_a_unit_again(rig: Rig) -> None:
    [each] = (await embed(rig, "abc", dimensions=3)).data
    np.testing.assert_allclose(each.embedding, unit(states("abc").mean(axis=0)[:3]), atol=1e-6)


async def test_token_ids_and_the_last_state(rig: Rig) -> None:
    answer = await embed(rig, [[BOS, *byte_ids("ab")], [BOS]], extra_body={"pooling": "last"})
    for each, text in zip(answer.data, ("ab", ""), strict=True):
        np.testing.assert_allclose(each.embedding, unit(states(text)[-1]), atol=1e-6)


async def test_a_model_made_for_it_says_which_states(start: StartRig) -> None:
    rig = await start(embedding_use=MADE_FOR_IT)
    [each] = (await embed(rig, "ab")).data
    np.testing.assert_allclose(each.embedding, unit(states("ab")[-1]), atol=1e-6)


async def test_a_long_text_is_cut_on_request(rig: Rig) -> None:
    answer = await embed(rig, "x" * 400, extra_body={"truncate_prompt_tokens": -1})
    assert answer.usage.prompt_tokens == rig.engine.limits.max_model_len - 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": "x" * 400}, "prompt"),
        ({"input": [999]}, "prompt"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 17}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"extra_body": {"pooling": "cls"}}, "pooling"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    rig: Rig, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await rig.client.embeddings.create(**({"model": MODEL, "input": "x"} | fields))
    assert caught.value.param == param
    await rig.check_nothing_is_left()


async def test_a_failed_step_is_told(rig: Rig) -> None:
    rig.executor.failing_runs = frozenset({0})
    with pytest.raises(openai.InternalServerError, match="injected failure"):
        await embed(rig, ["a", "b"])
    await rig.check_nothing_is_left()


async def test_scores_are_cosines(start: StartRig) -> None:
    rig = await start(embedding_use=MADE_FOR_IT)
    status, answer = await rig.post("/v1/score", {"text_1": "x", "text_2": ["y", "z1"]})
    assert status == 200
    found = [each["score"] for each in answer["data"]]
    np.testing.assert_allclose(found, [cosine("x", "y"), cosine("x", "z1")], atol=1e-6)
    pairs = {"queries": ["x", "y"], "documents": ["y", "z1"]}
    _, answer = await rig.post("/v1/score", pairs)
    found = [each["score"] for each in answer["data"]]
    np.testing.assert_allclose(found, [cosine("x", "y"), cosine("y", "z1")], atol=1e-6)


async def test_documents_are_ranked(start: StartRig) -> None:
    rig = await start(embedding_use=MADE_FOR_IT)
    documents = ["one", {"text": "two"}, "three"]
    body = {"query": "q", "documents": documents, "top_n": 2}
    status, answer = await rig.post("/v1/rerank", body)
    assert status == 200
    scores = [cosine("q", text) for text in ("one", "two", "three")]
    order = sorted(range(3), key=lambda i: -scores[i])[:2]
    assert [each["index"] for each in answer["results"]] == order
    assert [each["document"]["text"] for each in answer["results"]] == [
        ("one", "two", "three")[i] for i in order
    ]
    found = [each["relevance_score"] for each in answer["results"]]
    np.testing.assert_allclose(found, [scores[i] for i in order], atol=1e-6)
    _, bare = await rig.post("/v1/rerank", body | {"return_documents": False})
    assert "document" not in bare["results"][0]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/score", {"text_1": [], "text_2": "x"}, "text_1"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["x"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_1"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["x"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": [{"txt": "x"}]}, "documents[0].txt"),
    ],
)
async def test_comparisons_that_make_no_sense_are_refused(
    start: StartRig, path: str, body: dict[str, Any], param: str
) -> None:
    rig = await start(embedding_use=MADE_FOR_IT)
    status, answer = await rig.post(path, body)
    assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/v1/rerank", {"query": "a", "documents": ["x"]}),
    ],
)
async def test_a_model_that_was_not_made_to_compare_says_so(
    rig: Rig, path: str, body: dict[str, Any]
) -> None:
    status, answer = await rig.post(path, body)
    assert (status, answer["error"]["code"]) == (400, "unsupported_model")
