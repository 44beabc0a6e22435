"""A trial of a tile as a value: which slice of a GEMM is timed on which cores.

A trial is the slice of a GEMM that the cores really run: all of K, and so many columns for each
core that weights come from memory as in a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from codegen.layout.panels import PanelLayout
from codegen.spec import GemmTile

PANELS_PER_CORE = 16  # of a trial's slice: long beside the launch, short beside a whole GEMM
MIN_PANELS_PER_CORE = 4  # the order of tiles shows only with some
CORE_FLOPS = 1.5e9  # of one call on one core, at most, if that leaves enough panels
RESIDENT_BYTES = 256 << 10  # of the weights that a cache-resident trial reads, at most


@dataclass(frozen=True)
class Trial:
    """`tile` on `rows` rows, with the columns of `layout` shared by `cpus`."""

    isa: str
    layout: PanelLayout
    rows: int
    cpus: tuple[int, ...]
    tile: GemmTile

    @property
    def flops(self) -> float:
        """Multiplications and additions of one call."""
        return 2.0 * self.rows * self.layout.n * self.layout.k

    def resident(self) -> Trial:
        """The same micro-kernel alone: one core, one panel, whatever of K a cache holds."""
        layout = self.layout
        width = layout.panel * layout.word_dtype.itemsize / layout.kr
        least = layout.format.group or layout.kr
        k = min(self.tile.kc or layout.k, layout.k, int(RESIDENT_BYTES / width))
        panel = replace(layout, n=layout.panel, k=max(k // least, 1) * least)
        return Trial(self.isa, panel, self.rows, self.cpus[:1], replace(self.tile, kc=0))


def slice_of(layout: PanelLayout, rows: int, num_cores: int) -> PanelLayout:
    """The columns of a trial for a whole matrix: equally many whole panels for each core."""
    panel_flops = 2.0 * rows * layout.panel * layout.k
    wanted = min(PANELS_PER_CORE, int(CORE_FLOPS / panel_flops))
    columns = max(wanted, MIN_PANELS_PER_CORE) * num_cores * layout.panel
    return replace(layout, n=columns) if columns < layout.n else layout
