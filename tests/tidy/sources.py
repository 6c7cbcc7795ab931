"""Which files of the checkout are sources, and what they include or import."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def files() -> tuple[Path, ...]:
    """Files that are committed or would be: ignored ones are generated or results."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        found = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    else:  # an unpacked archive
        rooms = ("benchmarks", "csrc", "protos", "scheduler", "tests")
        found = [path for room in rooms for path in (ROOT / room).rglob("*")]
        found = [path for path in found if "v1" not in path.parts[:-1] or path.suffix == ".proto"]
    return tuple(sorted(path for path in found if path.is_file()))


def sources(*suffixes: str, under: str = "") -> list[Path]:
    """Source files with one of the suffixes, in a folder of the checkout."""
    folder = ROOT / under
    return [path for path in files() if path.suffix in suffixes and folder in path.parents]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path, under: str) -> str:
    """The room of a file of csrc or scheduler; "" for a file outside of any."""
    parts = path.relative_to(ROOT / under).parts
    return parts[0] if len(parts) > 1 else ""


def included_rooms(path: Path) -> set[str]:
    """Rooms of csrc whose headers a C++ file includes."""
    return set(re.findall(r'^\s*#\s*include\s+"([^/"]+)/', path.read_text(), re.MULTILINE))


def imported_rooms(path: Path) -> set[str]:
    """Rooms of scheduler that a Python or Cython file imports, anywhere in it."""
    if path.suffix == ".py":
        modules = set(_python_imports(ast.parse(path.read_text())))
    else:
        pattern = r"^\s*(?:from|import|cimport)\s+(scheduler(?:\.\w+)+)"
        modules = set(re.findall(pattern, path.read_text(), re.MULTILINE))
    return {parts[1] for parts in (m.split(".") for m in modules) if parts[0] == "scheduler"}


def _python_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if "." in alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module == "scheduler":
            yield from (f"scheduler.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and "." in node.module:
            yield node.module


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of each function, without its docstring and the functions inside it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
            inner = [
                (child.end_lineno or 0) - child.lineno + 1
                for child in node.body
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            yield node.name, lines - sum(inner)


def cxx_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of each function defined at file or namespace level, as formatted."""
    opened: tuple[str, int] | None = None
    signature = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if opened is not None:
            if line.startswith("}"):
                yield opened[0], number - opened[1] + 1
                opened = None
            continue
        if not line or line.startswith(
            ("#", "//", "}", "namespace", "extern", "public", "private")
        ):
            signature = ""
            continue
        signature += line
        if line.endswith("{"):
            found = re.search(r"([\w:~]+|operator\S+)\(", signature)
            if found is not None and not signature.startswith(("struct", "class", "enum", "union")):
                opened = (found[1], number)
            signature = ""
        elif line.endswith((";", "}")):
            signature = ""
