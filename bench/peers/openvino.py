"""OpenVINO GenAI: reads the weights of a GGUF file, which our engine is given too."""

from __future__ import annotations

from collections.abc import Sequence

import gguf

from bench.peers.gguf_file import write_gguf
from bench.peers.python_peers import PythonPeer

KINDS = {
    "bf16": gguf.GGMLQuantizationType.F16,  # which holds these weights exactly; it reads no bf16
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}


class OpenVino(PythonPeer):
    """Types of products and of the KV cache are those it chooses for this CPU."""

    name = "openvino"
    formats = tuple(KINDS)
    packages = ("openvino-genai==2026.4.1.0",)
    script = "openvino_engine.py"

    def prepare(self) -> None:
        super().prepare()
        path = self.setup.gguf_path(self.name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.setup.say(f"writing {path}")
            write_gguf(self.setup.folder, path, KINDS[self.setup.format])
        self.shared_model = path

    def arguments(self, num_threads: int) -> Sequence[str]:
        return [str(self.shared_model), str(num_threads)]
