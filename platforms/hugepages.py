"""The state of huge pages: transparent ones (THP) and the pools of explicit ones (hugetlbfs)."""

from dataclasses import dataclass

from platforms.sysfs import Tree, parse_cpu_list

_THP = "sys/kernel/mm/transparent_hugepage"
_POOLS = "sys/kernel/mm/hugepages"
_NODES = "sys/devices/system/node"
_DEFAULT_HUGE_PAGE_BYTES = 2 << 20


@dataclass(frozen=True)
class HugePagePool:
    """One hugetlbfs pool."""

    page_bytes: int
    num_pages: int
    num_free: int


@dataclass(frozen=True)
class HugePages:
    """Huge page state; modes as the kernel names them, "unsupported" where it has no such file."""

    thp_mode: str  # "always", "madvise", "never" or "unsupported"
    thp_defrag: str  # "always", "defer", "defer+madvise", "madvise", "never" or "unsupported"
    thp_bytes: int  # bytes of one transparent huge page
    is_disabled_for_process: bool  # prctl(PR_SET_THP_DISABLE), inherited from some launchers
    pools: tuple[HugePagePool, ...]

    @property
    def is_thp_available(self) -> bool:
        """Whether memory that asks for huge pages with MADV_HUGEPAGE can get them."""
        return self.thp_mode in ("always", "madvise") and not self.is_disabled_for_process

    def free_explicit_bytes(self, page_bytes: int) -> int:
        """Free in the pool of pages of that size."""
        return sum(p.num_free * p.page_bytes for p in self.pools if p.page_bytes == page_bytes)

    @property
    def problem(self) -> str:
        """Why memory gets no transparent huge pages, with the remedy if there is one; else ""."""
        if self.is_thp_available:
            return ""
        if self.thp_mode == "unsupported":
            return "the kernel offers none"
        if self.is_disabled_for_process:
            return "disabled for this process by whoever started it (PR_SET_THP_DISABLE)"
        return "off; as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"


def read_huge_pages(tree: Tree) -> HugePages:
    status = tree.read_fields("proc/self/status")
    nbytes = tree.read_int(f"{_THP}/hpage_pmd_size") or _DEFAULT_HUGE_PAGE_BYTES
    # Kernels since 6.8 have a mode for each size; "inherit" refers to the common one.
    mode = _chosen(tree.read(f"{_THP}/hugepages-{nbytes >> 10}kB/enabled"))
    if mode in ("inherit", "unsupported"):
        mode = _chosen(tree.read(f"{_THP}/enabled"))
    return HugePages(
        thp_mode=mode,
        thp_defrag=_chosen(tree.read(f"{_THP}/defrag")),
        thp_bytes=nbytes,
        is_disabled_for_process=status.get("THP_enabled") == "0",
        pools=tuple(_read_pools(tree)),
    )


def free_explicit_pages(tree: Tree, page_bytes: int) -> int:
    """Pages of the pool of that size that nobody has or was promised, on the nodes whose memory
    this process may use.
    """
    name = f"hugepages-{page_bytes >> 10}kB"
    num_promised = tree.read_int(f"{_POOLS}/{name}/resv_hugepages") or 0
    nodes = parse_cpu_list(tree.read_fields("proc/self/status").get("Mems_allowed_list", ""))
    by_node = [
        tree.read_int(f"{_NODES}/node{node}/hugepages/{name}/free_hugepages") for node in nodes
    ]
    known = [num_free for num_free in by_node if num_free is not None]
    num_free = sum(known) if known else tree.read_int(f"{_POOLS}/{name}/free_hugepages") or 0
    return max(0, num_free - num_promised)


def _chosen(text: str | None) -> str:
    """The word in brackets of "always [madvise] never"."""
    for word in (text or "").split():
        if word.startswith("[") and word.endswith("]"):
            return word[1:-1]
    return "unsupported"


def _read_pools(tree: Tree) -> list[HugePagePool]:
    pools = []
    for name in tree.list_dir(_POOLS):
        size = name.removeprefix("hugepages-").removesuffix("kB")
        if size.isdecimal():
            num_pages = tree.read_int(f"{_POOLS}/{name}/nr_hugepages") or 0
            num_free = tree.read_int(f"{_POOLS}/{name}/free_hugepages") or 0
            pools.append(HugePagePool(int(size) << 10, num_pages, num_free))
    return sorted(pools, key=lambda pool: pool.page_bytes)
