"""A server with quantised weights answers as the Python API does."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import sandwich
from sandwich import LLM, SamplingParams

PROMPT = "def read(path):\n    with open("
NUM_TOKENS = 12


def completion_of_server(flags: list[str]) -> str:
    """The greedy completion of PROMPT by a server of its own process."""
    command = [sys.executable, "-m", "sandwich", "serve", "--port", "0", *flags]
    home = Path(sandwich.__file__).parent.parent
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=home) as process:
        assert process.stdout is not None
        try:
            ready = next(line for line in process.stdout if line.startswith("ready: "))
            request = urllib.request.Request(
                f"{ready.split()[1]}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=300) as response:
                [choice] = json.load(response)["choices"]
            process.terminate()
            process.communicate(timeout=60)
        finally:
            process.kill()
    return str(choice["text"])


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "int8-w8a8", "int4"])
def test_a_server_completes_a_text_as_the_python_api_does(
    quantization: str, tmp_path: Path
) -> None:
    with LLM(
        quantization=quantization, max_num_seqs=2, max_model_len=64, cache_dir=tmp_path
    ) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)
        expected = llm.generate(PROMPT, params, use_tqdm=False)[0].outputs[0].text
    flags = ["--quantization", quantization, "--cache-dir", str(tmp_path)]
    size = ["--max-num-seqs", "2", "--max-model-len", "64"]
    assert completion_of_server([*flags, *size]) == expected != ""
