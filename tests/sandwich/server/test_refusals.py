"""What the server refuses, and how it says so."""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import Any

import openai
import pytest

from sandwich.config import ServerConfig
from sandwich.server.server_limits import ServerLimits
from tests.sandwich.server.conftest import EOS, MODEL, VOCAB_SIZE, Rig, StartRig

COMPLETIONS = "/v1/completions"


async def refusal(
    rig: Rig, body: Any, path: str = COMPLETIONS, status: int = 400
) -> dict[str, Any]:
    """The error object of a request that must be refused with `status`."""
    got, answer = await rig.post(path, body)
    assert got == status, answer
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert rig.bridge.num_places_taken == 0
    error: dict[str, Any] = answer["error"]
    return error


async def first_line(rig: Rig, head: bytes) -> bytes:
    """How the server answers bytes that no client library would send."""
    host, port = rig.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head)
    line = await reader.readline()
    writer.close()
    return line


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"3",
        b'{"prompt": NaN}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b"[" * 100_000,
        b'{"prompt":' * 10_000,
        b'{"prompt": "x", "temperature": 1e999}',
    ],
)
async def test_what_is_no_json_object_is_refused(rig: Rig, body: bytes) -> None:
    error = await refusal(rig, body)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": []}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a", 3]}, "stop[1]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a", None]}, "prompt[1]"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"model": 7}, "model"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)
async def test_a_wrong_type_is_refused_by_name(rig: Rig, fields: Any, param: str) -> None:
    error = await refusal(rig, {"prompt": "x"} | fields)
    assert (error["param"], error["code"]) == (param, "invalid_type")
    assert param in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"stop": ["a", ""]}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 30: 1}}, "logit_bias"),
        ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
        ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": "", "add_special_tokens": False}, "prompt"),
        ({"prompt": [1, VOCAB_SIZE]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"suffix": "}"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"seed": 2**64}, "seed"),
    ],
)
async def test_a_value_out_of_range_is_refused_by_name(rig: Rig, fields: Any, param: str) -> None:
    error = await refusal(rig, {"prompt": "x"} | fields)
    assert error["param"] == param


async def test_a_missing_field_is_named(rig: Rig) -> None:
    assert (await refusal(rig, {}))["param"] == "prompt"
    assert (await refusal(rig, {"prompt": None}))["code"] == "missing_required_parameter"
    assert (await refusal(rig, {}, "/v1/chat/completions"))["param"] == "messages"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("temprature", "did you mean `temperature`?"),
        ("max_token", "did you mean `max_tokens`?"),
        ("stop_token_id", "did you mean `stop_token_ids`?"),
        ("xyzzy", "unknown field `xyzzy`"),
    ],
)
async def test_an_unknown_field_is_refused_with_the_nearest_name(
    rig: Rig, name: str, hint: str
) -> None:
    error = await refusal(rig, {"prompt": "x", name: 1})
    assert hint in error["message"]
    assert (error["param"], error["code"]) == (name, "unknown_parameter")
    assert ("did you mean" in error["message"]) == ("did you mean" in hint)


async def test_a_body_that_is_announced_as_huge_is_refused_with_the_numbers(
    start: StartRig,
) -> None:
    rig = await start(config=ServerConfig(port=0, max_body_size=1000))
    body = json.dumps({"prompt": "x" * 2000}).encode()
    error = await refusal(rig, body, status=413)
    assert f"{len(body)} bytes" in error["message"]
    assert "1000 bytes" in error["message"]
    assert error["code"] == "request_too_large"


async def test_a_huge_body_of_unknown_length_is_refused(start: StartRig) -> None:
    rig = await start(config=ServerConfig(port=0, max_body_size=1000))

    async def chunks() -> Any:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"x" * 1000

    async with rig.http.post(rig.url + COMPLETIONS, data=chunks()) as response:
        assert response.status == 413
        assert "1000 bytes" in (await response.json())["error"]["message"]


async def test_a_body_of_just_the_limit_is_read(start: StartRig) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    rig = await start(config=ServerConfig(port=0, max_body_size=len(body)))
    assert (await rig.post(COMPLETIONS, body))[0] == 200
    assert (await rig.post(COMPLETIONS, body + b" "))[0] == 413


async def test_a_body_that_never_comes_is_not_waited_for(start: StartRig) -> None:
    rig = await start(server_limits=ServerLimits(body_timeout_s=0.001))

    async def one_byte() -> Any:
        yield b"{"
        await answered.wait()

    answered = asyncio.Event()
    async with rig.http.post(rig.url + COMPLETIONS, data=one_byte()) as response:
        answered.set()
        assert response.status == 408
        assert (await response.json())["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("num_tokens", [256, 257, 1000])
async def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(
    rig: Rig, num_tokens: int
) -> None:
    error = await refusal(rig, {"prompt": [1] * num_tokens})
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert str(num_tokens) in error["message"]
    assert "256" in error["message"]
    assert rig.executor.num_runs == 0


async def test_a_prompt_must_leave_room_for_a_token(rig: Rig) -> None:
    error = await refusal(rig, {"prompt": [1] * 256, "max_tokens": 1})
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert (await rig.post(COMPLETIONS, {"prompt": [1] * 255, "max_tokens": 1}))[0] == 200


async def test_one_bad_prompt_refuses_the_whole_list(rig: Rig) -> None:
    await refusal(rig, {"prompt": ["fine", "x" * 300]})
    assert rig.executor.num_runs == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 5}, "n"),
        ({"stop": ["a", "b", "c"]}, "stop"),
        ({"stop": "abcd"}, "stop"),
        ({"prompt": ["a", "b", "c"]}, "prompt"),
        ({"prompt": [[1], [2], [3]]}, "prompt"),
        ({"logit_bias": {"1": 0, "2": 0}}, "logit_bias"),
    ],
)
async def test_more_than_the_limit_is_refused_with_the_limit(
    start: StartRig, fields: Any, param: str
) -> None:
    limits = ServerLimits(
        max_choices=4, max_prompts=2, max_stop_strings=2, max_stop_chars=3, max_logit_biases=1
    )
    rig = await start(server_limits=limits)
    error = await refusal(rig, {"prompt": "x"} | fields)
    assert (error["param"], error["code"]) == (param, "limit_exceeded")
    body = {"prompt": [1, 2, 3], "n": 4, "stop": ["abc", "b"], "max_tokens": 1}
    assert (await rig.post(COMPLETIONS, body))[0] == 200


async def test_more_choices_than_the_server_ever_holds_are_refused(start: StartRig) -> None:
    rig = await start(max_num_queued_reqs=2)
    error = await refusal(rig, {"prompt": ["a", "b"], "n": 4})
    assert "8 completions" in error["message"]
    assert "6 at most" in error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_an_unknown_model_is_not_found(rig: Rig, path: str) -> None:
    fields: dict[str, dict[str, Any]] = {
        COMPLETIONS: {"prompt": "x"},
        "/v1/chat/completions": {"messages": []},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": []},
    }
    error = await refusal(rig, {"model": "gpt-9"} | fields[path], path, status=404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert MODEL in error["message"]


async def test_an_unknown_path_and_a_wrong_method_are_error_objects(rig: Rig) -> None:
    error = await refusal(rig, {}, "/v1/images", status=404)
    assert error["code"] == "not_found"
    async with rig.http.get(rig.url + COMPLETIONS) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert (await response.json())["error"]["code"] == "method_not_allowed"


async def test_without_the_key_there_is_no_answer(start: StartRig) -> None:
    rig = await start(config=ServerConfig(port=0, api_key="sécret"))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sécret"}):
        async with rig.http.get(rig.url + "/v1/models", headers=headers) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            error = (await response.json())["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    status_line = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\r\n\r\n"
    assert b"401" in await first_line(rig, status_line)
    for path in ("/health", "/version", "/metrics"):
        async with rig.http.get(rig.url + path) as response:
            assert response.status == 200


async def test_with_the_key_there_is_an_answer(start: StartRig) -> None:
    rig = await start(config=ServerConfig(port=0, api_key="secret"))
    answer = await rig.client.completions.create(model=MODEL, prompt="x", max_tokens=1)
    assert answer.choices[0].text == "2"
    with pytest.raises(openai.AuthenticationError):
        await rig.client.with_options(api_key="other").models.list()


async def test_a_request_that_fails_in_the_engine_is_a_500_and_the_next_one_works(
    rig: Rig,
) -> None:
    rig.executor.failing_runs = frozenset({0})
    error = await refusal(rig, {"prompt": "x"}, status=500)
    assert (error["type"], error["code"]) == ("server_error", "request_failed")
    assert "injected failure" in error["message"]
    await rig.check_nothing_is_left()


async def test_a_bug_is_a_500_that_keeps_its_text_in_the_log(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("sandwich.server.call.OutputStream", broken)
    headers = {"X-Request-Id": "abc-1"}
    async with rig.http.post(
        rig.url + COMPLETIONS, json={"prompt": "x"}, headers=headers
    ) as response:
        assert response.status == 500
        assert response.headers["X-Request-Id"] == "abc-1"
        error = (await response.json())["error"]
    assert "secret" not in error["message"]
    assert "abc-1" in error["message"]
    assert "ZeroDivisionError: secret" in caplog.text
    assert rig.bridge.num_places_taken == 0


async def test_every_answer_has_a_request_id(rig: Rig) -> None:
    async with rig.http.get(rig.url + "/health") as first, rig.http.get(rig.url + "/no") as second:
        ids = {response.headers["X-Request-Id"] for response in (first, second)}
    assert len(ids) == 2


async def test_min_tokens_that_ban_everything_end_that_request_only(start: StartRig) -> None:
    rig = await start(text=None)
    body = {"prompt": "x", "min_tokens": 2, "stop_token_ids": [*range(EOS + 2)], "max_tokens": 4}
    error = await refusal(rig, body, status=500)
    assert "min_tokens" in error["message"]
    await rig.check_nothing_is_left()


async def test_the_encoding_of_a_body_is_undone_within_the_limit(start: StartRig) -> None:
    """A small compressed body cannot become a large one."""
    rig = await start(config=ServerConfig(port=0, max_body_size=1000))
    body = zlib.compress(json.dumps({"prompt": "x" * 100_000}).encode())
    assert len(body) < 1000
    headers = {"Content-Encoding": "deflate"}
    async with rig.http.post(rig.url + COMPLETIONS, data=body, headers=headers) as response:
        assert response.status == 413


async def test_a_head_that_is_no_http_is_refused(rig: Rig) -> None:
    assert b"400" in await first_line(rig, b"\x00\x01\x02\r\n\r\n")
    assert (await rig.get("/health"))[0] == 200
