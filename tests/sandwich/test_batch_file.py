"""Files of many requests: what is read, what is refused, and how an output is taken up again."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandwich.batch_file import BatchOutput, BatchRequest, check_requests, read_requests
from sandwich.errors import ConfigError

URL = "/v1/completions"


class Entry(msgspec.Struct):
    custom_id: str
    text: str = "é\n"


def line(custom_id: Any = "a", **changes: Any) -> str:
    entry = {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"prompt": "x"}}
    return json.dumps(entry | changes) + "\n"


def test_requests_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_text(line("a") + "\n" + line("é", body={})[:-1])
    assert list(read_requests(file, [URL])) == [
        BatchRequest("a", URL, {"prompt": "x"}),
        BatchRequest("é", URL, {}),
    ]
    assert check_requests(file, [URL]) == {"a", "é"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "line 2: is no JSON"),
        ("[]", "line 2: must be an object"),
        (line(custom_id=""), "line 2: custom_id must be"),
        (line(custom_id=3), "line 2: custom_id must be"),
        (line(custom_id="first"), "stands twice"),
        (line(method="GET"), "line 2: method is 'GET'"),
        (line(url="/v1/images"), "line 2: url is '/v1/images'"),
        (line(url=[]), "line 2: url is"),
        (line(body="x"), "line 2: body must be an object"),
        (line(body={"stream": True}), "line 2: stream has no meaning"),
    ],
)
def test_a_line_that_is_no_request_is_refused_by_its_number(
    tmp_path: Path, text: str, reason: str
) -> None:
    file = tmp_path / "in"
    file.write_text(line("first") + text)
    with pytest.raises(ConfigError, match=reason):
        check_requests(file, [URL])


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        check_requests(tmp_path / "in", [URL])


def test_an_output_that_was_cut_anywhere_is_taken_up_without_loss_or_repetition(
    tmp_path: Path,
) -> None:
    file, ids = tmp_path / "out", ["a", "b", "c"]
    with BatchOutput(file, ids) as output:
        assert output.done == frozenset()
        for custom_id in ids:
            output.write(Entry(custom_id))
    whole = file.read_bytes()
    for size in range(len(whole) + 1):
        file.write_bytes(whole[:size])
        with BatchOutput(file, ids) as output:
            assert len(output.done) == whole[:size].count(b"\n")
            for custom_id in ids:
                if custom_id not in output.done:
                    output.write(Entry(custom_id))
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"custom_id": "other"}\n', "which is not in the input"),
        ("hello\n", "line 1: is no answer of a batch"),
        ("[]\n", "line 1: is no answer of a batch"),
        ("{}\n", "line 1: is no answer of a batch"),
    ],
)
def test_a_file_that_is_something_else_is_left_alone(
    tmp_path: Path, text: str, reason: str
) -> None:
    file = tmp_path / "out"
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        BatchOutput(file, ["a"])
    assert file.read_text() == text


def test_two_processes_do_not_write_to_one_file(tmp_path: Path) -> None:
    file = tmp_path / "out"
    with BatchOutput(file, []), pytest.raises(ConfigError, match="another process"):
        BatchOutput(file, [])


def test_a_disk_that_gets_full_leaves_what_can_be_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write, room = tmp_path / "out", os.write, [len(msgspec.json.encode(Entry("a"))) + 6]

    def write_what_fits(target: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        num_written = write(target, data[: room[0]])
        room[0] -= num_written
        return num_written

    with BatchOutput(file, ["a", "b"]) as output:
        monkeypatch.setattr(os, "write", write_what_fits)
        output.write(Entry("a"))
        with pytest.raises(ConfigError, match="No space left"):
            output.write(Entry("b"))
        monkeypatch.undo()
    assert len(file.read_bytes().splitlines()) == 2
    with BatchOutput(file, ["a", "b"]) as output:
        assert output.done == {"a"}
