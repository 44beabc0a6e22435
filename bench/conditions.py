"""Whether a machine is quiet enough to be believed: load, other processes, steal, clock."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
from rich.console import Console

WATCH_SECONDS = 0.5
BUSY_SHARE = 0.1  # of the CPUs: used by others, or taken by the hypervisor
SLOW_CLOCK = 0.8  # of the highest clock


@dataclass(frozen=True)
class Conditions:
    """What was seen while nothing was measured. Shares are of all CPUs; mhz: None if not known."""

    load_1min: float
    busy_share: float
    steal_share: float
    mhz: float | None
    max_mhz: float | None

    @classmethod
    def watched(cls, seconds: float = WATCH_SECONDS) -> Conditions:
        """Watch the machine for a moment."""
        before = psutil.cpu_times()
        time.sleep(seconds)
        after = psutil.cpu_times()
        total = sum(after) - sum(before) or 1.0
        steal = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)
        idle = after.idle - before.idle + getattr(after, "iowait", 0) - getattr(before, "iowait", 0)
        clock = psutil.cpu_freq()
        return cls(
            load_1min=os.getloadavg()[0],
            busy_share=max(0.0, 1 - (idle + steal) / total),
            steal_share=max(0.0, steal / total),
            mhz=clock.current if clock else None,
            max_mhz=(clock.max or None) if clock else None,
        )

    def complaints(self) -> list[str]:
        """What makes figures doubtful; nothing on a quiet machine."""
        found = []
        if self.busy_share > BUSY_SHARE:
            found.append(f"other processes use {self.busy_share:.0%} of the CPUs")
        if self.steal_share > BUSY_SHARE:
            found.append(f"the hypervisor takes {self.steal_share:.0%} of the time")
        if self.mhz and self.max_mhz and self.mhz < SLOW_CLOCK * self.max_mhz:
            found.append(f"the clock is at {self.mhz:.0f} of {self.max_mhz:.0f} MHz")
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON types, the complaints among them."""
        return {**asdict(self), "complaints": self.complaints()}


def watch_and_warn() -> Conditions:
    """Watch, and say loudly what is wrong; the figures are measured all the same."""
    conditions = Conditions.watched()
    if complaints := conditions.complaints():
        console = Console(stderr=True)
        console.print(
            f"WARNING: this machine is busy: {'; '.join(complaints)}. Trust ratios of one run at "
            "most, and no single figure.",
            style="bold red",
        )
    return conditions
