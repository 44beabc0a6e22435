from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sandwich
from sandwich.cli import main
from sandwich.cli.parser import VERBS, build_parser
from sandwich.cli.serve import curl_example, ready_text
from sandwich.config import EngineConfig, ServerConfig
from sandwich.errors import MemoryLimitError, ModelError, SandwichError, UnavailableError
from sandwich.options import options

Run = Callable[..., Any]
VERBS_WITH_OPTIONS = ["serve", "chat", "complete"]


def run_process(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandwich", *argv],
        capture_output=True,
        text=True,
        cwd=Path(sandwich.__file__).parent.parent,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make the verb `probe` raise."""

    def raise_it(args: object) -> None:
        raise error

    monkeypatch.setattr("sandwich.cli.probe.main", raise_it)


# ---- the command ----


def test_help_lists_every_verb(run: Run) -> None:
    out, _ = run("--help")
    for verb in VERBS:
        assert f"  {verb.name} " in out or f"  {verb.name}\n" in out
        assert verb.help in out


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out.startswith(f"sandwich {sandwich.__version__} (Python 3.")


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS if verb.module is not None])
def test_every_verb_explains_itself(run: Run, verb: str) -> None:
    out, _ = run(verb, "--help")
    assert out.startswith(f"usage: sandwich {verb} ")


def test_a_group_of_verbs_lists_them(run: Run) -> None:
    assert "latency" in run("bench", "--help").out
    assert "VERB" in run("bench", code=2).err


@pytest.mark.parametrize("verb", VERBS_WITH_OPTIONS)
def test_help_shows_every_option_with_its_default(run: Run, verb: str) -> None:
    out = " ".join(run(verb, "--help").out.split())
    shown = {name: of for name, of in options(EngineConfig).items() if of[1].group != "server"}
    for name, (_, option) in shown.items():
        assert f"--{name}" in out
        assert option.help in out
    assert "(default: 512)" in out
    assert "[env: SANDWICH_DEBUG] (default: 0)" in out
    assert ("--port" in out) == ("--max-num-queued-reqs" in out) == (verb == "serve")


def test_help_does_not_show_what_the_environment_says(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDWICH_DEBUG", "nonsense")
    assert "(default: 0)" in run("chat", "--help").out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: the following arguments are required: VERB (see `sandwich --help`)"),
        (["fly"], "error: argument VERB: invalid choice: 'fly'"),
        (["probe", "--nothing"], "error: unrecognized arguments: --nothing"),
        (["serve", "--max-num-seqs", "0"], "error: --max-num-seqs: 0 is out of range"),
        (
            ["serve", "--max-num", "1"],
            "error: unrecognized arguments: --max-num",
        ),  # no abbreviation
        (["serve", "--port", "70000"], "error: --port: 70000 is out of range"),
        (["serve", "--config", "/no/such.yaml"], "error: --config /no/such.yaml:"),
        (["complete"], "error: the following arguments are required: TEXT"),
        (["complete", "a", "--temperature", "hot"], "error: argument --temperature"),
        (["complete", "a", "--temperature", "-1"], "error: temperature is -1.0 but must be"),
        (["probe", "--isa", "mmx"], "error: unknown ISA 'mmx'"),
        (
            ["plan", "no-such-model"],
            "error: model 'no-such-model' is no file, folder or hub id",
        ),
    ],
)
@pytest.mark.usefixtures("built")
def test_a_user_mistake_is_one_line_and_exit_code_2(
    run: Run, argv: list[str], message: str
) -> None:
    out, err = run(*argv, code=2)
    assert message in err
    assert err.count("\n") == 1
    assert not out


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelError("config.json: bad"), 2, "error: config.json: bad\n"),
        (MemoryLimitError(2**30, 2**20, "take less"), 2, None),
        (UnavailableError("loading"), 1, "error: loading\n"),
        (SandwichError("odd"), 1, "error: odd\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_expected_failure_has_a_line_and_a_code(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str | None,
) -> None:
    fail_with(monkeypatch, error)
    _, err = run("probe", code=code)
    assert err == line if line is not None else err.startswith("error: ")


@pytest.mark.parametrize("bug", [ZeroDivisionError(), AssertionError(), ValueError(), OSError()])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, bug: Exception) -> None:
    fail_with(monkeypatch, bug)
    with pytest.raises(type(bug)):
        main(["probe"])


def test_the_help_of_a_process_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sandwich.cli import main; main(['--help']); main(['serve', '--help']);"
        "heavy = {'tvm', 'numpy', 'torch', 'tokenizers', 'aiohttp', 'rich', 'jinja2', 'yaml'};"
        "print('loaded:', sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(sandwich.__file__).parent.parent,
        check=True,
    )
    assert done.stdout.endswith("loaded: []\n")


def test_a_process_ends_with_the_code_and_no_traceback() -> None:
    done = run_process("probe", SANDWICH_ISA="mmx")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown ISA 'mmx'")
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    command = f"{sys.executable} -m sandwich probe --json | true"
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        cwd=Path(sandwich.__file__).parent.parent,
        check=True,
    )
    assert done.stderr == ""


# ---- facts ----


def test_probe_prints_text_or_json(run: Run) -> None:
    assert run("probe").out.startswith("CPU ")
    machine = json.loads(run("probe", "--json", "--isa", "generic").out)
    assert machine["isa"] == "generic"
    assert machine["usable_cpus"]


def test_the_environment_is_collected_as_text_or_json(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDWICH_DEBUG", "1")
    report = json.loads(run("collect-env", "--json").out)
    assert report["sandwich"] == sandwich.__version__
    assert report["packages"]["numpy"]
    assert report["environment"]["SANDWICH_DEBUG"] == "1"
    assert report["machine"]["isa"]
    text = run("collect-env").out
    assert f"{report['packages']['numpy']}\n" in text
    assert report["machine"]["cpu_model"] in text


def test_an_installed_package_has_no_commit(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandwich, "__file__", str(tmp_path / "sandwich" / "__init__.py"))
    assert json.loads(run("collect-env", "--json").out)["commit"] is None
    assert "unknown" in run("collect-env").out


@pytest.mark.parametrize("model", ["smollm2", "llama-3.2-1b"])
def test_the_plan_of_a_model_is_printed_as_text_or_json(run: Run, model: str) -> None:
    plans = json.loads(run("plan", model, "--json", "--isa", "generic").out)
    assert plans["prefill"]["isa"] == plans["decode"]["isa"] == "generic"
    memory = plans["memory"]
    assert 0 < memory["weight_bytes"] < memory["total_bytes"] <= memory["limit_bytes"]
    lines = run("plan", model).out.splitlines()
    names = [model, "weights", "prefill", "decode", "memory"]
    assert [line.split()[0] for line in lines[:5]] == names


def test_a_plan_that_does_not_fit_is_refused_with_the_sum(run: Run) -> None:
    _, err = run("plan", "llama-3.1-8b", "--memory-limit", "1GiB", code=2)
    assert err.startswith("error: ")
    assert "--memory-limit" in err


# ---- serve ----


def backend(**changes: Any) -> Any:
    tokenizer = SimpleNamespace(has_chat_template=True)
    facts = {"model_name": "tiny", "tokenizer": tokenizer, "max_model_len": 64}
    return SimpleNamespace(**(facts | changes))


@pytest.mark.parametrize(
    ("is_chat", "path", "key"),
    [(True, "/v1/chat/completions", "messages"), (False, "/v1/completions", "prompt")],
)
def test_the_example_is_a_request_that_a_shell_can_send(is_chat: bool, path: str, key: str) -> None:
    config = ServerConfig(api_key="s3cret")
    tokenizer = SimpleNamespace(has_chat_template=is_chat)
    text = curl_example("http://0.0.0.0:8000", backend(tokenizer=tokenizer), config)
    words = subprocess.run(
        ["bash", "-c", text.replace("curl", r"printf '%s\n'", 1).replace("\n    -d", " -d")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    url, _, body = words.partition("-d\n")
    assert url.startswith(f"http://127.0.0.1:8000{path}\n")
    assert "Authorization: Bearer YOUR_KEY" in url
    assert "s3cret" not in text
    assert key in json.loads(body)


def test_the_ready_line_names_address_model_and_length() -> None:
    text = ready_text("http://127.0.0.1:9000", backend(), ServerConfig())
    assert text.startswith("ready: http://127.0.0.1:9000 serves 'tiny', up to 64 tokens a request.")
    assert "Authorization" not in text


def test_serve_passes_flags_and_file_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def run_server(config: ServerConfig, load: Any, on_ready: Any) -> None:
        seen.append(config)
        load(seen.append)
        on_ready("http://127.0.0.1:1")

    def build_backend(config: EngineConfig, on_progress: Any) -> Any:
        seen.append(config)
        return backend(model_name=config.model_name)

    monkeypatch.setattr("sandwich.server.app.run_server", run_server)
    monkeypatch.setattr("sandwich.server.backend.build_backend", build_backend)
    file = tmp_path / "config.yaml"
    file.write_text("port: 9001\nmodel: org/name\nmax-num-seqs: 3\n")
    out, _ = run("serve", "--config", str(file), "--max-num-seqs", "5")
    server_config, engine_config = seen
    assert server_config.port == 9001
    assert (engine_config.model, engine_config.max_num_seqs) == ("org/name", 5)
    assert "ready: http://127.0.0.1:1 serves 'org/name'" in out


def test_a_parsed_command_knows_its_verb() -> None:
    args = build_parser().parse_args(["probe"])
    assert args.verb_main.__module__ == "sandwich.cli.probe"


def test_a_served_model_answers_until_the_process_is_told_to_end() -> None:
    command = [sys.executable, "-m", "sandwich", "serve", "--port", "0", "--executor", "null"]
    home = Path(sandwich.__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=home) as process:
        assert process.stdout is not None
        try:
            ready = next(line for line in process.stdout if line.startswith("ready: "))
            url = ready.split()[1]
            with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as response:
                [model] = json.load(response)["data"]
            process.terminate()
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert model["id"] == "smollm2"
    assert process.returncode == 0
