"""llama.cpp: built from the source package of llama-cpp-python, for this CPU.

llama-bench times prompts and single sequences, llama-batched-bench several sequences together,
llama-server serves. Each run loads the file anew, from the page cache, and warms up by itself.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

from bench.peers.engine import AbsentError, Engine, run
from bench.peers.gguf_file import write_gguf
from bench.peers.work import Work

PACKAGE = "llama-cpp-python==0.3.36"
PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-server", "llama-quantize")
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
)
QUANTIZED = {"q8_0": "Q8_0", "q4_0": "Q4_0"}


class LlamaCpp(Engine):
    """Flash attention is on, and weights are repacked for the CPU, as is its default."""

    name = "llama.cpp"
    formats = ("bf16", *QUANTIZED)
    has_server = True

    def prepare(self) -> None:
        self._programs = built(self.setup.peers_dir / "llama.cpp", self.setup.say)
        self._model = self.shared_model = self._converted()

    def seconds(self, work: Work) -> float:
        threads = str(self.threads.of(work))
        if work.batch > 1:
            return self._batched(work, threads)
        sizes = ["-p", str(work.tokens), "-n", "0"]
        if work.kind == "decode":
            sizes = ["-p", "0", "-n", str(work.steps), "-d", str(work.tokens)]
        flags = ["-r", "1", "-fa", "on", "-t", threads, "-o", "json", *sizes]
        [row] = json.loads(self._run("llama-bench", *flags))
        seconds = float(row["avg_ns"]) / 1e9
        return seconds if work.kind == "prefill" else seconds / work.steps

    def _batched(self, work: Work, threads: str) -> float:
        room = work.batch * (work.tokens + work.steps)
        sizes = {"-npp": work.tokens, "-ntg": work.steps, "-npl": work.batch, "-c": room}
        flags = [text for name, value in sizes.items() for text in (name, str(value))]
        flags += ["-fa", "on", "-t", threads, "-tb", str(self.threads.prefill)]
        said = self._run("llama-batched-bench", *flags, "--output-format", "jsonl")
        rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        if not rows:
            raise AbsentError(f"llama-batched-bench measured nothing: {said[-300:]}")
        return float(rows[-1]["t_tg"]) / work.steps

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        setup = self.setup
        flags: dict[str, Any] = {
            "-m": self._model,
            "--port": port,
            "-np": setup.max_batch,
            "-c": setup.max_batch * setup.max_model_len,
            "-t": self.threads.decode,
            "-tb": self.threads.prefill,
            "-fa": "on",
        }
        texts = [str(text) for pair in flags.items() for text in pair]
        return [str(self._programs / "llama-server"), *texts], {}

    def close(self) -> None:
        """Its programs end by themselves."""

    def _run(self, program: str, *flags: str) -> str:
        return run([str(self._programs / program), "-m", str(self._model), *flags])

    def _converted(self) -> Path:
        """The GGUF file of the format, made at first use."""
        path = self.setup.gguf_path("gguf")
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.setup.format == "bf16":
            self.setup.say(f"writing {path}")
            write_gguf(self.setup.folder, path)
            return path
        plain = self.setup.gguf_path("gguf", "bf16")
        if not plain.exists():
            write_gguf(self.setup.folder, plain)
        part = path.with_suffix(".part")
        self.setup.say(f"writing {path}")
        run(
            [
                str(self._programs / "llama-quantize"),
                str(plain),
                str(part),
                QUANTIZED[self.setup.format],
                str(self.setup.num_threads),
            ]
        )
        part.replace(path)
        return path


def built(folder: Path, say: Any) -> Path:
    """The folder with the programs, which are built at first use (minutes); AbsentError if not."""
    programs = folder / "build" / "bin"
    if all((programs / name).exists() for name in PROGRAMS):
        return programs
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise AbsentError(f"llama.cpp is built from source, and {tool} is not installed")
    source = folder / "source"
    if not source.exists():
        say(f"fetching {PACKAGE}")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        run([*pip, "-d", str(folder), PACKAGE])
        [archive] = folder.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "unpacked", filter="data")
        [unpacked] = (folder / "unpacked").iterdir()
        (unpacked / "vendor" / "llama.cpp").rename(source)
    say("building llama.cpp, which takes some minutes")
    build = str(folder / "build")
    run(["cmake", "-S", str(source), "-B", build, *CMAKE_FLAGS])
    run(["cmake", "--build", build, "-j", "2", "--target", *PROGRAMS])
    return programs
