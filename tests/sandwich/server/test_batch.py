"""A batch through the engine: every line has its answer, that of the server, also after a crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandwich.batch_file import BatchOutput, check_requests, read_requests
from sandwich.engine.engine import Engine
from sandwich.errors import UnavailableError
from sandwich.server.backend import Backend
from sandwich.server.batch import URLS, Counts, run_batch
from tests.sandwich.server.conftest import (
    BOS,
    LIMITS,
    MODEL,
    GatedExecutor,
    Setup,
    digits,
)

BackendOf = Callable[[Setup, Engine], Backend]
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def make(backend_of: BackendOf) -> Callable[..., tuple[Backend, GatedExecutor]]:
    def make(**changes: Any) -> tuple[Backend, GatedExecutor]:
        setup = replace(Setup(), **changes)
        executor = GatedExecutor(setup.limits, setup.text)
        return backend_of(setup, Engine(executor)), executor

    return make


def write(file: Path, requests: list[tuple[str, dict[str, Any]]]) -> None:
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": url, "body": body}
        for i, (url, body) in enumerate(requests)
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))


async def run(backend: Backend, folder: Path) -> Counts:
    known = check_requests(folder / "in", URLS)
    with BatchOutput(folder / "out", known) as output:
        return await run_batch(backend, read_requests(folder / "in", URLS), output)


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    """By id; each exactly once."""
    found = [json.loads(text) for text in (folder / "out").read_text().splitlines()]
    by_id = {each["custom_id"]: each for each in found}
    assert len(by_id) == len(found)
    return by_id


async def test_each_endpoint_answers_as_the_server_does(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDWICH_API_KEY", "k")  # is for servers
    backend, executor = make()
    write(
        tmp_path / "in",
        [
            ("/v1/completions", {"model": MODEL, "prompt": "ab", "max_tokens": 4}),
            ("/v1/chat/completions", {"model": MODEL, "messages": USER, "max_tokens": 2}),
            ("/v1/embeddings", {"model": MODEL, "input": "ab", "dimensions": 2}),
            ("/v1/responses", {"input": "hi", "max_output_tokens": 2}),
            ("/v1/completions", {"model": "other", "prompt": "ab"}),
            ("/v1/completions", {"prompt": 3}),
        ],
    )
    counts = await run(backend, tmp_path)
    assert (counts.num_answered, counts.num_refused) == (6, 2)
    found = answers(tmp_path)
    bodies = [found[f"r{i}"]["response"]["body"] for i in range(6)]
    assert bodies[0]["choices"][0]["text"] == digits(len([BOS, *"ab"]), 4)
    assert bodies[1]["object"] == "chat.completion"
    assert len(bodies[2]["data"][0]["embedding"]) == 2
    assert bodies[3]["status"] == "incomplete"
    statuses = [found[f"r{i}"]["response"]["status_code"] for i in range(6)]
    assert statuses == [200, 200, 200, 200, 404, 400]
    assert bodies[5]["error"]["param"] == "prompt"
    assert all(each["error"] is None for each in found.values())
    await executor.closed()


async def test_many_more_requests_than_places_all_get_their_answer(
    make: Any, tmp_path: Path
) -> None:
    limits = replace(LIMITS, max_num_seqs=2)
    backend, _ = make(limits=limits, max_num_queued_reqs=1)
    body = {"prompt": "x", "max_tokens": 3, "n": 2}
    write(tmp_path / "in", [("/v1/completions", body)] * 40)
    assert (await run(backend, tmp_path)).num_answered == 40
    statuses = {each["response"]["status_code"] for each in answers(tmp_path).values()}
    assert statuses == {200}


async def test_an_engine_that_fails_leaves_the_rest_for_the_next_time(
    make: Any, tmp_path: Path
) -> None:
    backend, _ = make()
    body, count = {"prompt": "x", "max_tokens": 2}, 60
    write(tmp_path / "in", [("/v1/completions", body)] * count)
    backend.engine.step = _dying(
        backend.engine.step, after=20
    )  # the first eight requests need less, all of them more
    with pytest.raises(UnavailableError, match="start again to go on"):
        await run(backend, tmp_path)
    num_done = len(answers(tmp_path))
    assert 0 < num_done < count
    backend, _ = make()
    assert (await run(backend, tmp_path)).num_answered == count - num_done
    assert len(answers(tmp_path)) == count


def _dying(step: Callable[[], Any], after: int) -> Callable[[], Any]:
    left = after

    def dying() -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise SystemError("the engine dies")
        return step()

    return dying
