"""`python -m tests.fuzz --seconds 600`: coverage-guided fuzzing of codec and HTTP/2 sessions, and
random worlds for the engine (tests.property.engine_swarm).

Without `--seconds` it never ends. The targets take turns on one core. Corpora grow in
build/fuzz/corpus; an input that breaks something is kept in build/fuzz/findings and belongs into
tests/fuzz/regressions once it is understood. Prints how coverage went and one JSON line with the
figure; `--output FILE` keeps inputs and edges by target, and adds up runs of the same build. Exit
status 0: no finding, 3: some.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.results import Figure
from tests.fuzz.corpus import SEEDS, write_corpus, write_dictionary
from tests.fuzz.figure import STATUS, Kept, Target, build_of
from tests.property.engine_swarm import replay

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
FINDINGS = BUILD / "findings"
TURN_S = 300
# More than any world takes, on a busy machine too.
WORLD_S = 120
SEED_INPUTS = 400
INPUT_BYTES_MAX = 4_096
WORLDS = "engine_worlds"
TARGETS = (*SEEDS, WORLDS)


def run_turn(target: Target, seconds: int, seed: int) -> bool:
    """One turn of a fuzzer. Returns whether it ended without a finding."""
    corpus = BUILD / "corpus" / target.name
    if not corpus.exists() or not any(corpus.iterdir()):
        write_corpus(corpus, target.name, random.Random(f"{seed}/{target.name}"), SEED_INPUTS)
    dictionary = BUILD / f"{target.name}.dict"
    write_dictionary(dictionary, target.name)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    regressions = ROOT / "tests" / "fuzz" / "regressions"
    command = [
        str(BUILD / target.name),
        str(corpus),
        str(regressions / target.name),
        f"-dict={dictionary}",
        f"-artifact_prefix={FINDINGS}/{target.name}-",
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-seed={seed % 2**31 or 1}",
        # By the clock, which on a busy machine goes on without us; an input takes a millisecond.
        "-timeout=600",
        "-report_slow_units=600",
        # A third quicker; leaks are looked for when the turn ends.
        "-entropic=0",
        "-detect_leaks=0",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
        "-reload=0",
    ]
    (regressions / target.name).mkdir(parents=True, exist_ok=True)
    log_path = BUILD / f"{target.name}.log"
    begun = time.monotonic()
    options = "detect_leaks=1:quarantine_size_mb=8:max_malloc_fill_size=0:malloc_context_size=1"
    environment = {**os.environ, "ASAN_OPTIONS": options}
    with open(log_path, "w") as log:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, check=False
        )
    target.seconds += time.monotonic() - begun
    text = log_path.read_text(errors="replace")
    target.read(text)
    if done.returncode != 0:
        shown = [line for line in text.splitlines() if not STATUS.match(line)]
        print("\n".join(shown[-80:]), file=sys.stderr)
        print(f"{target.name} found something: see {FINDINGS}", file=sys.stderr, flush=True)
    return done.returncode == 0


def run_worlds(target: Target, seconds: int, seed: int) -> bool:
    """Random worlds for the engine. Returns whether every truth held."""
    first = seed * 1_000_000
    command = [sys.executable, "-m", "tests.property.engine_swarm", str(first)]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--seconds", str(seconds)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            check=False,
            timeout=seconds + WORLD_S,
        )
        told, held = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired as endless:
        told, held = endless.stdout or b"", False
        print(f"a world took more than {WORLD_S} s", file=sys.stderr)
    target.seconds += time.monotonic() - begun
    seeds = told.split()
    target.inputs += len(seeds)
    if not held and seeds:
        print(f"again by: {replay(int(seeds[-1]))}", file=sys.stderr, flush=True)
    return held


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=0, help="of all targets; 0: without end")
    parser.add_argument("--seed", type=int, default=None, help="default: another one every time")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="default: all")
    parser.add_argument("--output", type=Path, help="a file of results to add this run to")
    given = parser.parse_args()
    build = [sys.executable, "setup.py", "--quiet", "build_fuzz"]
    if given.target != [WORLDS]:
        subprocess.run(build, cwd=ROOT, check=True, stdout=sys.stderr)
    seed = random.randrange(1, 2**31) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr)
    targets = [Target(name, build_of(name)) for name in given.target or TARGETS]
    kept = Kept(given.output, seed) if given.output is not None else None
    turns = -(-given.seconds // (TURN_S * len(targets))) if given.seconds else 0
    turn_s = max(given.seconds // (turns * len(targets)), 1) if turns else TURN_S
    turn = 0
    try:
        while not any(t.findings for t in targets) and (turns == 0 or turn < turns):
            for target in targets:
                run = run_worlds if target.name == WORLDS else run_turn
                target.findings += not run(target, turn_s, seed + turn)
                print(target.report(), file=sys.stderr, flush=True)
                if kept is not None:
                    kept.write(targets)
            turn += 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    findings = sum(target.findings for target in targets)
    print(Figure.of("fuzz_findings", findings).to_json(), flush=True)
    return 3 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
