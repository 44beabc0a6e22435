from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import sandwich
from sandwich.cli import main
from sandwich.cli.generation import Reply, print_reply
from sandwich.cli.parser import VERBS, build_parser
from sandwich.cli.serve import curl_example, ready_text
from sandwich.config import ENVIRONMENT, EngineConfig, ServerConfig, options
from sandwich.errors import MemoryLimitError, ModelError, SandwichError, UnavailableError
from sandwich.output import OutputDelta
from sandwich.tokenizer import Tokenizer

VERBS_WITH_OPTIONS = ["serve", "chat", "complete"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable.name, raising=False)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, make_parts: Callable[..., Any]) -> list[EngineConfig]:
    """Engines are built over the null executor; the configurations they were asked for."""
    configs: list[EngineConfig] = []

    def build_engine(config: EngineConfig) -> Any:
        configs.append(config)
        return make_parts()

    module = ModuleType("sandwich.build")
    module.build_engine = build_engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sandwich.build", module)
    return configs


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    """What the command printed: (out, err)."""
    assert main(argv) == code
    return capsys.readouterr()


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


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--help")
    for verb in VERBS:
        assert f"  {verb.name} " in out or f"  {verb.name}\n" in out
        assert verb.help in out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version").out.startswith(f"sandwich {sandwich.__version__} (Python 3.")


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS if verb.module is not None])
def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    out, _ = run(capsys, verb, "--help")
    assert out.startswith(f"usage: sandwich {verb} ")


def test_a_group_of_verbs_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert "latency" in run(capsys, "bench", "--help").out
    assert "VERB" in run(capsys, "bench", code=2).err


@pytest.mark.parametrize("verb", VERBS_WITH_OPTIONS)
def test_help_shows_every_option_with_its_default(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    out = " ".join(run(capsys, verb, "--help").out.split())
    shown = {name: of for name, of in options(EngineConfig).items() if of[1].group != "server"}
    for name, (_, option) in shown.items():
        assert f"--{name}" in out
        assert option.help in out
    assert "(default: 512)" in out
    assert "[env: SANDWICH_DEBUG] (default: 0)" in out
    assert ("--port" in out) == ("--max-num-queued-reqs" in out) == (verb == "serve")


def test_help_does_not_show_what_the_environment_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDWICH_DEBUG", "nonsense")
    assert "(default: 0)" in run(capsys, "chat", "--help").out


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
            "error: model 'no-such-model' is neither a folder nor",
        ),
    ],
)
@pytest.mark.usefixtures("built")
def test_a_user_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    out, err = run(capsys, *argv, code=2)
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
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str | None,
) -> None:
    fail_with(monkeypatch, error)
    _, err = run(capsys, "probe", code=code)
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


def test_probe_prints_text_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "probe").out.startswith("CPU ")
    machine = json.loads(run(capsys, "probe", "--json", "--isa", "generic").out)
    assert machine["isa"] == "generic"
    assert machine["usable_cpus"]


def test_the_environment_is_collected_as_text_or_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDWICH_DEBUG", "1")
    report = json.loads(run(capsys, "collect-env", "--json").out)
    assert report["sandwich"] == sandwich.__version__
    assert report["packages"]["numpy"]
    assert report["environment"]["SANDWICH_DEBUG"] == "1"
    assert report["machine"]["isa"]
    text = run(capsys, "collect-env").out
    assert f"{report['packages']['numpy']}\n" in text
    assert report["machine"]["cpu_model"] in text


def test_an_installed_package_has_no_commit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandwich, "__file__", str(tmp_path / "sandwich" / "__init__.py"))
    assert json.loads(run(capsys, "collect-env", "--json").out)["commit"] is None
    assert "unknown" in run(capsys, "collect-env").out


def test_the_plan_of_a_model_is_printed_as_text_or_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plans = json.loads(run(capsys, "plan", "--json", "--isa", "generic").out)
    assert plans["prefill"]["isa"] == plans["decode"]["isa"] == "generic"
    lines = run(capsys, "plan", "embedded").out.splitlines()
    assert [line.split()[0] for line in lines] == ["embedded", "weights", "prefill", "decode"]


# ---- complete ----


def test_complete_prints_the_continuation_and_nothing_else(
    capsys: pytest.CaptureFixture[str], built: list[EngineConfig], make_parts: Callable[..., Any]
) -> None:
    argv = ["complete", "def add", "--temperature", "0", "--max-tokens", "8", "--dtype", "bf16"]
    out, err = run(capsys, *argv)
    engine, tokenizer = make_parts().engine, make_parts().tokenizer
    ids = engine.executor.continuation(tokenizer.encode("def add"), 8)
    end = ids.index(1) if 1 in ids else len(ids)
    assert (out, err) == (tokenizer.decode(ids[:end]) + "\n", "")
    assert (built[0].model, built[0].dtype) == ("embedded", "bfloat16")


@pytest.mark.usefixtures("built")
def test_complete_reads_stdin_echoes_and_tells_its_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("def add"))
    out, err = run(capsys, "complete", "-", "--echo", "--stats", "--seed", "1", "--stop", "é")
    assert out.startswith("def add")
    assert "tokens, first after" in err


def test_complete_takes_a_model(
    capsys: pytest.CaptureFixture[str], built: list[EngineConfig]
) -> None:
    run(capsys, "complete", "a", "--model", "some/model", "--max-tokens", "1")
    assert built[0].model == "some/model"


# ---- replies ----


def deltas(*texts: str) -> Iterator[OutputDelta]:
    for text in texts:
        yield OutputDelta(text, (70,))


def test_an_interrupt_ends_the_reply_and_keeps_what_was_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted() -> Iterator[OutputDelta]:
        yield OutputDelta("a", (70,))
        signal.raise_signal(signal.SIGINT)
        yield OutputDelta("b", (70,))
        raise AssertionError("asked for more after the interrupt")

    handler = signal.getsignal(signal.SIGINT)
    reply = print_reply(interrupted())
    assert (reply.text, reply.num_tokens, reply.is_interrupted) == ("ab", 2, True)
    assert capsys.readouterr().out == "ab"
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_interrupt_does_not_wait_for_the_step() -> None:
    def stuck() -> Iterator[OutputDelta]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield OutputDelta()

    with pytest.raises(KeyboardInterrupt):
        print_reply(stuck())


def test_a_failed_reply_is_an_error() -> None:
    with pytest.raises(SandwichError, match="the step failed"):
        print_reply(iter([OutputDelta(finish_reason="error", error="the step failed")]))


@pytest.mark.parametrize(
    ("reply", "summary"),
    [
        (Reply("", 0, 0.25, 0.25, False), "0 tokens, first after 250 ms"),
        (Reply("a", 1, 0.5, 0.5, True), "1 tokens, first after 500 ms, interrupted"),
        (Reply("a", 11, 0.5, 1.5, False), "11 tokens, first after 500 ms, 10.0 tokens/s"),
    ],
)
def test_a_reply_tells_its_speed(reply: Reply, summary: str) -> None:
    assert reply.summary() == summary


# ---- chat ----


def chat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lines: str, *argv: str
) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return run(capsys, "chat", *argv, "--temperature", "0", "--max-tokens", "4").out


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The conversations that the model was asked to go on with."""
    seen: list[list[Any]] = []
    render = Tokenizer.apply_chat_template

    def record(self: Tokenizer, messages: Any, *args: Any, **kwargs: Any) -> str:
        seen.append(list(messages))
        return render(self, messages, *args, **kwargs)

    monkeypatch.setattr(Tokenizer, "apply_chat_template", record)
    return seen


@pytest.mark.usefixtures("built")
def test_a_chat_remembers_until_it_is_cleared(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[Any]],
) -> None:
    chat(capsys, monkeypatch, "hello\n\nagain\n/clear\nnew\n", "--system", "Be brief.")
    roles = [[message["role"] for message in messages] for messages in prompts]
    assert roles == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user"],
    ]
    assert prompts[1][1]["content"] == "hello"


@pytest.mark.usefixtures("built")
def test_a_chat_ends_with_exit(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[Any]],
) -> None:
    out = chat(capsys, monkeypatch, "/what\n/exit\nnever\n")
    assert prompts == []
    assert "unknown command /what" in out


@pytest.mark.usefixtures("built")
def test_a_message_that_is_too_long_does_not_end_the_chat(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[Any]],
) -> None:
    out = chat(capsys, monkeypatch, "x " * 200 + "\nshort\n")
    assert "(/clear starts anew)" in out
    assert prompts[1] == [{"role": "user", "content": "short"}]


# ---- serve ----


def backend(**changes: Any) -> Any:
    facts = {"model_name": "tiny", "root": "folder", "max_model_len": 64}
    return SimpleNamespace(**(facts | changes), tokenizer=SimpleNamespace(has_chat_template=True))


@pytest.mark.parametrize(
    ("root", "path", "key"),
    [("folder", "/v1/chat/completions", "messages"), ("embedded", "/v1/completions", "prompt")],
)
def test_the_example_is_a_request_that_a_shell_can_send(root: str, path: str, key: str) -> None:
    config = ServerConfig(api_key="s3cret")
    text = curl_example("http://0.0.0.0:8000", backend(root=root), config)
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
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def run_server(config: ServerConfig, load: Callable[[], Any], on_ready: Any) -> None:
        seen.append(config)
        load()
        on_ready("http://127.0.0.1:1")

    def build_backend(config: EngineConfig) -> Any:
        seen.append(config)
        return backend(model_name=config.model_name)

    monkeypatch.setattr("sandwich.server.app.run_server", run_server)
    monkeypatch.setattr("sandwich.server.backend.build_backend", build_backend)
    file = tmp_path / "config.yaml"
    file.write_text("port: 9001\nmodel: org/name\nmax-num-seqs: 3\n")
    out, _ = run(capsys, "serve", "--config", str(file), "--max-num-seqs", "5")
    server_config, engine_config = seen
    assert server_config.port == 9001
    assert (engine_config.model, engine_config.max_num_seqs) == ("org/name", 5)
    assert "ready: http://127.0.0.1:1 serves 'org/name'" in out


def test_a_parsed_command_knows_its_verb() -> None:
    args = build_parser().parse_args(["probe"])
    assert args.verb_main.__module__ == "sandwich.cli.probe"
