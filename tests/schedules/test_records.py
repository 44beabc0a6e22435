"""Tuned records survive files, damage and transport, and the nearest one answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codegen.spec import GemmTile
from platforms.machine import Machine
from platforms.machines import load_machine
from schedules.records import (
    FILE_NAME,
    CpuKind,
    RecordBook,
    TileKey,
    TuningRecord,
    TuningRecordError,
    append_records,
    current_generator,
    import_records,
    read_records,
    shipped_records,
)

KEY = TileKey("avx512", "bfloat16", n=2048, k=1024, num_cores=2, rows=4)


@pytest.fixture
def machine() -> Machine:
    return load_machine("epyc-guest")


def record_of(machine: Machine, speedup: float = 1.1, **key: Any) -> TuningRecord:
    return TuningRecord(
        machine=machine.fingerprint,
        cpu=CpuKind.of(machine),
        key=replace(KEY, **key),
        tile=GemmTile(4, 512, 2, 1024, 2),
        gflops=100.0,
        gbps=20.0,
        limit_ratio=0.5,
        speedup=speedup,
        generator=current_generator(),
    )


def test_records_come_back_from_a_file_in_their_order(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "new" / FILE_NAME
    first, second = record_of(machine), record_of(machine, rows=8)
    append_records(path, [first])
    append_records(path, [second])
    assert read_records(path) == [first, second]


def test_a_record_from_before_a_dimension_was_made_has_its_default(machine: Machine) -> None:
    record = record_of(machine)
    line = json.loads(record.to_line())
    del line["tile"]["order"], line["tile"]["chains"]
    assert TuningRecord.from_line(json.dumps(line)) == record


def test_a_file_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / FILE_NAME) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"mr": 4', '"mr": 0'),
        ('"mr": 4', '"mr": "4"'),
        ('"order": "panels"', '"order": "any"'),
        ('"chains": 1', '"chains": 0'),
        ('"rows": 4', '"rows": 0'),
        ('"gbps": 20.0', '"gbps": NaN'),
        ('"speedup": 1.1', '"speedup": -1'),
        ('"machine":', '"another":'),
        ('"isa": "avx512",', ""),
        ("}", ""),
    ],
)
def test_a_damaged_line_is_skipped_with_a_warning(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture, old: str, new: str
) -> None:
    path = tmp_path / FILE_NAME
    good = record_of(machine)
    assert old in good.to_line()
    path.write_text(good.to_line().replace(old, new) + "\n\n" + good.to_line() + "\n")
    assert read_records(path) == [good]
    assert "line 1 is skipped" in caplog.text


def test_a_line_that_was_cut_off_does_not_spoil_the_next(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    good = record_of(machine)
    path.write_text(good.to_line()[:50])
    append_records(path, [good])
    assert read_records(path) == [good]


def test_the_largest_speedup_of_one_key_wins(machine: Machine) -> None:
    records = [record_of(machine, speedup) for speedup in (1.1, 1.3, 1.2)]
    found = RecordBook(machine, records).best(KEY)
    assert found is not None
    assert found.record == records[1]
    assert found.origin == "this machine"


def test_records_of_this_machine_come_before_those_of_its_cpu_and_of_its_isa(
    machine: Machine,
) -> None:
    own = record_of(machine, 1.1)
    like = replace(own, machine="another", speedup=1.2)
    unlike = replace(like, cpu=CpuKind.of(load_machine("epyc-9655")), speedup=1.3)
    origins = []
    records = [unlike, like, own]
    while records:
        found = RecordBook(machine, records).best(KEY)
        assert found is not None
        assert found.record is records.pop()
        origins.append(found.origin)
    assert origins == ["this machine", "this CPU", "another CPU with this ISA"]


@pytest.mark.parametrize(
    "change", [{"isa": "avx2"}, {"format": "float32"}, {"rows": 8}, {"k": 2049}, {"k": 511}]
)
def test_another_isa_format_range_or_a_far_k_does_not_answer(
    machine: Machine, change: dict[str, Any]
) -> None:
    assert RecordBook(machine, [record_of(machine, **change)]).best(KEY) is None


def test_the_nearest_k_and_then_n_answers(machine: Machine) -> None:
    far_k, far_n, near = ({"k": 768}, {"n": 9999}, {"n": 3000})
    records = [record_of(machine, **key) for key in (far_k, far_n, near)]
    for left in ([2, 1, 0], [1, 0], [0]):
        found = RecordBook(machine, [records[i] for i in left]).best(KEY)
        assert found is not None
        assert found.record == records[left[0]]


def test_a_record_of_another_generator_answers_but_is_not_exact(machine: Machine) -> None:
    old = replace(record_of(machine), generator="0" * 12)
    book = RecordBook(machine, [old])
    assert book.exact(KEY) is None
    assert book.best(KEY) is not None
    new = record_of(machine, speedup=1.0)
    book.add(new)
    assert book.exact(KEY) == new
    found = book.best(KEY)
    assert found is not None
    assert found.record == new


def test_records_of_like_machines_are_imported_once(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    like = replace(record_of(machine), machine="another")
    append_records(path, [like])
    book = RecordBook(machine, [])
    assert import_records(book, machine, path) == [like]
    book.add(like)
    assert import_records(book, machine, path) == []


def test_records_of_an_unlike_cpu_are_refused_with_the_difference(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "other.jsonl"
    own = record_of(machine)
    unlike = replace(own, cpu=replace(own.cpu, model="Another", l2_bytes=1))
    append_records(path, [unlike])
    with pytest.raises(
        TuningRecordError, match=r"model 'Another' instead of .*l2_bytes 1 instead of"
    ):
        import_records(RecordBook(machine, []), machine, path)
    append_records(path, [own])
    assert import_records(RecordBook(machine, []), machine, path) == [own]
    assert "unlike CPUs are left out" in caplog.text


def test_a_file_without_records_is_refused(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(TuningRecordError, match="holds no tuned record"):
        import_records(RecordBook(machine, []), machine, tmp_path / "none")


def test_an_unreadable_file_costs_a_warning(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).mkdir()
    assert RecordBook.open(machine, tmp_path).records == shipped_records()
    assert "cannot be read" in caplog.text


def test_every_shipped_record_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    shipped_records()
    assert caplog.text == ""
