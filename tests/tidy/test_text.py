"""Size, and words that have no place in a source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT, cxx_functions, files, name, python_functions, sources

FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 70
LINE_COLUMNS_MAX = 100

CODE = (".py", ".pyx", ".pxd", ".pyi", ".h", ".cc", ".proto", ".sh")

# What would give the core a clock, a socket, a thread, or Python.
FORBIDDEN_INCLUDES = {
    "Python.h",
    "arpa/inet.h",
    "chrono",
    "condition_variable",
    "ctime",
    "future",
    "iostream",
    "mutex",
    "netdb.h",
    "netinet/in.h",
    "netinet/tcp.h",
    "poll.h",
    "random",
    "sys/epoll.h",
    "sys/socket.h",
    "sys/time.h",
    "sys/timerfd.h",
    "sys/un.h",
    "thread",
    "time.h",
}
FORBIDDEN_CALLS = re.compile(
    r"\b(?:clock_gettime|gettimeofday|std::rand|std::random_device|getenv|setenv|system_clock|"
    r"steady_clock|printf|std::cout|std::cerr)\s*[({<;:]"
)


@pytest.mark.parametrize("path", sources(*CODE), ids=name)
def test_a_file_does_one_thing(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES_MAX, f"{name(path)} has {lines} lines: split it"


@pytest.mark.parametrize("path", sources(".py"), ids=name)
def test_a_python_function_fits_a_screen(path: Path) -> None:
    long = {f: n for f, n in python_functions(path) if n > FUNCTION_LINES_MAX}
    assert not long, f"{name(path)}: {long}"


@pytest.mark.parametrize("path", sources(".h", ".cc", under="csrc"), ids=name)
def test_a_cxx_function_fits_a_screen(path: Path) -> None:
    long = {f: n for f, n in cxx_functions(path) if n > FUNCTION_LINES_MAX}
    assert not long, f"{name(path)}: {long}"


@pytest.mark.parametrize("path", sources(".h", ".cc", under="csrc"), ids=name)
def test_the_core_knows_no_clock_socket_thread_or_python(path: Path) -> None:
    text = path.read_text()
    includes = set(re.findall(r"^\s*#\s*include\s+<([^>]+)>", text, re.MULTILINE))
    assert not includes & FORBIDDEN_INCLUDES, name(path)
    code = re.sub(r'//.*|"(?:[^"\\]|\\.)*"', "", text)
    assert FORBIDDEN_CALLS.search(code) is None, name(path)


@pytest.mark.parametrize("path", sources(".h", ".cc", ".proto", ".pyx", ".pxd", ".pyi"), ids=name)
def test_lines_are_short_and_clean(path: Path) -> None:
    lines = path.read_text().split("\n")
    assert [n for n, line in enumerate(lines, 1) if len(line) > LINE_COLUMNS_MAX] == []
    assert [n for n, line in enumerate(lines, 1) if line != line.rstrip() or "\t" in line] == []
    assert lines[-1] == "", "the file does not end with a newline"


@pytest.mark.parametrize("path", sources(".h", under="csrc"), ids=name)
def test_headers_are_included_once(path: Path) -> None:
    assert "#pragma once" in path.read_text()


@pytest.mark.parametrize("path", sources(*CODE), ids=name)
def test_no_work_is_left_to_a_comment(path: Path) -> None:
    words = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")
    assert words.search(path.read_text()) is None, name(path)


def test_no_file_names_the_machine_it_was_written_on() -> None:
    places = [str(ROOT) + "/", str(Path.home()) + "/"]
    found = []
    for path in files():
        text = path.read_bytes().decode(errors="replace")
        found += [f"{name(path)}: {place}" for place in places if place in text]
    assert found == []


def test_generated_files_are_not_committed() -> None:
    kinds = (".so", ".o", ".a", ".pyc", "_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    assert [name(path) for path in files() if path.name.endswith(kinds)] == []
