"""Imports point down: bench -> sandwich -> schedules -> codegen -> platforms. Read, never run."""

import ast
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

LAYERS = ("platforms", "codegen", "schedules", "sandwich", "bench")  # lowest first

# Confined libraries: import name -> the modules (and all below them) that may use it.
CONFINED = {
    "tvm": ("codegen",),
    "tvm_ffi": ("codegen",),
    "tvm_ffi_orcjit": ("codegen",),
    "numa": ("platforms",),
    "asyncio": (
        "sandwich.server.bridge",
        "sandwich.server.request_stream",
        "sandwich.server",
        "sandwich.cli",
        "bench",
    ),
    "aiohttp": ("sandwich.server", "bench"),
    "lm_eval": ("bench.quality",),
    "torch": ("bench",),
    "transformers": ("bench",),
}
# What must not reach a library, not even through others.
FREE_OF = [
    ("codegen.spec", "tvm"),
    ("codegen.layout.model", "tvm"),
    ("codegen.reference", "tvm"),
    ("codegen.step.arguments", "tvm"),
    ("codegen.layout.arrays", "tvm"),
    ("codegen.layout.operands", "tvm"),
    ("codegen.layout.panels", "tvm"),
    ("codegen.layout.quantize", "tvm"),
    ("codegen.cores.shares", "tvm"),
    ("schedules.tiles.trial", "tvm"),
    ("sandwich.engine.engine", "tvm"),
    ("sandwich.engine.engine", "aiohttp"),
    ("sandwich.llm", "aiohttp"),
    ("sandwich.executor.numa_placement", "tvm"),
    ("sandwich.startup.plans", "tvm"),
    ("sandwich.cli", "torch"),
    ("sandwich.cli", "transformers"),
    ("sandwich.llm", "torch"),
    ("sandwich.llm", "transformers"),
]
LIBRARIES_OF_PLATFORMS = {"numpy", "psutil", "numa"}


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, where, and whether inside a function."""

    source: str
    target: str
    line: int
    is_lazy: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def is_within(module: str, parents: tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def top(module: str) -> str:
    return module.partition(".")[0]


def module_files(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of every layer under `root`."""
    files = {}
    for layer in LAYERS:
        for path in sorted((root / layer).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def statements(tree: ast.AST, is_lazy: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, is_lazy
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from statements(node, is_lazy or inside)


def read_imports(root: Path) -> list[Import]:
    """Every import of every module; `from a import b` names a.b where that is a module."""
    files = module_files(root)
    found = []
    for source, path in files.items():
        for node, is_lazy in statements(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                targets = {alias.name for alias in node.names}
            else:
                assert isinstance(node, ast.ImportFrom)
                base = node.module or ""
                full = (f"{base}.{alias.name}" for alias in node.names)
                targets = {name if name in files else base for name in full}
            found += [Import(source, t, node.lineno, is_lazy) for t in sorted(targets)]
    return found


def upward(imports: list[Import]) -> list[Import]:
    def is_upward(i: Import) -> bool:
        if top(i.target) not in LAYERS:
            return False
        is_verb = top(i.target) == "bench" and is_within(i.source, ("sandwich.cli",)) and i.is_lazy
        return LAYERS.index(top(i.target)) > LAYERS.index(top(i.source)) and not is_verb

    return [i for i in imports if is_upward(i)]


def escaped(imports: list[Import]) -> list[Import]:
    """Imports of a confined library outside its confines."""
    return [
        i
        for i in imports
        if top(i.target) in CONFINED and not is_within(i.source, CONFINED[top(i.target)])
    ]


def circle(imports: list[Import], names: Collection[str]) -> list[str]:
    """The modules of one circle, or nothing. Lazy imports count: they only hide a circle."""
    graph: dict[str, set[str]] = {name: set() for name in names}
    for i in imports:
        if i.target in names and i.target != i.source:
            graph[i.source].add(i.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def between_rooms(imports: list[Import]) -> list[Import]:
    """The imports of each layer from one of its rooms (a folder, or a file beside them) to another,
    as imports of the rooms.
    """

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    pairs = [replace(i, source=room(i.source), target=room(i.target)) for i in imports]
    return [i for i in pairs if top(i.source) == top(i.target) and top(i.source) in LAYERS]


def reachable(start: str, imports: list[Import]) -> set[str]:
    """All that is imported, at once or lazily, by `start` and by what it imports."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += [i.target for i in imports if i.source == module]
    return seen


@pytest.fixture(scope="module")
def house(checkout: Path) -> list[Import]:
    return read_imports(checkout)


def test_no_module_imports_a_layer_above_its_own(house: list[Import]) -> None:
    assert [str(i) for i in upward(house)] == []


def test_confined_libraries_stay_in_their_layer(house: list[Import]) -> None:
    assert [str(i) for i in escaped(house)] == []


def test_there_is_no_circle_of_imports(house: list[Import], checkout: Path) -> None:
    assert circle(house, module_files(checkout)) == []


def test_there_is_no_circle_of_rooms(house: list[Import]) -> None:
    rooms = between_rooms(house)
    names = {name for i in rooms for name in (i.source, i.target)}
    assert circle(rooms, names) == []


def test_platforms_needs_no_more_than_its_few_libraries(house: list[Import]) -> None:
    known = LIBRARIES_OF_PLATFORMS | sys.stdlib_module_names | {"platforms"}
    strangers = [i for i in house if top(i.source) == "platforms" and top(i.target) not in known]
    assert [str(i) for i in strangers] == []


@pytest.mark.parametrize(("module", "library"), FREE_OF)
def test_no_path_of_imports_leads_to_the_library(
    house: list[Import], checkout: Path, module: str, library: str
) -> None:
    assert module in module_files(checkout)
    assert library not in {top(target) for target in reachable(module, house)}


def write_tree(root: Path, **files: str) -> None:
    """`write_tree(root, codegen__gemm="import tvm")`: two underscores stand for a slash."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    "files",
    [
        {"platforms__a": "import codegen.b", "codegen__b": ""},
        {"codegen__a": "from sandwich.errors import E", "sandwich__errors": ""},
        {"codegen__a": "def f():\n    from sandwich import errors", "sandwich__errors": ""},
        {"sandwich__engine": "def f():\n    import bench.limits", "bench__limits": ""},
        {"sandwich__cli__main": "import bench.limits", "bench__limits": ""},
    ],
)
def test_the_checker_sees_an_upward_import(tmp_path: Path, files: dict[str, str]) -> None:
    write_tree(tmp_path, **files)
    assert len(upward(read_imports(tmp_path))) == 1


def test_the_command_line_may_reach_the_benchmarks_lazily(tmp_path: Path) -> None:
    write_tree(tmp_path, sandwich__cli__main="def f():\n    import bench.limits", bench__limits="")
    assert upward(read_imports(tmp_path)) == []


def test_the_checker_sees_tvm_outside_codegen(tmp_path: Path) -> None:
    write_tree(tmp_path, codegen__a="import tvm", schedules__a="def f():\n    from tvm import te")
    assert [str(i) for i in escaped(read_imports(tmp_path))] == ["schedules.a:2 imports tvm"]


@pytest.mark.parametrize("lazily", ["", "def f():\n    "])
def test_the_checker_sees_a_circle(tmp_path: Path, lazily: str) -> None:
    write_tree(
        tmp_path,
        sandwich__a="from sandwich import b",
        sandwich__b="from sandwich.c import x",
        sandwich__c=f"{lazily}import sandwich.a",
    )
    found = circle(read_imports(tmp_path), module_files(tmp_path))
    assert set(found) == {"sandwich.a", "sandwich.b", "sandwich.c"}


def test_the_checker_sees_a_circle_of_rooms(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        sandwich__a__one="from sandwich.b.two import x",
        sandwich__b__two="",
        sandwich__b__three="from sandwich.a.four import y",
        sandwich__a__four="",
    )
    imports = read_imports(tmp_path)
    assert circle(imports, module_files(tmp_path)) == []
    assert set(circle(between_rooms(imports), ["sandwich.a", "sandwich.b"])) == {
        "sandwich.a",
        "sandwich.b",
    }
