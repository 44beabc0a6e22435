"""This engine, as one contestant among others."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.peers.engine import Engine, Setup, Worker
from bench.peers.work import Work
from bench.record import CHECKOUT

QUANTIZATION = {
    "bf16": ("--dtype", "bfloat16"),
    "q8_0": ("--quantization", "int8-w8a8"),
    "q4_0": ("--quantization", "int4"),
    "w8a8": ("--quantization", "int8-w8a8", "--quantization-group", "0"),
}


class Ours(Engine):
    """The peer's own file where it can be read, rounded while it is loaded to the format's bits."""

    name = "sandwich"
    formats = tuple(QUANTIZATION)
    has_server = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.use(setup.folder)

    def use(self, model: Path) -> None:
        """Run this model, the checkpoint itself or the file that a peer made of it."""
        self._model = model
        script = CHECKOUT / "bench" / "peers" / "workers" / "sandwich_engine.py"
        self._worker = Worker(
            self.name, [sys.executable, str(script), *self._flags()], {"PYTHONPATH": str(CHECKOUT)}
        )

    def prepare(self) -> None:
        """There is nothing to install."""

    def seconds(self, work: Work) -> float:
        return float(self._worker.ask(work.request())["seconds"])

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        serve = [sys.executable, "-m", "sandwich", "serve", *self._flags(), "--port", str(port)]
        return serve, {"PYTHONPATH": str(CHECKOUT)}

    def close(self) -> None:
        self._worker.close()

    def _flags(self) -> list[str]:
        setup = self.setup
        sizes = {"max-model-len": setup.max_model_len, "max-num-seqs": setup.max_batch}
        return [
            str(self._model),
            *QUANTIZATION[setup.format],
            *(text for name, value in sizes.items() for text in (f"--{name}", str(value))),
        ]
