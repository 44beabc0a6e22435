"""The application: routes, middlewares, the life of a server from listening to the last byte."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from aiohttp import web

from sandwich.config import ServerConfig
from sandwich.errors import ConfigError
from sandwich.server import openapi
from sandwich.server.access_log import AccessLogger
from sandwich.server.backend import Backend
from sandwich.server.cors import add_cors_headers, cors_middleware
from sandwich.server.errors import (
    REQUEST_ID,
    REQUEST_ID_HEADER,
    AuthenticationError,
    Handler,
    error_middleware,
)
from sandwich.server.keys import ApiKeys
from sandwich.server.routes import ROUTES
from sandwich.server.server_limits import ServerLimits
from sandwich.server.service import Service
from sandwich.server.state import STATE, ServerState
from sandwich.server.tls import tls_context
from sandwich.server.traces import Tracing

ResultT = TypeVar("ResultT")
Load = Callable[[Callable[[float], None]], Backend]  # given what to tell the share that is done

logger = logging.getLogger("sandwich.server")

_OPEN_PATHS = frozenset({openapi.PATH, *(route.path for route in ROUTES if route.is_open)})
_LAST_WRITES_S = 5.0  # for handlers to write their last bytes once their requests have ended
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@web.middleware
async def _id_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Names the request, in the log and to the client; a client may bring its own name."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    is_usable = 0 < len(given) <= 128 and given.isascii() and given.isprintable()
    request[REQUEST_ID] = given if is_usable else uuid.uuid4().hex
    return await handler(request)


async def _add_id(request: web.Request, response: web.StreamResponse) -> None:
    if REQUEST_ID in request:
        response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]


@web.middleware
async def _key_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    keys = request.app[STATE].keys
    if keys and request.path not in _OPEN_PATHS:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if "X-Api-Key" in request.headers:  # as Anthropic's clients send it
            scheme, given = "Bearer", request.headers["X-Api-Key"]
        if not (keys.allow(given) and scheme.lower() == "bearer"):
            raise AuthenticationError(
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            )
    return await handler(request)


def create_app(state: ServerState) -> web.Application:
    """The endpoints over `state`, whose service may come later: until then they answer 503."""
    cors = cors_middleware(state.config.allowed_origins)
    traces = [] if state.tracing is None else [state.tracing.middleware()]
    app = web.Application(
        middlewares=[_id_middleware, *cors, *traces, error_middleware, _key_middleware],
        client_max_size=state.config.max_body_size,
    )
    app[STATE] = state
    app.on_response_prepare.append(_add_id)
    app.on_response_prepare.append(add_cors_headers)
    for route in ROUTES:
        # A name may have slashes, as hub ids do.
        app.router.add_route(route.method, route.path.replace("}", ":.+}"), route.handler)
    app.router.add_get(openapi.PATH, openapi.openapi_handler(ROUTES))
    return app


class Server:
    """start (listens, answers 503) -> ready (serves) -> drain (finishes) -> stop."""

    def __init__(self, config: ServerConfig, limits: ServerLimits | None = None) -> None:
        """Raises ConfigError if a file that `config` names cannot be used."""
        self.config = config
        self._tls = tls_context(config)
        self.state = ServerState(
            config,
            ApiKeys.of(config),
            limits or ServerLimits(),
            Tracing.of(config.otlp_traces_endpoint),
        )
        self._runner = web.AppRunner(
            create_app(self.state),
            handler_cancellation=True,  # a client that leaves cancels its handler
            shutdown_timeout=_LAST_WRITES_S,
            access_log_class=AccessLogger,
            access_log=logging.getLogger("sandwich.access"),
        )

    @property
    def url(self) -> str:
        """Where it listens; with port 0, the port that was picked."""
        host, port = self._runner.addresses[0][:2]
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def start(self, socket: Path | None = None) -> None:
        """Listen at the address of the configuration, or at a Unix socket that is to be made.

        Raises ConfigError if the address cannot be had.
        """
        host, port = self.config.host, self.config.port
        await self._runner.setup()
        if socket is not None:
            await web.UnixSite(self._runner, socket).start()
            return
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=self._tls).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"cannot listen on {host} port {port}: {error}; choose others with --host, --port"
            ) from error

    def loading(self, share: float) -> None:
        """Say how much of the model is loaded; any thread may."""
        self.state.share_loaded = share

    def ready(self, backend: Backend) -> None:
        """Serve `backend` from now on, and own its engine."""
        service = Service(backend, self.state.limits, self.state.metrics)
        service.start()
        self.state.metrics.watch(service.bridge)
        self.state.service = service

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the others; True if all finished in time."""
        service = self.state.service
        return True if service is None else await service.bridge.drain(timeout_s)

    async def stop(self) -> None:
        """End what still runs, stop listening, let handlers write their last bytes."""
        await self.drain(0)
        await self._runner.cleanup()
        if self.state.service is not None:
            await self.state.service.stop()
        if self.state.tracing is not None:
            await self.state.tracing.close()


def run_server(config: ServerConfig, load: Load, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the draining.

    `load` runs on a thread of its own, and says how far it is, while the server already answers
    503; `on_ready` gets the URL. Raises what `load` raises, and ConfigError if the address cannot
    be had.
    """
    asyncio.run(_serve(config, load, on_ready))


async def _serve(config: ServerConfig, load: Load, on_ready: Callable[[str], None]) -> None:
    stopping, hurrying = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurrying if stopping.is_set() else stopping).set()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    server = Server(config)
    await server.start()
    try:
        backend = await _unless(stopping, _on_a_thread(partial(load, server.loading)))
        if backend is None:
            return
        server.ready(backend)
        on_ready(server.url)
        await stopping.wait()
        logger.info("draining for %g s at most", config.shutdown_timeout)
        if await _unless(hurrying, server.drain(config.shutdown_timeout)) is None:
            await server.drain(0)
    finally:
        await server.stop()


async def _unless(event: asyncio.Event, work: Awaitable[ResultT]) -> ResultT | None:
    """The result of `work`; None if `event` comes first, which cancels the work."""
    task, signalled = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        task.cancel()
        signalled.cancel()


def _on_a_thread(work: Callable[[], ResultT]) -> asyncio.Future[ResultT]:
    """Run `work` on a daemon thread, which cannot keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ResultT] = loop.create_future()

    def settle(result: ResultT | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(ResultT, result))

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="sandwich-loader", daemon=True).start()
    return future
