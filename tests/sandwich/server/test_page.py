"""The page at `/` in a headless browser, driven over the Chrome DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sandwich.config import ServerConfig
from tests.sandwich.server.conftest import PATIENCE_S, Rig, StartRig, byte_ids, digits

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", "--window-size=1280,860", "about:blank"),
)


class Browser:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._num_calls = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._num_calls += 1
        number = self._num_calls
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            answer = await self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    async def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        await self.call("Page.enable")
        await self.call("Page.navigate", url=url)
        while (await self._next()).get("method") != "Page.loadEventFired":
            pass

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = await asyncio.wait_for(self._socket.receive_json(), PATIENCE_S)
        return message

    async def value(self, script: str) -> Any:
        result = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str) -> None:
        """Until the script's value is true."""
        await self.value(
            "new Promise(done => { const look = () => (" + script + ") ? done() : "
            "setTimeout(look, 20); look(); })"
        )

    async def say(self, text: str) -> None:
        """Type a message and send it."""
        await self.value(f"by('text').value = {json.dumps(text)}")
        await self.value("by('send').click()")

    async def picture(self) -> bytes:
        shot = await self.call("Page.captureScreenshot")
        return base64.b64decode(shot["data"])


@asynccontextmanager
async def browser_at(url: str, profile: Path) -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, f"--user-data-dir={profile}", *FLAGS, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while b"DevTools listening on" not in (line := await process.stderr.readline()):
                assert line, "the browser ended"
        port = line.decode().split("//")[1].split("/")[0]
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://{port}/json") as response:
                [tab, *_] = [t for t in await response.json() if t["type"] == "page"]
            async with http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                browser = Browser(socket)
                await browser.open(url)
                yield browser
    finally:
        process.kill()
        await process.wait()


async def test_the_page_needs_no_key_and_no_other_host(start: StartRig) -> None:
    rig = await start(config=ServerConfig(port=0, api_key="secret"))
    async with rig.http.get(rig.url + "/") as response:
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert response.status == 200
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "http://" not in page
    assert "https://" not in page


async def test_the_status_needs_the_key_and_a_model(start: StartRig) -> None:
    rig = await start(config=ServerConfig(port=0, api_key="secret"), is_ready=False)
    assert (await rig.get("/status"))[0] == 401
    headers = {"Authorization": "Bearer secret"}
    async with rig.http.get(rig.url + "/status", headers=headers) as response:
        assert response.status == 503


async def test_the_status_counts_what_the_engine_did(rig: Rig) -> None:
    status, before = await rig.get("/status")
    assert status == 200
    assert before["time_to_first_token"] is None
    assert before["generation_tokens"] == 0
    await rig.client.completions.create(model="null", prompt="abc", max_tokens=5)
    _, after = await rig.get("/status")
    assert after["generation_tokens"] == 5
    assert after["prompt_tokens"] == 4  # with BOS
    assert after["time_to_first_token"] > 0
    assert after["phases"]["decode"]["num_tokens"] == 4
    assert after["plans"]["picture"].startswith("<svg")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
async def test_a_person_chats_and_sees_the_engine_at_work(start: StartRig, tmp_path: Path) -> None:
    rig = await start(generation_defaults={"temperature": 0.0, "max_tokens": 12})
    async with browser_at(rig.url, tmp_path / "profile") as browser:
        await browser.until("by('model').textContent.startsWith('null')")
        await browser.say("hello")
        await browser.until("document.querySelector('.turn.assistant small')")
        num_prompt_tokens = len(byte_ids("[user]hello[assistant]"))
        answer = await browser.value("document.querySelector('.turn.assistant').firstChild.data")
        assert answer == digits(num_prompt_tokens, 12)
        await browser.until("by('hits').textContent !== '–'")
        await browser.say("again")
        await browser.until("document.querySelectorAll('.turn.assistant small').length === 2")
        note = await browser.value("document.querySelectorAll('.turn small')[1].textContent")
        assert "(0 cached)" not in note  # the first turn is not computed again
        assert (await browser.picture()).startswith(b"\x89PNG")
        await browser.value("by('clear').click()")
        assert await browser.value("by('talk').childElementCount") == 0


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
async def test_reasoning_is_shown_apart(start: StartRig, tmp_path: Path) -> None:
    template = "{{ messages[0].content }}<think>{# </think> #}"
    text = "." * len("hi<think>") + "Hm.</think>Yes."
    defaults = {"temperature": 0.0, "max_tokens": len("Hm.</think>Yes.")}
    rig = await start(chat_template=template, text=text, generation_defaults=defaults)
    async with browser_at(rig.url, tmp_path / "profile") as browser:
        await browser.until("by('model').textContent.startsWith('null')")
        await browser.say("hi")
        await browser.until("document.querySelector('.turn.assistant small')")
        answer = "document.querySelector('.turn.assistant')"
        assert await browser.value(f"{answer}.querySelector('em').textContent") == "Hm."
        assert await browser.value(f"{answer}.childNodes[1].data") == "Yes."


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
async def test_the_page_asks_for_the_key(start: StartRig, tmp_path: Path) -> None:
    config = ServerConfig(port=0, api_key="secret")
    rig = await start(config=config, generation_defaults={"temperature": 0.0, "max_tokens": 3})
    async with browser_at(rig.url, tmp_path / "profile") as browser:
        await browser.until("by('key').style.display === 'block'")
        await browser.value(
            "by('key').value = 'secret'; by('key').dispatchEvent(new Event('change'))"
        )
        await browser.until("by('model').textContent.startsWith('null')")
        await browser.say("<b>hello</b>")
        await browser.until("document.querySelector('.turn.assistant small')")
        assert await browser.value("document.querySelector('.turn.user').textContent") == (
            "<b>hello</b>"
        )
