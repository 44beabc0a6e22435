"""What the handlers of one server share; the only thing that changes in it is the service."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from sandwich.config import ServerConfig
from sandwich.server.keys import ApiKeys
from sandwich.server.metrics import Metrics
from sandwich.server.server_limits import ServerLimits
from sandwich.server.service import Service
from sandwich.server.traces import Tracing


@dataclass
class ServerState:
    config: ServerConfig
    keys: ApiKeys
    limits: ServerLimits = field(default_factory=ServerLimits)
    tracing: Tracing | None = None
    metrics: Metrics = field(default_factory=Metrics)
    service: Service | None = None  # None: the model is loading
    share_loaded: float = 0.0  # of the weights; a loader's thread writes it


STATE = web.AppKey("state", ServerState)
