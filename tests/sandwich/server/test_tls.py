"""HTTPS with OpenAI's client and a certificate that it trusts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import trustme

from sandwich.config import ServerConfig
from sandwich.errors import ConfigError
from sandwich.server.app import Server
from tests.sandwich.server.conftest import MODEL, StartRig


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return {"ssl_certfile": str(chain), "ssl_keyfile": str(key)}


async def test_answers_come_over_tls(
    start: StartRig, authority: trustme.CA, files: dict[str, Any]
) -> None:
    rig = await start(config=ServerConfig(port=0, **files))
    assert rig.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with httpx2.AsyncClient(verify=context) as trusting:
        client = openai.AsyncOpenAI(
            base_url=rig.url + "/v1", api_key="none", http_client=trusting, max_retries=0
        )
        stream: Any = await client.completions.create(
            model=MODEL, prompt="x", max_tokens=3, stream=True
        )
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "234"
    with pytest.raises(openai.APIConnectionError):  # it does not know the authority
        await rig.client.models.list()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ssl_certfile": None}, "--ssl-keyfile needs --ssl-certfile"),
        ({"ssl_certfile": "/nowhere.pem"}, "--ssl-certfile /nowhere.pem"),
        ({"ssl_keyfile": None}, "must be PEM files"),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    files: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Server(ServerConfig(port=0, **(files | changes)))


def test_a_key_of_another_certificate_is_refused(
    authority: trustme.CA, files: dict[str, Any]
) -> None:
    other = authority.issue_cert("127.0.0.1").private_key_pem.bytes()
    Path(files["ssl_keyfile"]).write_bytes(other)
    with pytest.raises(ConfigError, match="belong together"):
        Server(ServerConfig(port=0, **files))
