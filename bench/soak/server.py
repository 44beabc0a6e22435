"""A server's process, its log, its memory and its metrics."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]

from sandwich.config import SANDWICH_API_KEY

_READY = "ready: "


@dataclass
class Log:
    """What the process wrote: JSON lines on stderr, and all else."""

    faults: list[str] = field(default_factory=list)  # errors, and lines that are no JSON
    num_requests: int = 0

    def take(self, line: str) -> None:
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            if line.strip():
                self.faults.append(line.rstrip()[:500])
            return
        if entry.get("logger") == "sandwich.access":
            self.num_requests += 1
            if entry["status"] == 500:
                self.faults.append(f"status 500: {line[:500]}")
        elif entry["level"] in ("error", "critical"):
            self.faults.append(entry["message"] + "\n" + entry.get("exception", ""))


class ServerProcess:
    """`sandwich serve` on a free port."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.url = ""
        self.log = Log()
        self._tasks: list[asyncio.Task[None]] = []

    @staticmethod
    async def start(arguments: list[str]) -> ServerProcess:
        """Until it takes requests. Raises RuntimeError if it ends before."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sandwich", "serve", "--port", "0"),
            *("--log-format", "json", "--log-requests", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", SANDWICH_API_KEY.name: ""},
            limit=1 << 24,
        )
        server = ServerProcess(process)
        server._tasks.append(asyncio.create_task(server._read_log()))
        assert process.stdout is not None
        while line := (await process.stdout.readline()).decode():
            if line.startswith(_READY):
                server.url = line.removeprefix(_READY).split()[0]
                server._tasks.append(asyncio.create_task(_drop(process.stdout)))
                return server
        await process.wait()
        await asyncio.gather(*server._tasks)
        raise RuntimeError("the server did not start: " + "\n".join(server.log.faults))

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.log.take(line.decode(errors="replace"))

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    async def wait(self, timeout_s: float) -> int | None:
        """The exit code; None if it did not end in time, and had to be killed."""
        try:
            async with asyncio.timeout(timeout_s):
                code: int | None = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            code = None
        await asyncio.gather(*self._tasks)
        return code

    async def metrics(self, http: aiohttp.ClientSession) -> dict[str, float]:
        """Sample with its labels -> value."""
        async with http.get(self.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


async def _drop(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass
