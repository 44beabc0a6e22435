"""Tuned records: which tile was found best for a GEMM, on what machine, and how good it was.

A record is one JSON line, appended when it is found; decisions are kept and replayed, binaries are
rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from codegen.cache import generator_hash
from codegen.spec import GemmTile
from platforms.machine import Machine

FILE_NAME = "tuned.jsonl"  # in the folder of the cache
SHIPPED_FOLDER = Path(__file__).parent / "tuned"
NEAR_K = 2.0  # a tile is taken over for a K up to so many times as large or as small
_DIGITS = 12  # of a digest

_log = logging.getLogger(__name__)


class TuningRecordError(ValueError):
    """A line or a file that holds no tuned records, or those of another CPU."""


@dataclass(frozen=True)
class CpuKind:
    """What like machines share: records of one are good for the other.

    The model's name alone would not do: hypervisors hide it. What decides over a tile is the vector
    instructions (`features` is a digest of their flags) and the caches of one core; the number of
    cores is part of a record, and sockets, memory and limits do not matter. A cache that the
    machine hides has 0 bytes.
    """

    arch: str
    model: str
    features: str
    l1_bytes: int
    l2_bytes: int

    @staticmethod
    def of(machine: Machine) -> CpuKind:
        """That of a machine, or of a recorded one."""
        flags = " ".join(machine.vector_features)
        return CpuKind(
            arch=machine.arch,
            model=machine.cpu_model,
            features=hashlib.sha256(flags.encode()).hexdigest()[:_DIGITS],
            l1_bytes=machine.cache_bytes(1) or 0,
            l2_bytes=machine.cache_bytes(2) or 0,
        )

    def difference(self, other: CpuKind) -> str:
        """Where `other` differs, for people; empty if it does not."""
        return ", ".join(
            f"{f.name} {getattr(other, f.name)!r} instead of {getattr(self, f.name)!r}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        )


@dataclass(frozen=True)
class TileKey:
    """What a tile is chosen for: a GEMM of (n, k) weights on so many cores, measured at `rows`."""

    isa: str
    format: str  # WeightFormat.name
    n: int
    k: int
    num_cores: int
    rows: int


@dataclass(frozen=True)
class TuningRecord:
    """One decision and what was measured for it.

    machine: Machine.fingerprint. generator: digest of the generator's sources. gflops, gbps
    (weights read): median rates of all cores together. limit_ratio: the larger of the two as parts
    of the limits sampled in the same run. speedup: over the default tile, the median of paired
    runs; 1 where the default was kept.
    """

    machine: str
    cpu: CpuKind
    key: TileKey
    tile: GemmTile
    gflops: float
    gbps: float
    limit_ratio: float
    speedup: float
    generator: str

    def to_line(self) -> str:
        """One line of JSON, without the newline."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_line(line: str) -> TuningRecord:
        """The record of `to_line`; TuningRecordError if the line is none."""
        try:
            entry: dict[str, Any] = json.loads(line)
            record = TuningRecord(
                **entry
                | {
                    "cpu": CpuKind(**entry["cpu"]),
                    "key": TileKey(**entry["key"]),
                    "tile": GemmTile(**entry["tile"]),
                }
            )
            record.check()
        except (ValueError, KeyError, TypeError) as error:
            raise TuningRecordError(f"not a tuned record ({error}): {line[:80]!r}") from error
        return record

    def check(self) -> None:
        """ValueError for a size or a rate that cannot be."""
        key = self.key
        for name, count in (
            ("n", key.n),
            ("k", key.k),
            ("cores", key.num_cores),
            ("rows", key.rows),
        ):
            if type(count) is not int or count < 1:
                raise ValueError(f"{name} is {count!r}; it is a whole number from 1 on")
        for name in ("gflops", "gbps", "limit_ratio", "speedup"):
            rate = getattr(self, name)
            if type(rate) not in (int, float) or not 0 < rate < math.inf:
                raise ValueError(f"{name} is {rate!r}; it is a positive number")


def current_generator() -> str:
    """The digest of the generator's sources that new records carry."""
    return generator_hash()[:_DIGITS]


def read_records(path: Path) -> list[TuningRecord]:
    """The records of a file, in its order; none if there is no file.

    Damaged lines are skipped with a warning. OSError if the file cannot be read.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
    ):
        if not line.strip():
            continue
        try:
            records.append(TuningRecord.from_line(line))
        except TuningRecordError as error:
            _log.warning("%s line %d is skipped: %s", path, number, error)
    return records


def append_records(path: Path, records: Iterable[TuningRecord]) -> None:
    """Add records to the end of a file, which is made if need be; OSError if it cannot be.

    After a line that was cut off, the first record starts on a line of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        is_cut = file.read(1) not in (b"", b"\n")
        text = "".join(f"{record.to_line()}\n" for record in records)
        file.write(("\n" * is_cut + text).encode())


def shipped_records() -> list[TuningRecord]:
    """The records that come with the package."""
    return [
        record for path in sorted(SHIPPED_FOLDER.glob("*.jsonl")) for record in read_records(path)
    ]


@dataclass(frozen=True)
class FoundRecord:
    """A record that answers a key, and how near its machine is: a sentence's end for people."""

    record: TuningRecord
    origin: str


class RecordBook:
    """All known records, and which of them answers a key on `machine`.

    Records of this very machine come first, then those of the same CpuKind, then any of the same
    ISA; among them the number of cores, the nearest K and the nearest N (a core works panel by
    panel, so N hardly matters), the same generator, and at last the larger speed-up decide.
    """

    ORIGINS = ("this machine", "this CPU", "another CPU with this ISA")

    def __init__(self, machine: Machine, records: Sequence[TuningRecord]) -> None:
        self._fingerprint, self._cpu = machine.fingerprint, CpuKind.of(machine)
        self._generator = current_generator()
        self.records = list(records)

    @staticmethod
    def open(machine: Machine, cache_dir: Path) -> RecordBook:
        """With the records of the cache's folder and those of the package; a file that cannot be
        read costs a warning.
        """
        try:
            own = read_records(cache_dir / FILE_NAME)
        except OSError as error:
            _log.warning("tuned records cannot be read: %s", error)
            own = []
        return RecordBook(machine, [*own, *shipped_records()])

    def add(self, record: TuningRecord) -> None:
        """Know one more."""
        self.records.append(record)

    def exact(self, key: TileKey) -> TuningRecord | None:
        """The best record of this machine and this generator for exactly this key."""
        same = [
            record
            for record in self.records
            if (record.machine, record.key, record.generator)
            == (self._fingerprint, key, self._generator)
        ]
        return max(same, key=lambda record: record.speedup, default=None)

    def best(self, key: TileKey) -> FoundRecord | None:
        """The record that answers `key` best; None if the default has to do."""
        fitting = [record for record in self.records if self._fits(record.key, key)]
        if not fitting:
            return None
        record = min(fitting, key=lambda record: self._distance(record, key))
        return FoundRecord(record, self.ORIGINS[self._level(record)])

    @staticmethod
    def _fits(known: TileKey, key: TileKey) -> bool:
        same = (known.isa, known.format, known.rows) == (key.isa, key.format, key.rows)
        return same and 1 / NEAR_K <= known.k / key.k <= NEAR_K

    def _level(self, record: TuningRecord) -> int:
        if record.machine == self._fingerprint:
            return 0
        return 1 if record.cpu == self._cpu else 2

    def _distance(self, record: TuningRecord, key: TileKey) -> tuple[float, ...]:
        known = record.key
        return (
            self._level(record),
            known.num_cores != key.num_cores,
            abs(math.log(known.k / key.k)),
            abs(math.log(known.n / key.n)),
            record.generator != self._generator,
            -record.speedup,
        )


def import_records(book: RecordBook, machine: Machine, path: Path) -> list[TuningRecord]:
    """The records of a file that are for machines like `machine` and that `book` does not have.

    TuningRecordError if there is no record in it or all are of other CPUs: says in what they
    differ. Some of other CPUs among them cost a warning.
    """
    records = read_records(path)
    if not records:
        raise TuningRecordError(f"{path} holds no tuned record")
    cpu = CpuKind.of(machine)
    like = [record for record in records if record.cpu == cpu]
    unlike = {record.cpu for record in records} - {cpu}
    reasons = "; ".join(sorted(cpu.difference(other) for other in unlike))
    if not like:
        raise TuningRecordError(f"the records in {path} are of an unlike CPU: {reasons}")
    if unlike:
        _log.warning("records of unlike CPUs are left out of %s: %s", path, reasons)
    known = set(book.records)
    return [record for record in like if record not in known]
