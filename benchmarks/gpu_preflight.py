"""What a benchmark on a real GPU needs on its machine, and what of it has to be carried there.

A machine with a GPU may come bare: Python, PyTorch and CUDA, but no package index. This module
needs the standard library only.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results import ROOT

NVML = "libnvidia-ml.so.1"
WHEELS = "wheels"
# Modules by the requirements that bring them, with those that the servers in tests/ need.
MODULES = {
    "click>=8.1": "click",
    "grpcio>=1.81.1": "grpc",
    "grpcio-health-checking>=1.81.1": "grpc_health",
    "grpcio-reflection>=1.81.1": "grpc_reflection",
    "grpcio-status>=1.81.1": "grpc_status",
    "numpy>=1.26": "numpy",
    "nvidia-ml-py>=12.560.30": "pynvml",
    "prometheus-client>=0.20": "prometheus_client",
    "protobuf>=6.33.5,<7": "google.protobuf",
    "pydantic>=2.7": "pydantic",
    "pyyaml>=6.0.1": "yaml",
    "rich>=13.7": "rich",
    "tritonclient[grpc]>=2.73": "tritonclient",
    "uvloop>=0.21": "uvloop",
    "psutil>=5.9.5": "psutil",
}
GENERATED = ("control_pb2.py", "control_pb2_grpc.py", "dataplane_pb2.py", "dataplane_pb2_grpc.py")


@dataclass(frozen=True)
class Preflight:
    """`skipped`: why there is nothing to measure here. `missing`: each with what brings it."""

    skipped: str = ""
    missing: list[str] = field(default_factory=list)


def preflight(
    devices: Callable[[], int | str], parts: Mapping[str, Callable[[], str]]
) -> Preflight:
    """Asks for the devices first: without one, nothing else matters."""
    found = devices()
    if isinstance(found, str):
        return Preflight(skipped=found)
    if found == 0:
        return Preflight(skipped="NVML tells of no device")
    told = ((name, part()) for name, part in parts.items())
    return Preflight(missing=[f"{name}: {problem}" for name, problem in told if problem])


def nvml_devices(library: str = NVML) -> int | str:
    """How many GPUs the driver has, or why it cannot be asked."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return f"{library} is not on this host: no NVIDIA driver"
    count = ctypes.c_uint(0)
    code = nvml.nvmlInit_v2()
    if code != 0:
        return f"NVML does not begin (error {code})"
    try:
        code = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    finally:
        nvml.nvmlShutdown()
    return count.value if code == 0 else f"NVML does not tell of its devices (error {code})"


def missing_packages(importable: Callable[[str], bool] | None = None) -> str:
    """The requirements that are not there, and how to bring their wheels."""
    there = importable or is_importable
    absent = [name for name, module in MODULES.items() if not there(module)]
    if not absent:
        return ""
    quoted = " ".join(f"'{name}'" for name in absent)
    return (
        f"{', '.join(absent)}. Where there is an index: pip download --only-binary=:all: "
        f"--python-version {python_version()} -d {WHEELS} {quoted}; carry {WHEELS}/ and: "
        f"pip install --no-index --find-links {WHEELS} {quoted}"
    )


def is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def missing_modules(root: Path = ROOT, suffix: str = "") -> str:
    """The compiled modules of this Python, and what is written of the protocol files."""
    suffix = suffix or f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    native = root / "scheduler" / "_native"
    absent = [
        f"scheduler/_native/{source.stem}.{suffix}-*.so"
        for source in sorted(native.glob("*.pyx"))
        if not list(native.glob(f"{source.stem}.{suffix}-*.so"))
    ]
    written = root / "scheduler" / "v1"
    absent += [f"scheduler/v1/{name}" for name in GENERATED if not (written / name).exists()]
    if not absent:
        return ""
    return (
        f"{', '.join(absent)}. Build them with Python {python_version()} on {platform.machine()} "
        "(`python setup.py build_protos`, `python setup.py build_ext --inplace`) and carry them"
    )


def missing_triton() -> str:
    """tritonserver with the stub of its python backend for this Python."""
    from scheduler.backends import triton_install as triton

    try:
        triton.check_machine()
        triton.check_python()
    except triton.TritonInstallError as error:
        return str(error)
    if triton.locate() is not None:
        return ""
    wheels = f"'{triton.PACKAGE}=={triton.PACKAGE_VERSION}' '{triton.STUB_NUMPY}'"
    return (
        f"tritonserver {triton.TRITON_VERSION} and its python backend's stub for Python "
        f"{python_version()} are not in {triton.default_tool_directory()} "
        f"(${triton.TOOL_DIRECTORY_VARIABLE}). Where there is an index: pip download --no-deps "
        f"--only-binary=:all: --python-version {python_version()} -d {WHEELS} {wheels}, a line "
        f"each; carry {WHEELS}/ and: PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS} python -m "
        "scheduler.backends.triton_install"
    )


def missing_torch() -> str:
    """PyTorch of this Python that sees a GPU; asked in a process of its own."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return f"no PyTorch for Python {python_version()} in {sys.executable}: carry its wheel"
    folders = {sysconfig.get_path(name) for name in ("platlib", "purelib")}
    if str(Path(found.origin).parents[1]) not in folders:
        return (
            f"PyTorch is in {Path(found.origin).parents[1]}, where Triton's python backend does "
            f"not look: run this with the Python that has it there, or install it for {sys.prefix}"
        )
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return f"PyTorch cannot be loaded: {answer.stderr.strip().splitlines()[-1]}"
    return "" if int(answer.stdout) > 0 else "PyTorch sees no GPU: carry a build with CUDA"


def python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
