"""Pages of other web origins may call the server only where the user said so."""

from __future__ import annotations

import pytest

from sandwich.config import ServerConfig
from sandwich.errors import ConfigError
from tests.sandwich.server.conftest import Rig, StartRig

PAGE = "https://chat.example.org"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


async def headers_of(
    rig: Rig, method: str, path: str, **headers: str
) -> tuple[int, dict[str, str]]:
    async with rig.http.request(method, rig.url + path, headers=headers, data=b"{}") as response:
        return response.status, dict(response.headers)


async def test_without_the_option_nothing_is_granted(rig: Rig) -> None:
    for method, path in (("OPTIONS", "/v1/models"), ("GET", "/v1/models")):
        _, headers = await headers_of(rig, method, path, **PREFLIGHT)
        assert not [name for name in headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("origins", [PAGE, f"https://other.example, {PAGE}/", "*"])
async def test_an_allowed_page_is_answered_also_where_a_key_is_needed(
    start: StartRig, origins: str
) -> None:
    config = ServerConfig(port=0, allowed_origins=origins, api_key="k")
    rig = await start(config=config)
    granted = "*" if origins == "*" else PAGE
    status, headers = await headers_of(rig, "OPTIONS", "/v1/chat/completions", **PREFLIGHT)
    assert status == 204
    assert headers["Access-Control-Allow-Origin"] == granted
    assert headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert "POST" in headers["Access-Control-Allow-Methods"]
    status, headers = await headers_of(rig, "GET", "/v1/models", Origin=PAGE)
    assert (status, headers["Access-Control-Allow-Origin"]) == (401, granted)
    status, headers = await headers_of(
        rig, "POST", "/v1/completions", Origin=PAGE, Authorization="Bearer k"
    )
    assert (status, headers["Access-Control-Allow-Origin"]) == (400, granted)
    assert "X-Request-Id" in headers["Access-Control-Expose-Headers"]


async def test_a_stream_can_be_read_by_the_page(start: StartRig) -> None:
    rig = await start(config=ServerConfig(port=0, allowed_origins=PAGE))
    body = {"prompt": "x", "max_tokens": 1, "stream": True}
    url, headers = rig.url + "/v1/completions", {"Origin": PAGE}
    async with rig.http.post(url, json=body, headers=headers) as response:
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
        assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_another_page_is_granted_nothing(start: StartRig) -> None:
    rig = await start(config=ServerConfig(port=0, allowed_origins=PAGE))
    _, headers = await headers_of(rig, "GET", "/v1/models", Origin="https://evil.example")
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("origins", ["chat.example.org", "https://a.example/path", "https://", ""])
def test_what_is_no_origin_is_refused(origins: str) -> None:
    with pytest.raises(ConfigError, match=r"--allowed-origins: .* is not an origin"):
        ServerConfig(allowed_origins=origins)
