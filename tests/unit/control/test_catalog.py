"""The catalog: what is known of each Triton, and how several are joined."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scheduler.backends.pool import BackendPool, join_catalogs
from scheduler.backends.probe import Answer, ProbeResult
from scheduler.backends.remembered import RememberedModels
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.config.schema import Discovery, Settings
from scheduler.control.indices import IndexBook
from scheduler.control.readiness import Readiness
from tests.unit.control.triton_answers import IDENTITY, ScriptedCalls

MODEL = ("identity", "1")


def make_watch(calls: ScriptedCalls, address: str = "a:1", **keys: Any) -> BackendWatch:
    return BackendWatch(address, Discovery(), lambda: None, calls=calls, **keys)  # type: ignore[arg-type]


def served(address: str = "a:1", **configs: str) -> tuple[BackendWatch, ScriptedCalls]:
    """A backend that has been probed and read."""
    calls = ScriptedCalls(**(configs or {"identity": IDENTITY}))
    watch = make_watch(calls, address)
    watch.take_probe(calls.answer)
    asyncio.run(watch.refresh())
    return watch, calls


# -- one backend


def test_two_timeouts_in_a_row_are_needed_for_down() -> None:
    watch, _ = served()
    timeout = ProbeResult(Answer.TIMEOUT)
    watch.take_probe(timeout)
    watch.take_probe(ProbeResult(Answer.READY))
    watch.take_probe(timeout)
    assert watch.status is BackendStatus.SERVING
    watch.take_probe(timeout)
    assert watch.status is BackendStatus.DOWN


def test_a_backend_whose_models_are_not_read_yet_makes_nobody_ready() -> None:
    """It answers ServerReady and ServerMetadata before its index has been read."""
    seen: list[bool] = []

    async def read(watch: BackendWatch, calls: ScriptedCalls) -> bool:
        pool = BackendPool(lambda: None)
        pool.watches["a:1"] = watch
        readiness = Readiness(pool, lambda: "strict", lambda: True)
        index = calls.index

        async def slow_index() -> object:
            seen.append(readiness.ready)
            return await index()

        calls.index = slow_index  # type: ignore[method-assign,assignment]
        await watch.refresh()
        return readiness.ready

    calls = ScriptedCalls()
    watch = make_watch(calls)
    watch.take_probe(calls.answer)
    # Once it has been read, an empty repository is ready as Triton has it.
    assert asyncio.run(read(watch, calls))
    assert seen == [False]


def test_the_wait_for_a_processor_is_seen() -> None:
    """Two threads of one processor: the second waits while the first runs."""
    program = (
        "import os, time\n"
        "from scheduler.backends.cpu_wait import CpuWait\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "rival = os.fork()\n"
        "if rival == 0:\n"
        "    while True: pass\n"
        "waiting, until = CpuWait(), time.monotonic() + 30\n"
        "while waiting.longest_s() < 0.1 and time.monotonic() < until: pass\n"
        "os.kill(rival, 9)\n"
        "assert waiting.longest_s() >= 0.1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_timeout_does_not_count_while_replies_come_or_when_the_loop_was_late() -> None:
    watch, _ = served()
    for _ in range(5):
        watch.take_probe(ProbeResult(Answer.TIMEOUT), progressed=True)
        watch.take_probe(ProbeResult(Answer.LATE))
    assert watch.status is BackendStatus.SERVING


def test_a_refused_connection_is_down_at_once_and_its_models_are_remembered() -> None:
    watch, _ = served()
    watch.take_probe(ProbeResult(Answer.UNREACHABLE, "refused"))
    assert watch.status is BackendStatus.DOWN
    assert MODEL in watch.models
    assert not watch.model_ready(MODEL)


def test_a_leaving_backend_drains_and_keeps_its_models() -> None:
    watch, calls = served()
    calls.answer = ProbeResult(Answer.LEAVING)
    watch.take_probe(calls.answer)
    assert watch.status is BackendStatus.DRAINING
    assert MODEL in watch.models


def test_a_backend_that_left_while_its_index_was_read_keeps_its_models() -> None:
    watch, calls = served()
    calls.states = {}

    async def leaving(timeout_s: float) -> ProbeResult:
        return ProbeResult(Answer.LEAVING)

    calls.ready = leaving  # type: ignore[method-assign]
    asyncio.run(watch.refresh())
    assert MODEL in watch.models
    assert watch.status is BackendStatus.DRAINING


def test_a_refresh_that_is_not_believed_says_so_and_is_done_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scheduler.backends.watch.RETRY_PERIOD_S", 0.001)
    watch, calls = served()
    assert asyncio.run(watch.refresh())
    calls.states[MODEL] = "UNAVAILABLE"
    calls.answer = ProbeResult(Answer.LATE)
    calls._check = lambda: None  # type: ignore[method-assign]
    assert not asyncio.run(watch.refresh())
    assert watch.model_ready(MODEL)
    assert not asyncio.run(watch.refresh_within(0.0))

    async def until_it_answers() -> bool:
        waiting = asyncio.create_task(watch.refresh_within(60.0))
        before = calls.probes
        while calls.probes < before + 3:
            await asyncio.sleep(0)
        calls.answer = ProbeResult(Answer.READY)
        return await waiting

    assert asyncio.run(until_it_answers())
    assert not watch.model_ready(MODEL)


def test_an_unexpected_error_does_not_end_the_watch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scheduler.backends.watch.FAILURE_PAUSE_S", 0.001)
    calls = ScriptedCalls(identity=IDENTITY)
    watch = make_watch(calls)
    answer = calls.ready

    async def fails_once(timeout_s: float) -> ProbeResult:
        calls.ready = answer  # type: ignore[method-assign]
        raise RuntimeError("no such thing")

    async def until_it_serves() -> None:
        watching = asyncio.create_task(watch.run())
        while not watch.model_ready(MODEL):
            await asyncio.sleep(0.001)
        watching.cancel()

    calls.ready = fails_once  # type: ignore[method-assign]
    asyncio.run(asyncio.wait_for(until_it_serves(), 30))
    (told,) = [vars(record) for record in caplog.records if record.levelname == "CRITICAL"]
    assert "no such thing" in str(told)


def test_a_backend_that_is_down_is_not_asked_again_for_its_models() -> None:
    watch, calls = served()
    calls.answer = ProbeResult(Answer.UNREACHABLE)
    watch.take_probe(calls.answer)
    assert not asyncio.run(watch.refresh_within(3600.0))


def test_a_suspected_backend_serves_again_only_after_a_good_refresh() -> None:
    watch, _ = served()
    watch.suspect()
    assert watch.status is BackendStatus.DRAINING
    watch.take_probe(ProbeResult(Answer.READY))
    assert watch.status is BackendStatus.DRAINING
    asyncio.run(watch.refresh())
    assert watch.status is BackendStatus.SERVING


def test_a_suspected_backend_that_died_comes_back() -> None:
    watch, _ = served()
    watch.suspect()
    watch.take_probe(ProbeResult(Answer.UNREACHABLE))
    watch.take_probe(ProbeResult(Answer.READY))
    assert watch.status is BackendStatus.SERVING


def test_an_unloaded_model_leaves_the_catalog_and_a_loading_one_stays() -> None:
    watch, calls = served()
    calls.states[MODEL] = "LOADING"
    asyncio.run(watch.refresh())
    assert MODEL in watch.models
    assert not watch.model_ready(MODEL)
    calls.states[MODEL] = "UNAVAILABLE"
    asyncio.run(watch.refresh())
    assert MODEL not in watch.models


def test_a_version_that_another_one_replaces_is_dropped_while_it_is_unloaded() -> None:
    watch, calls = served()
    calls.states[MODEL] = "UNLOADING"
    calls.states["identity", "3"] = "LOADING"
    asyncio.run(watch.refresh())
    assert watch.models.keys() == {MODEL}, "nothing has taken its place yet"
    calls.states["identity", "3"] = "READY"
    asyncio.run(watch.refresh())
    assert watch.models.keys() == {("identity", "3")}
    assert watch.unavailable == {MODEL}


def test_only_new_and_reloaded_models_and_one_in_turn_are_read() -> None:
    watch, calls = served(**{name: f'name: "{name}"' for name in "abc"})
    calls.model_reads.clear()
    for _ in range(3):
        asyncio.run(watch.refresh())
    assert sorted(calls.model_reads) == [("a", "1"), ("b", "1"), ("c", "1")]


def test_a_reload_that_the_index_does_not_show_is_found() -> None:
    watch, calls = served()
    calls.configs["identity"] = IDENTITY.replace("64", "32")
    asyncio.run(watch.refresh())
    assert watch.models[MODEL].max_batch_size == 32


# -- several backends


def test_a_model_that_differs_is_kept_out_of_rotation_there() -> None:
    first, _ = served("a:1")
    odd, _ = served("b:1", identity=IDENTITY.replace("dims: 16", "dims: 8"))
    entry = join_catalogs({"a:1": first, "b:1": odd}, {})[MODEL]
    assert [p.ready for p in entry.placements] == [True, False]
    assert "INPUT0 FP32[8]" in entry.placements[1].conflict


def test_the_served_specification_survives_the_first_reloaded_backend() -> None:
    first, calls_a = served("a:1")
    second, calls_b = served("b:1")
    watches = {"a:1": first, "b:1": second}
    before = join_catalogs(watches, {})
    calls_a.configs["identity"] = IDENTITY.replace("64", "32")
    asyncio.run(first.refresh())
    during = join_catalogs(watches, before)
    assert during[MODEL].spec.max_batch_size == 64
    assert [p.ready for p in during[MODEL].placements] == [False, True]
    calls_b.configs["identity"] = IDENTITY.replace("64", "32")
    asyncio.run(second.refresh())
    after = join_catalogs(watches, during)
    assert after[MODEL].spec.max_batch_size == 32
    assert after[MODEL].ready
    assert all(p.ready for p in after[MODEL].placements)


def test_when_the_only_agreeing_backend_is_down_the_other_serves() -> None:
    first, _ = served("a:1")
    other, _ = served("b:1", identity=IDENTITY.replace("64", "32"))
    watches = {"a:1": first, "b:1": other}
    before = join_catalogs(watches, {})
    first.take_probe(ProbeResult(Answer.UNREACHABLE))
    entry = join_catalogs(watches, before)[MODEL]
    assert entry.ready
    assert entry.spec.max_batch_size == 32


def test_a_model_without_a_ready_backend_stays_in_the_catalog() -> None:
    watch, _ = served()
    watch.take_probe(ProbeResult(Answer.UNREACHABLE))
    entry = join_catalogs({"a:1": watch}, {})[MODEL]
    assert not entry.ready
    assert entry.is_default_version


def test_the_default_version_is_the_highest_number_that_is_ready() -> None:
    watch, calls = served()
    for version in ("2", "10"):
        calls.states["identity", version] = "READY"
    asyncio.run(watch.refresh())
    catalog = join_catalogs({"a:1": watch}, {})
    assert [v for (_, v), entry in catalog.items() if entry.is_default_version] == ["10"]
    calls.states["identity", "10"] = "LOADING"
    asyncio.run(watch.refresh())
    catalog = join_catalogs({"a:1": watch}, catalog)
    assert [v for (_, v), entry in catalog.items() if entry.is_default_version] == ["2"]


# -- restarts


def test_models_of_a_backend_that_is_away_survive_a_restart(tmp_path: Path) -> None:
    def watch_of(calls: ScriptedCalls) -> BackendWatch:
        remembered = RememberedModels(tmp_path, "a:1")
        return BackendWatch("a:1", Discovery(), lambda: None, calls=calls, remembered=remembered)  # type: ignore[arg-type]

    calls = ScriptedCalls(identity=IDENTITY)
    before = watch_of(calls)
    asyncio.run(before.refresh())
    after = watch_of(calls)
    assert not after.settled
    after.take_probe(ProbeResult(Answer.UNREACHABLE))
    assert after.settled
    assert after.models == before.models
    assert not after.model_ready(MODEL)


def test_a_torn_memory_is_no_memory(tmp_path: Path) -> None:
    memory = RememberedModels(tmp_path, "a:1")
    memory.store({MODEL: ScriptedCalls.describe("identity", "1", IDENTITY)})
    assert list(memory.load()) == [MODEL]
    (file,) = tmp_path.glob("backend-*.json")
    file.write_text(file.read_text()[:-20])
    assert memory.load() == {}


def test_a_first_look_that_finds_nothing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    watch = make_watch(ScriptedCalls())
    for _ in range(3):
        watch.take_probe(ProbeResult(Answer.UNREACHABLE, "refused"))
    assert [record.message for record in caplog.records] == ["backend is down"]


# -- stable numbers


def test_numbers_survive_a_restart_and_are_used_again_last(tmp_path: Path) -> None:
    book = IndexBook(tmp_path / "book.json", limit=4)
    assert book.assign(["a", "b"]) == {"a": 0, "b": 1}
    assert book.assign(["b", "c"]) == {"b": 1, "c": 2}
    again = IndexBook(tmp_path / "book.json", limit=4)
    assert again.assign(["b", "c", "d"]) == {"b": 1, "c": 2, "d": 3}
    assert again.assign(["b", "c", "d", "e"])["e"] == 0


def test_keys_beyond_the_limit_get_no_number(tmp_path: Path) -> None:
    book = IndexBook(tmp_path / "book.json", limit=2)
    assert book.assign(["a", "b", "c"]) == {"a": 0, "b": 1}


def test_a_torn_book_is_started_anew(tmp_path: Path) -> None:
    (tmp_path / "book.json").write_text('{"index_of": {"a"')
    assert IndexBook(tmp_path / "book.json", limit=2).assign(["x"]) == {"x": 0}


def test_the_limits_of_the_configuration_leave_room_for_the_embedded_triton() -> None:
    Settings.model_validate({"backends": [f"b{i}:1" for i in range(255)]})
    with pytest.raises(ValueError, match="256 backends"):
        Settings.model_validate({"backends": [f"b{i}:1" for i in range(256)]})
