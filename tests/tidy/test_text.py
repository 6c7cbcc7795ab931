"""Size, and words that have no place in a source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

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


def test_a_file_does_one_thing() -> None:
    lines = {name(path): len(path.read_text().splitlines()) for path in sources(*CODE)}
    assert {path: n for path, n in lines.items() if n > FILE_LINES_MAX} == {}, "split them"


def test_a_python_function_fits_a_screen() -> None:
    assert list(long_functions(sources(".py"), python_functions)) == []


def test_a_cxx_function_fits_a_screen() -> None:
    assert list(long_functions(sources(".h", ".cc", under="csrc"), cxx_functions)) == []


def long_functions(
    paths: list[Path], functions: Callable[[Path], Iterator[tuple[str, int]]]
) -> Iterator[str]:
    for path in paths:
        for function, lines in functions(path):
            if lines > FUNCTION_LINES_MAX:
                yield f"{name(path)}: {function} has {lines} lines"


def test_the_core_knows_no_clock_socket_thread_or_python() -> None:
    found = []
    for path in sources(".h", ".cc", under="csrc"):
        text = path.read_text()
        includes = set(re.findall(r"^\s*#\s*include\s+<([^>]+)>", text, re.MULTILINE))
        found += [f"{name(path)}: <{header}>" for header in includes & FORBIDDEN_INCLUDES]
        code = re.sub(r'//.*|"(?:[^"\\]|\\.)*"', "", text)
        found += [f"{name(path)}: {call}" for call in FORBIDDEN_CALLS.findall(code)]
    assert found == []


def test_lines_are_short_and_clean() -> None:
    found = []
    for path in sources(".h", ".cc", ".proto", ".pyx", ".pxd", ".pyi"):
        lines = path.read_text().split("\n")
        for number, line in enumerate(lines, 1):
            if len(line) > LINE_COLUMNS_MAX:
                found.append(f"{name(path)}:{number} has {len(line)} columns")
            if line != line.rstrip() or "\t" in line:
                found.append(f"{name(path)}:{number} has a tab, or white space at its end")
        if lines[-1] != "":
            found.append(f"{name(path)} does not end with a newline")
    assert found == []


def test_headers_are_included_once() -> None:
    headers = sources(".h", under="csrc")
    assert [name(path) for path in headers if "#pragma once" not in path.read_text()] == []


def test_no_work_is_left_to_a_comment() -> None:
    words = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")
    assert [name(path) for path in sources(*CODE) if words.search(path.read_text())] == []


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
