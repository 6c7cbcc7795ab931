"""Puts a real tritonserver with its python backend into a tool directory.

The PyPI package `nvidia-pytriton` carries the tritonserver binary. It is taken as a carrier only:
installed without its dependencies (it pins numpy < 2) into a directory that no interpreter imports
from. The python backend runs models in a *stub* process, one binary for each Python minor version;
the stub of the running interpreter is put beside a copy of the backend, and it loads
`libpythonX.Y.so.1.0`, whose patch release has to be that of the standard library it will find.

The stub was compiled against numpy 1 and answers empty tensors under numpy 2, so models run in a
virtual environment of their own that has numpy 1 and, behind it on the path, what the environment
of this process has. The stub ignores PYTHONPATH: its prefix is that of the first `python3` on PATH.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "nvidia-pytriton"
PACKAGE_VERSION = "0.7.0"
TRITON_VERSION = "2.51.0"
STUB_NUMPY = "numpy>=1.26,<2"
PIP_ATTEMPTS = 3  # a connection that breaks in the middle of a download is not pip's to mend
STUB_PYTHONS = ("3.10", "3.11", "3.12")
GLIBC_MINIMUM = (2, 35)
TOOL_DIRECTORY_VARIABLE = "INFERSCHED_TRITON_DIR"

# A .pth line of the stub's environment: packages of the scheduler's environment come after its own.
_STUB_PATH_VARIABLE = "INFERSCHED_STUB_PATH"
_STUB_PTH = (
    f"import os, sys; sys.path.extend(os.environ.get({_STUB_PATH_VARIABLE!r}, '').split(':'))\n"
)


class TritonInstallError(RuntimeError):
    """tritonserver cannot be installed or run here; the message says what to do about it."""


@dataclass(frozen=True)
class TritonInstall:
    """Where the pieces of one installed tritonserver lie."""

    directory: Path
    server: Path
    libraries: Path
    backends: Path
    stub_environment: Path

    def environment(self) -> dict[str, str]:
        """The variables tritonserver and its stubs need, over those of this process."""
        loader_path = [str(self.libraries)]
        if sysconfig.get_config_var("Py_ENABLE_SHARED"):
            loader_path.insert(0, str(sysconfig.get_config_var("LIBDIR")))
        environment = dict(os.environ)
        environment["LD_LIBRARY_PATH"] = ":".join(loader_path)
        path = environment.get("PATH", os.defpath)
        environment["PATH"] = f"{self.stub_environment / 'bin'}:{path}"
        packages = dict.fromkeys(sysconfig.get_path(name) for name in ("platlib", "purelib"))
        environment[_STUB_PATH_VARIABLE] = ":".join(packages)
        environment.pop("LD_PRELOAD", None)  # of a sanitizer run, which is not about Triton
        environment.pop("TRITONSERVER_DELAY_SCHEDULER", None)  # batches are held in front of it
        return environment


def default_tool_directory() -> Path:
    """$INFERSCHED_TRITON_DIR, or the user's cache directory."""
    named = os.environ.get(TOOL_DIRECTORY_VARIABLE)
    if named:
        return Path(named).resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "infersched" / "triton"


def python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def check_machine() -> None:
    """Raises TritonInstallError where the carried binaries cannot run."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise TritonInstallError(
            f"{PACKAGE} carries tritonserver for Linux on x86_64 only; this is "
            f"{sys.platform} on {platform.machine()}. Run Triton elsewhere and pass "
            "--backend HOST:PORT."
        )
    text = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    found = re.match(r"glibc (\d+)\.(\d+)", text or "")
    if found is None:
        raise TritonInstallError("tritonserver needs glibc; this system has another C library.")
    if (int(found[1]), int(found[2])) < GLIBC_MINIMUM:
        raise TritonInstallError(
            f"tritonserver needs glibc >= {GLIBC_MINIMUM[0]}.{GLIBC_MINIMUM[1]} (Debian 12, "
            f"Ubuntu 22.04); this system has {found[1]}.{found[2]}."
        )


def shared_libpython_version() -> str | None:
    """The release ("3.11.7") of the libpython the stub would load, or None if there is none."""
    library = f"libpython{python_version()}.so.1.0"
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        library = str(Path(str(sysconfig.get_config_var("LIBDIR"))) / library)
    # In a process of its own: loading a second libpython here would share symbols with ours.
    program = (
        "import ctypes, sys\n"
        "lib = ctypes.CDLL(sys.argv[1])\n"
        "lib.Py_GetVersion.restype = ctypes.c_char_p\n"
        "print(lib.Py_GetVersion().decode().split()[0])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-c", program, library], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() if answer.returncode == 0 else None


def check_python() -> None:
    """Raises TritonInstallError if the python backend could not run this Python."""
    if python_version() not in STUB_PYTHONS:
        raise TritonInstallError(
            f"the python backend of tritonserver {TRITON_VERSION} runs Python "
            f"{STUB_PYTHONS[0]} to {STUB_PYTHONS[-1]} (it needs numpy 1), not {python_version()}. "
            "Create the virtual environment with one of these."
        )
    wanted = platform.python_version()
    found = shared_libpython_version()
    if found is None:
        raise TritonInstallError(
            f"the python backend needs libpython{python_version()}.so.1.0, which the loader does "
            f"not find. Install it (Debian, Ubuntu: apt-get install libpython{python_version()}), "
            "or use a Python that was built with --enable-shared."
        )
    if found != wanted:
        raise TritonInstallError(
            f"the system's libpython is {found} but this interpreter is {wanted}: library and "
            "standard library must be of one release. Create the virtual environment from the "
            f"system's python{python_version()}, or from a Python built with --enable-shared."
        )


def _layout(directory: Path) -> TritonInstall:
    """Where things are to lie; what depends on the interpreter is kept apart for each of them."""
    interpreter = hashlib.sha256(sys.base_prefix.encode()).hexdigest()[:8]
    carrier = directory / f"{PACKAGE}-{PACKAGE_VERSION}"
    for_python = directory / f"python-{platform.python_version()}-{interpreter}"
    return TritonInstall(
        directory=directory,
        server=carrier / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        libraries=carrier / "nvidia_pytriton.libs",
        backends=for_python / f"backends-{PACKAGE_VERSION}",
        stub_environment=for_python / "environment",
    )


def locate(tool_directory: Path | None = None) -> TritonInstall | None:
    """The installed tritonserver for the running Python, or None."""
    layout = _layout(tool_directory or default_tool_directory())
    parts = (layout.server, layout.backends, layout.stub_environment)
    return layout if all(part.exists() for part in parts) else None


def install(
    tool_directory: Path | None = None, report: Callable[[str], None] = lambda line: None
) -> TritonInstall:
    """Installs tritonserver unless it is there; safe to repeat and to interrupt.

    `report` gets a line for each step that takes time. Raises TritonInstallError.
    """
    found = locate(tool_directory)
    if found is not None:
        return found
    check_machine()
    check_python()
    layout = _layout((tool_directory or default_tool_directory()).resolve())
    carrier = layout.libraries.parent
    if not carrier.exists():
        report(f"installing tritonserver {TRITON_VERSION} into {carrier} (55 MB to download)")
        with staged_directory(carrier) as staged:
            pip_install(f"{PACKAGE}=={PACKAGE_VERSION}", staged)
    if not layout.stub_environment.exists():
        report(f"installing {STUB_NUMPY} for Triton's python backend")
        with staged_directory(layout.stub_environment) as staged:
            _make_stub_environment(staged)
    if not layout.backends.exists():
        with staged_directory(layout.backends) as staged:
            tritonserver = layout.server.parent.parent
            stub = tritonserver / "python_backend_stubs" / python_version()
            shutil.copytree(tritonserver / "backends" / "python", staged / "python")
            shutil.copy2(stub / "triton_python_backend_stub", staged / "python")
    return layout


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """A directory that becomes `target` whole, or not at all."""
    staged = target.with_name(f"{target.name}.{os.getpid()}.partial")
    shutil.rmtree(staged, ignore_errors=True)  # of one that was killed and had our number
    staged.mkdir(parents=True)
    try:
        yield staged
        try:
            staged.rename(target)
        except OSError:
            if not target.exists():  # else another install was faster, which is as good
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def pip_install(requirement: str, target: Path) -> None:
    """Puts one package, without its dependencies, into a directory. Raises TritonInstallError."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--target", str(target)]
    for _ in range(PIP_ATTEMPTS):
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    raise TritonInstallError(f"pip could not install {requirement}:\n{done.stderr.strip()}")


def _make_stub_environment(staged: Path) -> None:
    venv.EnvBuilder(symlinks=True, with_pip=False).create(staged)
    packages = staged / "lib" / f"python{python_version()}" / "site-packages"
    pip_install(STUB_NUMPY, packages)
    (packages / "infersched_stub.pth").write_text(_STUB_PTH)


if __name__ == "__main__":
    try:
        install(report=lambda line: print(line, file=sys.stderr))
    except TritonInstallError as error:
        sys.exit(f"no embedded Triton: {error}")
