"""Turns, ratios, sweeps and absences, with engines whose times are made up."""

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

import bench.peers.command
from bench.peers.contest import compare, or_absent, quartiles, sweep, thread_counts
from bench.peers.engine import AbsentError, Engine, Setup, Threads, Worker, run
from bench.peers.servers import Load, compare_servers, compare_starts
from bench.peers.work import Work
from sandwich.cli import main
from sandwich.errors import ConfigError
from schedules.meters import Meter

CALLS: list[str] = []


class Fake(Engine):
    """Takes the seconds it is given, more with fewer threads, and notes that it was asked."""

    name = "fake"
    formats = ("bf16",)
    per_token: ClassVar[float] = 0.002
    best_decode: ClassVar[int] = 1

    def prepare(self) -> None:
        CALLS.append(f"{self.name} prepare")

    def seconds(self, work: Work) -> float:
        CALLS.append(self.name)
        if work.kind == "prefill":
            return self.per_token * work.tokens / self.threads.prefill
        return self.per_token * (2 if self.threads.decode != self.best_decode else 1)

    def close(self) -> None:
        CALLS.append(f"{self.name} close")


class Mine(Fake):
    name = "sandwich"
    per_token = 0.001
    best_decode = 2

    def use(self, model: Path) -> None:
        assert model == self.setup.folder


class Gone(Fake):
    name = "gone"

    def prepare(self) -> None:
        raise AbsentError("this CPU lacks something")


class Weak(Fake):
    name = "weak"

    def seconds(self, work: Work) -> float:
        if work.batch > 1:
            raise AbsentError("one sequence at a time")
        return super().seconds(work)


class Constant(Meter):
    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__([0])

    def _measure(self) -> float:
        return 7.0


def setup(folder: Path, **changes: Any) -> Setup:
    sizes: dict[str, Any] = {
        "max_model_len": 256,
        "max_batch": 4,
        "num_threads": 2,
        "format": "bf16",
    }
    return Setup(cache_dir=folder, folder=folder, say=lambda *_, **__: None, **(sizes | changes))


def test_each_format_has_a_file_of_its_own_though_the_name_has_a_dot(tmp_path: Path) -> None:
    made = setup(tmp_path / "llama-3.2-1b", format="q8_0")
    assert made.gguf_path("gguf").name == "llama-3.2-1b-q8_0.gguf"
    assert made.gguf_path("gguf", "bf16").name == "llama-3.2-1b-bf16.gguf"


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@pytest.mark.parametrize(
    ("text", "work"),
    [("512", Work("prefill", 512)), ("8x128", Work("decode", 128, 8)), ("1x1", Work("decode", 1))],
)
def test_work_is_read(text: str, work: Work) -> None:
    assert Work.parse(text) == work


@pytest.mark.parametrize("text", ["", "0", "0x5", "5x0", "x5", "5x", "-5", "5x5x5"])
def test_what_is_no_work_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="BATCHxCONTEXT"):
        Work.parse(text)


def test_rates_count_the_tokens_of_all_sequences() -> None:
    assert Work("prefill", 512).tokens_per_second(0.5) == 1024
    assert Work("decode", 128, 8).tokens_per_second(0.5) == 16


def test_turns_alternate_and_the_ratio_is_taken_pair_by_pair(tmp_path: Path) -> None:
    ours, peer = Mine(setup(tmp_path)), Fake(setup(tmp_path))
    row = compare(ours, peer, Work("prefill", 100), 3, {"read_gbps": Constant()})
    turns = ["sandwich", "fake", "fake", "sandwich", "sandwich", "fake"]
    assert ["fake", "sandwich", *turns] == CALLS  # each once to warm up
    assert row["ratios"] == pytest.approx([2.0, 2.0, 2.0])
    assert row["ratio"] == pytest.approx(2)
    assert row["ours_tok_per_s"] == pytest.approx(2000)
    assert row["limits"] == {"read_gbps": 7.0}


def test_each_phase_gets_its_own_number_of_threads(tmp_path: Path) -> None:
    peer = Fake(setup(tmp_path))
    sweep(peer, (1, 2))
    assert peer.threads == Threads(prefill=2, decode=1)
    assert peer.settings["threads"]["decode"]["best"] == 1


@pytest.mark.parametrize(
    ("cores", "cpus", "counts"), [(1, 1, (1,)), (2, 2, (1, 2)), (8, 16, (4, 8, 16))]
)
def test_half_all_and_every_logical_cpu_is_tried(
    cores: int, cpus: int, counts: tuple[int, ...]
) -> None:
    assert thread_counts(cores, cpus) == counts


def test_an_absence_is_a_row_with_words() -> None:
    def refuse() -> dict[str, Any]:
        raise AbsentError("no AVX-512 here")

    assert or_absent(refuse) == {"absent": "no AVX-512 here"}


@pytest.mark.parametrize(("values", "middle"), [([3.0], [3.0, 3.0]), ([1.0, 2.0, 3.0], [1.5, 2.5])])
def test_quartiles(values: list[float], middle: list[float]) -> None:
    assert quartiles(values) == middle


WORKER = """
import json, sys
print("chatter"); print('{"ready": true}', flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["work"] == "die":
        sys.exit("Illegal instruction, says the library")
    print(json.dumps({"error": "too long"} if asked["work"] == "fail" else {"seconds": 2.5}),
          flush=True)
"""


def test_a_worker_answers_until_it_ends_with_its_last_words() -> None:
    worker = Worker("peer", [sys.executable, "-c", WORKER], {})
    assert worker.ask({"work": "prefill"}) == {"seconds": 2.5}
    assert worker.rss_bytes() > 0
    with pytest.raises(AbsentError, match="too long"):
        worker.ask({"work": "fail"})
    with pytest.raises(AbsentError, match="code 1: Illegal instruction"):
        worker.ask({"work": "die"})
    worker.close()


def test_a_program_that_is_not_there_or_fails_is_an_absence() -> None:
    with pytest.raises(AbsentError, match="no-such-program"):
        run(["no-such-program"])
    with pytest.raises(AbsentError, match="code 3: oh no"):
        run([sys.executable, "-c", "import sys; print('oh no', file=sys.stderr); sys.exit(3)"])


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = {peer.name: peer for peer in (Fake, Gone, Weak)}
    monkeypatch.setattr(bench.peers.command, "PEERS", peers)
    monkeypatch.setattr(bench.peers.command, "Ours", Mine)
    for meter in ("ReadMeter", "PeakMeter"):
        monkeypatch.setattr(bench.peers.command, meter, Constant)


@pytest.mark.usefixtures("fakes")
def test_rows_are_kept_absences_too_and_a_second_run_measures_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "peers.json"
    command = ["bench", "peers", str(tmp_path), "--formats", "bf16", "--peers", "fake,gone,weak"]
    command += ["--json", str(file), "--rounds", "2"]
    assert main([*command, "--work", "16"]) == 0
    said = capsys.readouterr()
    assert "2.00" in said.out
    assert "this CPU lacks something" in " ".join(said.out.replace("│", " ").split())
    CALLS.clear()
    assert main([*command, "--work", "16,2x8", "--resume"]) == 0
    rows = {(row["peer"], row["work"]): row for row in json.loads(file.read_text())["rows"]}
    assert rows["fake", "decode 2 x 8"]["ratio"] == pytest.approx(2)
    assert rows["weak", "decode 2 x 8"]["absent"] == "one sequence at a time"
    assert "ratio" not in rows["weak", "decode 2 x 8"]
    assert rows["gone", "all"] == {
        **rows["gone", "all"],
        "absent": "this CPU lacks something",
    }
    CALLS.clear()
    assert main([*command, "--work", "16,2x8", "--resume", "--peers", "fake"]) == 0
    assert CALLS == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "either MODEL or --random"),
        (["m", "--random", "tiny"], "either MODEL or --random"),
        (["m", "--resume"], "--json"),
        (["m", "--work", "8x"], "BATCHxCONTEXT"),
        (["m", "--peers", "vllm.cpp"], "not one of"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "peers", *flags]) == 2
    assert said in capsys.readouterr().err


SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def send(self, kind, text):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.send("application/json", json.dumps({"data": [{"id": "mock"}]}))
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "stream" not in asked:
            return self.send_error(404)
        count = asked["max_tokens"]
        usage = {"prompt_tokens": len(asked["prompt"].split()), "completion_tokens": count}
        events = [{"choices": [{"text": " x"}]}] * count + [{"choices": [], "usage": usage}]
        self.send("text/event-stream", "".join(f"data: {json.dumps(e)}\\n\\n" for e in events))
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Served(Mine):
    """A server that answers at once, in a process of its own."""

    program = SERVER

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", self.program, str(port)], {}


class Other(Served):
    name = "other"


class Broken(Served):
    name = "broken"
    program = "import sys; sys.exit('no such model')"


def test_servers_are_compared_at_the_same_load(tmp_path: Path) -> None:
    ours, peer = Served(setup(tmp_path)), Other(setup(tmp_path))
    row = compare_servers(ours, peer, Load(6, 2, prompt=30, answer=5), 2)
    assert len(row["ratios"]) == 2
    for side in ("ours", "peer"):
        for figures in row["runs"][side]:
            assert (figures["completed"], figures["total_output_tokens"]) == (6, 30)
            assert figures["total_input_tokens"] == 6 * 30
        assert row[f"{side}_memory_bytes"] > 0
    start = compare_starts(ours, peer, 1)
    assert len(start["ours_seconds"]) == len(start["peer_seconds"]) == len(start["ratios"]) == 1


def test_requests_that_fail_are_no_figure(tmp_path: Path) -> None:
    class Failing(Other):
        program = SERVER.replace('asked["max_tokens"]', '1 // (asked["max_tokens"] == 1)')

    with pytest.raises(AbsentError, match="6 requests to other failed"):
        compare_servers(
            Served(setup(tmp_path)), Failing(setup(tmp_path)), Load(6, 2, prompt=3, answer=5), 1
        )


def test_a_server_that_ends_is_an_absence_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="no such model"):
        compare_starts(Served(setup(tmp_path)), Broken(setup(tmp_path)), 1)
