"""Builds the C++ core, the Cython modules over it and the protobuf modules.

The core (`csrc/`) becomes one static library a room. Each extension module links only the rooms it
is allowed to know, so an include that crosses the layering fails at link time as well as in the
tidy tests. Objects are rebuilt when a source, a header of their depfile or their command changed.

Environment switches:

    INFERSCHED_DEBUG=1      -O0, assertions of ours and of libstdc++    -> build/debug/lib
    INFERSCHED_ASAN=1       AddressSanitizer and UBSan, fatal findings  -> build/asan/lib
    INFERSCHED_WERROR=1     warnings in csrc are errors
    INFERSCHED_JOBS=N       parallel compilations (default: the processors)
    INFERSCHED_ONLY=a,b     only these extension modules and the rooms they need
    INFERSCHED_BUILD_DIR=D  objects under D instead of build/

`setup.py build_fuzz` builds the fuzzers of tests/fuzz with clang into build/fuzz.

A debug or sanitizer build never replaces the modules in place: point INFERSCHED_NATIVE_DIR at its
`lib` directory to import it.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NATIVE = "scheduler._native"

# The rooms each module links, dependents first as the linker wants them.
MODULE_ROOMS: dict[str, tuple[str, ...]] = {
    "counters": (),
    "timerfd": (),
    "codec": ("kserve", "base"),
    "engine": ("engine", "base"),
    "latency": ("engine", "base"),
    "http2": ("http2", "base"),
    "gateway": ("gateway", "http2", "kserve", "engine", "base"),
    "loadgen": ("loadgen", "http2", "kserve", "base"),
    "simulation": ("simulation", "engine", "base"),
}
ROOMS_WITH_NGHTTP2 = {"http2", "gateway"}  # and zlib

# The rooms that each fuzzer of tests/fuzz links.
FUZZER_ROOMS: dict[str, tuple[str, ...]] = {
    "codec_request": ("kserve", "base"),
    "codec_reply": ("kserve", "base"),
    "http2_server": ("http2", "base"),
    "http2_client": ("http2", "base"),
}
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

CYTHON_DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
}


def enabled(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


@dataclass(frozen=True)
class Variant:
    """Compiler flags and directories of one kind of build."""

    name: str
    cxxflags: list[str]
    ldflags: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return ROOT / os.environ.get("INFERSCHED_BUILD_DIR", "build") / self.name

    @classmethod
    def from_environment(cls) -> Variant:
        common = cls.common_flags()
        if enabled("INFERSCHED_ASAN"):
            flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", *SANITIZE]
            return cls("asan", [*common, *flags], SANITIZE)
        if enabled("INFERSCHED_DEBUG"):
            return cls("debug", [*common, "-O0", "-g3", "-D_GLIBCXX_ASSERTIONS"])
        return cls("release", [*common, "-O2", "-g1", "-fno-plt", "-DNDEBUG"])

    @classmethod
    def fuzz(cls) -> Variant:
        """For clang: coverage that guides libFuzzer, and the sanitizers."""
        flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", *SANITIZE]
        flags.append("-fsanitize=fuzzer-no-link")
        return cls("fuzz", [*cls.common_flags(), *flags], [*SANITIZE, "-fsanitize=fuzzer"])

    @staticmethod
    def common_flags() -> list[str]:
        return [
            "-std=c++17",
            "-fPIC",
            "-fvisibility=hidden",
            "-ffp-contract=off",
            "-fno-strict-aliasing",
            "-pthread",
        ]


def pkg_config_nghttp2() -> tuple[list[str], list[str]]:
    """Compile and link flags of libnghttp2, by default paths where pkg-config is silent."""
    flags: list[list[str]] = []
    for option, fallback in (("--cflags", ""), ("--libs", "-lnghttp2")):
        try:
            answer = subprocess.run(
                ["pkg-config", option, "libnghttp2"], capture_output=True, text=True, check=True
            ).stdout
        except (OSError, subprocess.CalledProcessError):
            answer = fallback
        flags.append(shlex.split(answer))
    return flags[0], flags[1]


def depfile_paths(depfile: Path) -> list[Path]:
    """The prerequisites named in a make-style dependency file."""
    text = depfile.read_text().replace("\\\n", " ").replace("\\ ", "\0")
    prerequisites = text.split(":", 1)[1].split()
    return [Path(name.replace("\0", " ")) for name in prerequisites]


class Toolchain:
    """Runs the C++ compiler, skipping what is up to date."""

    def __init__(self, variant: Variant, cxx: str = "") -> None:
        self.variant = variant
        self.cxx = shlex.split(cxx or os.environ.get("CXX", "g++"))
        self.directory = variant.directory
        self.nghttp2_cflags, self.nghttp2_libs = pkg_config_nghttp2()

    def stale(self, product: Path, command: list[str], inputs: list[Path] | None) -> bool:
        """Whether `product` must be made again; `inputs` None reads them from its depfile."""
        record = product.with_name(product.name + ".cmd")
        if not product.exists() or not record.exists():
            return True
        if record.read_text() != shlex.join(command):
            return True
        try:
            sources = inputs if inputs is not None else depfile_paths(product.with_suffix(".d"))
            made_at = product.stat().st_mtime_ns
            return any((ROOT / path).stat().st_mtime_ns > made_at for path in sources)
        except (OSError, IndexError):
            return True

    def make(self, product: Path, command: list[str], inputs: list[Path] | None = None) -> bool:
        """Runs `command` if `product` is stale. Returns whether it ran; exits on its failure."""
        if not self.stale(product, command, inputs):
            return False
        product.parent.mkdir(parents=True, exist_ok=True)
        print(f"  {product.relative_to(ROOT) if product.is_relative_to(ROOT) else product}")
        sys.stdout.flush()
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode != 0:
            raise SystemExit(f"build failed: {shlex.join(command)}")
        product.with_name(product.name + ".cmd").write_text(shlex.join(command))
        return True

    def compile(self, source: Path, product: Path, flags: list[str]) -> bool:
        command = [*self.cxx, *self.variant.cxxflags, *flags, "-Icsrc", *self.nghttp2_cflags]
        depfile = product.with_suffix(".d")
        command += ["-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(product)]
        return self.make(product, command)

    def archive(self, room: str, objects: list[Path]) -> Path:
        """The static library of one room. An empty room gives an empty archive."""
        library = self.directory / f"lib{room}.a"
        command = ["ar", "rcsD", str(library), *map(str, objects)]
        if self.stale(library, command, objects):
            library.unlink(missing_ok=True)
        self.make(library, command, objects)
        return library

    def link(self, objects: list[Path], libraries: list[Path], libs: list[str], out: Path) -> None:
        staged = self.directory / "link" / out.name
        command = [*self.cxx, "-shared", "-pthread", *self.variant.ldflags, *map(str, objects)]
        command += [*map(str, libraries), *libs, "-Wl,--as-needed", "-o", str(staged)]
        ran = self.make(staged, command, [*objects, *libraries])
        if ran or not out.exists() or out.stat().st_mtime_ns < staged.stat().st_mtime_ns:
            out.parent.mkdir(parents=True, exist_ok=True)
            # A rename: a process that has the old module mapped keeps it intact.
            temporary = out.with_name(out.name + ".new")
            temporary.write_bytes(staged.read_bytes())
            temporary.chmod(0o755)
            temporary.replace(out)


@contextmanager
def build_lock(directory: Path) -> Iterator[None]:
    """Two builds into one directory take turns."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def generate_protos() -> None:
    """Writes scheduler/v1/*_pb2*.py from protos/scheduler/v1 where a source is newer."""
    package = ROOT / "scheduler" / "v1"
    sources = sorted((ROOT / "protos" / "scheduler" / "v1").glob("*.proto"))
    newest = max((path.stat().st_mtime_ns for path in sources), default=0)
    stamp = package / ".generated"
    expected = [package / f"{path.stem}_pb2.py" for path in sources]
    if stamp.exists() and stamp.stat().st_mtime_ns > newest and all(p.exists() for p in expected):
        return
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text('"""Generated from protos/scheduler/v1."""\n')
    if sources:
        out = ["--python_out=.", "--grpc_python_out=.", "--pyi_out=."]
        names = [str(path.relative_to(ROOT)) for path in sources]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", *out, *names]
        subprocess.run(command, cwd=ROOT, check=True)
    stamp.touch()


class BuildPy(build_py):
    def run(self) -> None:
        generate_protos()
        super().run()


class PlainCommand(Command):
    """A command without options."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass


class BuildProtos(PlainCommand):
    """`setup.py build_protos`: only the protobuf modules."""

    description = "generate scheduler/v1 from protos/"

    def run(self) -> None:
        generate_protos()


class BuildFuzz(PlainCommand):
    """`setup.py build_fuzz`: the libFuzzer programs of tests/fuzz; CLANGXX names the compiler."""

    description = "build the fuzzers with clang into build/fuzz"

    def run(self) -> None:
        variant = Variant.fuzz()
        jobs = int(os.environ.get("INFERSCHED_JOBS", 0)) or len(os.sched_getaffinity(0))
        with build_lock(variant.directory), ThreadPoolExecutor(max_workers=jobs) as pool:
            toolchain = Toolchain(variant, os.environ.get("CLANGXX", "clang++"))
            rooms = {room for needed in FUZZER_ROOMS.values() for room in needed}
            sources = {room: sorted((ROOT / "csrc" / room).rglob("*.cc")) for room in rooms}
            sources |= {name: [ROOT / f"tests/fuzz/{name}.cc"] for name in FUZZER_ROOMS}
            objects: dict[str, list[Path]] = {unit: [] for unit in sources}
            pending = []
            for unit, paths in sources.items():
                for path in paths:
                    source = path.relative_to(ROOT)
                    product = variant.directory / source.with_suffix(".o")
                    objects[unit].append(product)
                    pending.append(pool.submit(toolchain.compile, source, product, ["-Wall"]))
            for future in pending:
                future.result()
            for name, needed in FUZZER_ROOMS.items():
                parts = [*objects[name], *(o for room in needed for o in objects[room])]
                out = variant.directory / name
                libs = [*toolchain.nghttp2_libs, "-lz"] if "http2" in needed else []
                command = [*toolchain.cxx, "-pthread", *variant.ldflags, *map(str, parts)]
                toolchain.make(out, [*command, *libs, "-o", str(out)], parts)


class BuildExt(build_ext):
    """Builds the rooms of the core, then every module over them."""

    def run(self) -> None:
        variant = Variant.from_environment()
        modules = self.wanted_modules()
        with build_lock(ROOT / "build"):
            generate_protos()
        with build_lock(variant.directory):
            toolchain = Toolchain(variant)
            self.build_modules(toolchain, modules)

    @staticmethod
    def wanted_modules() -> list[str]:
        names = [n for n in os.environ.get("INFERSCHED_ONLY", "").split(",") if n]
        unknown = [name for name in names if name not in MODULE_ROOMS]
        if unknown:
            raise SystemExit(
                f"INFERSCHED_ONLY: unknown modules {unknown}; known: {[*MODULE_ROOMS]}"
            )
        return names or [*MODULE_ROOMS]

    def output_path(self, toolchain: Toolchain, module: str) -> Path:
        if toolchain.variant.name != "release":
            suffix = sysconfig.get_config_var("EXT_SUFFIX")
            return toolchain.directory / "lib" / f"{module}{suffix}"
        return (ROOT / self.get_ext_fullpath(f"{NATIVE}.{module}")).resolve()

    def build_modules(self, toolchain: Toolchain, modules: list[str]) -> None:
        jobs = int(os.environ.get("INFERSCHED_JOBS", 0)) or len(os.sched_getaffinity(0))
        rooms = {room for module in modules for room in MODULE_ROOMS[module]}
        generated = {module: self.translate(toolchain, module) for module in modules}

        core_flags = ["-Wall", "-Wextra", "-Wshadow"]
        if enabled("INFERSCHED_WERROR"):
            core_flags.append("-Werror")
        units: list[tuple[Path, Path, list[str]]] = []
        room_objects: dict[str, list[Path]] = {room: [] for room in rooms}
        for room in sorted(rooms):
            for source in sorted((ROOT / "csrc" / room).rglob("*.cc")):
                relative = source.relative_to(ROOT)
                product = toolchain.directory / relative.with_suffix(".o")
                units.append((relative, product, core_flags))
                room_objects[room].append(product)
        python_flags = [f"-I{sysconfig.get_paths()['include']}", "-fwrapv", "-w"]
        for module, source in generated.items():
            units.append((source, toolchain.directory / "modules" / f"{module}.o", python_flags))

        with ThreadPoolExecutor(max_workers=jobs) as pool:
            for future in [pool.submit(toolchain.compile, *unit) for unit in units]:
                future.result()
        libraries = {room: toolchain.archive(room, room_objects[room]) for room in rooms}
        for module in modules:
            uses_nghttp2 = bool(ROOMS_WITH_NGHTTP2.intersection(MODULE_ROOMS[module]))
            toolchain.link(
                [toolchain.directory / "modules" / f"{module}.o"],
                [libraries[room] for room in MODULE_ROOMS[module]],
                [*toolchain.nghttp2_libs, "-lz"] if uses_nghttp2 else [],
                self.output_path(toolchain, module),
            )

    @staticmethod
    def translate(toolchain: Toolchain, module: str) -> Path:
        """The C++ of one .pyx, relative to the root; made again when it or a .pxd changed."""
        source = Path(f"scheduler/_native/{module}.pyx")
        product = toolchain.directory / "modules" / f"{module}.cpp"
        directives = ",".join(f"{key}={value}" for key, value in CYTHON_DIRECTIVES.items())
        command = [sys.executable, "-m", "cython", "--cplus", "-X", directives]
        command += [str(source), "-o", str(product)]
        declarations = sorted((ROOT / "scheduler" / "_native").glob("*.px[di]"))
        toolchain.make(product, command, [ROOT / source, *declarations])
        return product


# Named as a package before there is anything to generate it with.
(ROOT / "scheduler" / "v1").mkdir(exist_ok=True)

setup(
    packages=sorted({*find_packages(include=["scheduler", "scheduler.*"]), "scheduler.v1"}),
    ext_modules=[Extension(f"{NATIVE}.{m}", [f"scheduler/_native/{m}.pyx"]) for m in MODULE_ROOMS],
    cmdclass={
        "build_ext": BuildExt,
        "build_fuzz": BuildFuzz,
        "build_py": BuildPy,
        "build_protos": BuildProtos,
    },
)
