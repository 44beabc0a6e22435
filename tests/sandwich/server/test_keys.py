"""Several API keys, from a flag, the environment and a file."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from sandwich.config import ServerConfig
from sandwich.errors import ConfigError
from sandwich.server.keys import ApiKeys
from tests.sandwich.server.conftest import Rig, StartRig


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    file = tmp_path / "keys"
    file.write_text("# of the team\nthird\n\n  fourth \n")
    return str(file)


async def opens(rig: Rig, key: str) -> bool:
    try:
        await rig.client.with_options(api_key=key).models.list()
    except openai.AuthenticationError:
        return False
    return True


async def test_each_of_the_keys_opens(start: StartRig, key_file: str) -> None:
    rig = await start(config=ServerConfig(port=0, api_key="first, second", api_key_file=key_file))
    for key in ("first", "second", "third", "fourth"):
        assert await opens(rig, key)
        async with rig.http.get(rig.url + "/v1/models", headers={"X-Api-Key": key}) as response:
            assert response.status == 200
    for key in ("first, second", "fir", "# of the team", "fourthx"):
        assert not await opens(rig, key)


async def test_a_file_alone_closes_the_server(start: StartRig, key_file: str) -> None:
    rig = await start(config=ServerConfig(port=0, api_key_file=key_file))
    assert not await opens(rig, "none")
    assert await opens(rig, "third")


def test_the_environment_may_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDWICH_API_KEY", "k3y-a,k3y-b")
    config = ServerConfig()
    assert "k3y" not in repr(config)
    assert all(map(ApiKeys.of(config).allow, ("k3y-a", "k3y-b")))
    assert ApiKeys.of(ServerConfig(api_key="other")).allow("other")
    assert not ApiKeys.of(ServerConfig(api_key="other")).allow("k3y-a")


def test_without_keys_there_is_nothing_to_allow() -> None:
    keys = ApiKeys.of(ServerConfig())
    assert not keys
    assert not keys.allow("")


@pytest.mark.parametrize("text", [None, "", "# none\n\n", b"\xff\xfe"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str | bytes | None) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match="--api-key-file"):
        ApiKeys.of(ServerConfig(api_key_file=str(file)))


def test_a_flag_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="--api-key has no key"):
        ApiKeys.of(ServerConfig(api_key=" , "))
