"""nghttp2's load generator: one constant gRPC request, many streams.

It sees HTTP statuses only, which are 200 for failed calls as well: what was executed has to be
counted at the server.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass

from benchmarks.stub_process import started_on
from benchmarks.workloads import INFER_PATH

CONNECTIONS = 4
STREAMS_A_CONNECTION = 64
TIMEOUT_S = 120.0

_RATE = re.compile(r"^finished in .*, ([\d.]+) req/s", re.MULTILINE)
_REQUESTS = re.compile(r"^requests: (\d+) total, .* (\d+) succeeded, ", re.MULTILINE)
_STATUSES = re.compile(r"^status codes: (\d+) 2xx, ", re.MULTILINE)


class H2loadFailed(RuntimeError):
    """It ended with an error or printed something else than expected."""


@dataclass(frozen=True)
class H2loadResult:
    """`elapsed_s` is the process's life, a little more than its load."""

    requests: int
    requests_per_s: float
    elapsed_s: float
    cpu_s: float
    problem: str


def available() -> bool:
    return shutil.which("h2load") is not None


def run_h2load(address: str, message: bytes, requests: int, core: int) -> H2loadResult:
    """Sends `message` that often, from one core. Raises H2loadFailed."""
    with tempfile.NamedTemporaryFile(prefix="infersched-h2load-") as body, started_on(core):
        body.write(b"\0" + len(message).to_bytes(4, "big") + message)
        body.flush()
        command = ["h2load", "-t", "1", "-c", str(CONNECTIONS), "-m", str(STREAMS_A_CONNECTION)]
        command += ["-n", str(requests), "-H", "content-type: application/grpc"]
        command += ["-H", "te: trailers", "-d", body.name, f"http://{address}{INFER_PATH}"]
        began_s, cpu_began_s = time.monotonic(), _children_cpu_s()
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )
        elapsed_s = time.monotonic() - began_s
    if done.returncode != 0:
        raise H2loadFailed(done.stderr.strip()[-1000:] or f"status {done.returncode}")
    return parse(done.stdout, requests, elapsed_s, _children_cpu_s() - cpu_began_s)


def parse(output: str, requests: int, elapsed_s: float, cpu_s: float) -> H2loadResult:
    """Reads h2load's report. Raises H2loadFailed."""
    found = [pattern.search(output) for pattern in (_RATE, _REQUESTS, _STATUSES)]
    if None in found:
        raise H2loadFailed(f"not a report: {output[-1000:]}")
    rate, counts, statuses = (match.groups() for match in found if match is not None)
    good = min(*map(int, counts), int(statuses[0]))
    problem = "" if good == requests else f"{good} answers of {requests} had an HTTP status 2xx"
    return H2loadResult(requests, float(rate[0]), elapsed_s, cpu_s, problem)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
