"""The training text: the running interpreter's standard library, as files, functions and chats."""

import ast
import hashlib
import random
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

EXCLUDED = re.compile(
    r"(^|/)(site-packages|__pycache__|pydoc_data|encoded_modules|turtledemo)/"
    r"|^encodings/(cp|iso|mac|koi|kz|hp|ptcp|tis|palmos|charmap)"
    r"|^lib2to3/tests/data/|(^|/)(bad_|badsyntax)|^turtle\.py$|^test/(re_tests|test_email/data)"
)
TEST_PATH = re.compile(r"(^|/)(test|tests|idle_test)/")
MAX_FILE_BYTES = 300_000
VALIDATION_BUCKETS = 50  # one file in fifty is held out, whole: files, functions and chats of it
SHORT_FUNCTION_LINES = 16


class Kind(StrEnum):
    """What a training document is; each kind has its own share of a batch."""

    LIBRARY = "library"
    TESTS = "tests"
    FUNCTION = "function"
    CHAT = "chat"


@dataclass(frozen=True)
class SourceFile:
    """One readable module: its path below the standard library and its text."""

    path: str
    text: str

    @property
    def kind(self) -> Kind:
        return Kind.TESTS if TEST_PATH.search(self.path) else Kind.LIBRARY

    @property
    def is_validation(self) -> bool:
        """Split by the hash of the path, so that the split survives a change of any other file."""
        digest = hashlib.sha256(self.path.encode()).digest()
        return int.from_bytes(digest[:8], "big") % VALIDATION_BUCKETS == 0


@dataclass(frozen=True)
class Function:
    """A documented function, dedented to the margin, its docstring in triple double quotes."""

    name: str
    signature: str  # "def add(a, b):", perhaps over several lines
    summary: str  # the first paragraph of the docstring, on one line
    source: str

    @property
    def is_method(self) -> bool:
        return re.search(r"\((self|cls)\b", self.signature) is not None

    @property
    def is_short(self) -> bool:
        return self.source.count("\n") <= SHORT_FUNCTION_LINES


@dataclass(frozen=True)
class ChatExample:
    """A request in words or code and the function that answers it."""

    user: str
    assistant: str


def source_files(root: Path | None = None) -> list[SourceFile]:
    """Every module of the standard library that parses, in path order; tables and data left out."""
    root = root or Path(sysconfig.get_path("stdlib"))
    files = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if EXCLUDED.search(name) or not 0 < path.stat().st_size <= MAX_FILE_BYTES:
            continue
        text = _read_source(path)
        if text is not None:
            files.append(SourceFile(name, text))
    return files


def functions(file: SourceFile) -> Iterator[Function]:
    """The documented functions and methods of a file, in source order."""
    lines = file.text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(file.text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = _documented_function(node, lines)
            if function is not None:
                yield function


def chat_example(function: Function, rng: random.Random) -> ChatExample:
    """Ask for a function by its summary, by its name and summary, or by its signature alone."""
    draw = rng.random()
    if draw < 0.45:
        user = function.summary
    elif draw < 0.7:
        user = f"Write a function {function.name}. {function.summary}"
    else:
        user = function.signature
    return ChatExample(user=user, assistant=function.source)


def _read_source(path: Path) -> str | None:
    try:
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n").expandtabs(8)
        ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return None
    return text


def _documented_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]
) -> Function | None:
    doc = ast.get_docstring(node)
    if not doc or len(node.body) < 2:
        return None
    doc_node = node.body[0]
    start, doc_start, body_start = node.lineno - 1, doc_node.lineno - 1, doc_node.end_lineno
    if body_start is None or lines[start].lstrip() == "" or doc_start == start:
        return None
    docstring = _triple_quoted("".join(lines[doc_start:body_start]))
    signature = "".join(lines[start:doc_start])
    source = textwrap.dedent(signature + docstring + "".join(lines[body_start : node.end_lineno]))
    if not source.startswith(("def ", "async def ")) or not _parses(source):
        return None
    summary = " ".join(doc.split("\n\n")[0].split())
    signature = textwrap.dedent(signature).rstrip()
    return Function(node.name, signature, summary, source.rstrip() + "\n") if summary else None


def _triple_quoted(docstring: str) -> str:
    """`"Text."` and `'''Text.'''` as triple double quotes, where that cannot change the meaning."""
    match = re.fullmatch(r"""(\s*)('''|"|')(.*?)\2(\s*)""", docstring, re.DOTALL)
    if match is None or '"' in match[3] or "\\" in match[3]:
        return docstring
    return f'{match[1]}"""{match[3]}"""{match[4]}'


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True
