"""What the scheduler adds to one request at a time, and what a metrics scrape does to its tail.

One request in flight, straight and scheduled in turn. The figure is measured with an unmodified
`tritonclient`, because that is what services call with. The same with the load generator, which
adds much less of its own, is printed beside it. The tail is measured with the generator: a p99.9
needs tens of thousands of requests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from statistics import median
from types import TracebackType

from benchmarks.loading import LoadResult, Triton, first_problem
from benchmarks.openloop.load import LoadSpec
from benchmarks.options import Options, say
from benchmarks.results import ROOT, Figure
from benchmarks.serving import Variant, model_name, running_scheduler, running_triton
from tests.serving import ServedScheduler

SCRAPE_PERIOD_S = 1.0
CLIENT_REQUESTS = 3000
# Where the kernel puts a handful of threads on few cores moves one round by a third either way.
CLIENT_ROUNDS_MIN = 11
_MODEL = Variant("plain")


def run(options: Options) -> list[Figure]:
    with (
        running_triton({"simple": (_MODEL,)}) as (server, triton),
        running_scheduler(server.grpc_address) as scheduler,
    ):
        addresses = (server.grpc_address, scheduler.address)
        added, added_p99, problem = added_latency(triton, addresses, options)
        tail, tail_problem = scraped_tail(triton, scheduler, options)
    return [
        Figure.of("added_median_latency_part", added, problem),
        Figure.of("added_p99_latency_part", added_p99, problem),
        Figure.of("p99.9_with_scrape_ratio", tail, tail_problem),
    ]


def added_latency(
    triton: Triton, addresses: tuple[str, str], options: Options
) -> tuple[float, float, str]:
    """Medians over rounds of (scheduled - straight) / straight, of p50 and p99; what was wrong."""
    by_client: list[tuple[float, float]] = []
    by_generator: list[float] = []
    problem = ""
    for _ in range(max(options.rounds, CLIENT_ROUNDS_MIN)):
        straight, through = (client_latency(triton, address) for address in addresses)
        problem = problem or straight[2] or through[2]
        by_client.append((through[0] / straight[0] - 1, through[1] / straight[1] - 1))
        say(
            f"  tritonclient: straight p50 {straight[0]:.0f} p99 {straight[1]:.0f} us, "
            f"scheduled p50 {through[0]:.0f} p99 {through[1]:.0f} us {problem}"
        )
    for _ in range(options.rounds):
        lean = [triton.verified_load(spec_for(address, options)) for address in addresses]
        problem = problem or first_problem(lean)
        p50s = [result.latency_ns["p50"] / 1e3 for result in lean]
        by_generator.append(p50s[1] / p50s[0] - 1)
        say(f"  generator: straight p50 {p50s[0]:.0f} us, scheduled p50 {p50s[1]:.0f} us {problem}")
    say(
        f"added median: {median(p50 for p50, _ in by_client):.2f} of straight with tritonclient, "
        f"{median(by_generator):.2f} with the generator"
    )
    return median(p50 for p50, _ in by_client), median(p99 for _, p99 in by_client), problem


def spec_for(address: str, options: Options) -> LoadSpec:
    return LoadSpec(
        target=address,
        model=model_name("simple", _MODEL),
        pool=options.pool,
        seed=options.seed,
        connections=1,
        in_flight=1,
        seconds=options.seconds,
    )


def client_latency(triton: Triton, address: str) -> tuple[float, float, str]:
    """p50 and p99 in us of a tritonclient in a process of its own; what was wrong with answers."""
    model = model_name("simple", _MODEL)
    before, _ = triton.executed(model)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.one_client", address, model, str(CLIENT_REQUESTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    result = json.loads(done.stdout)
    executed = triton.executed(model)[0] - before
    problem = str(result["problem"])
    if not problem and executed != result["sent"]:
        problem = f"Triton executed {executed} rows of {result['sent']} sent"
    return float(result["p50"]), float(result["p99"]), problem


def scraped_tail(triton: Triton, scheduler: ServedScheduler, options: Options) -> tuple[float, str]:
    """Median over rounds of p99.9 with a scrape every second against without; what was wrong."""
    ratios: list[float] = []
    results: list[LoadResult] = []
    spec = replace(spec_for(scheduler.address, options), seconds=max(options.seconds, 4.0))
    for _ in range(options.rounds):
        quiet = triton.verified_load(spec)
        with Scraper(scheduler.metrics_url) as scraper:
            scraped = triton.verified_load(spec)
        results += [quiet, scraped]
        tails = [result.latency_ns["p99.9"] / 1e3 for result in (quiet, scraped)]
        ratios.append(tails[1] / tails[0])
        say(f"  p99.9 quiet {tails[0]:.0f} us, with {scraper.scrapes} scrapes {tails[1]:.0f} us")
        if scraper.scrapes == 0:
            return 0.0, "nothing was scraped"
    return median(ratios), first_problem(results)


class Scraper:
    """Reads the metrics page once a second in a thread of this process."""

    def __init__(self, url: str) -> None:
        self.scrapes = 0
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._scrape)

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _scrape(self) -> None:
        while not self._stop.wait(SCRAPE_PERIOD_S):
            with urllib.request.urlopen(self._url, timeout=10) as page:
                page.read()
            self.scrapes += 1
