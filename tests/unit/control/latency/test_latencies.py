"""Learned latencies over restarts, priors of every kind, objectives that nothing can meet."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import ModelSpec, profiled_model
from scheduler.config import Batching, Settings
from scheduler.config.profile import ProfiledModel, save_profile
from scheduler.control.cold.regions import Regions
from scheduler.control.desired import DesiredState
from scheduler.control.latency.latencies import OBSERVATIONS_MIN, Latencies
from scheduler.control.latency.learned import (
    ENTRIES_MAX,
    FILE_NAME,
    LearnedLatencies,
    learned_latency,
)
from scheduler.control.latency.priors import Priors, statistics_prior
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.test_executors import pool_of
from tests.unit.control.triton_answers import spec
from tests.unit.profiling.test_profile import profile_of

MS = 1_000_000
KEY = ("identity", "1")
MODEL = profiled_model(spec())
OTHER = profiled_model(spec('name: "identity" max_batch_size: 8'))
# As pool_of() has it.
POOLED = profiled_model(pool_of(({"address": "a:1"}, {"identity": ""})).catalog[KEY].spec)


def snapshot_of(times_ms: dict[int, float], observations: int = 100) -> pb.LatencySnapshot:
    latency = pb.LatencySnapshot(observations=observations)
    for rows, ms in times_ms.items():
        latency.sizes.add(rows=rows, batches=10, backend_ns=round(ms * 10 * MS))
    return latency


def learned(
    directory: Path, times_ms: dict[int, float], backend: str = "a:1", observations: int = 100
) -> LearnedLatencies:
    """What a control plane has kept in this directory."""
    return kept_in(directory, snapshot_of(times_ms, observations), backend)


def kept_in(
    directory: Path, latency: pb.LatencySnapshot, backend: str = "a:1", model: ProfiledModel = MODEL
) -> LearnedLatencies:
    kept = LearnedLatencies(directory)
    found = learned_latency(model, backend, latency)
    assert found is not None
    kept.update({(KEY, backend): found})
    kept.store()
    return kept


def milliseconds(prior: Any) -> dict[int, float]:
    return {size.rows: size.backend_ns / size.batches / MS for size in prior}


# -- the file


def test_what_was_learned_outlives_the_process(tmp_path: Path) -> None:
    learned(tmp_path, {1: 6.0, 8: 13.5})
    found = LearnedLatencies(tmp_path).entry(KEY, MODEL.signature, "a:1")
    assert found is not None
    assert [(s.rows, s.mean_ns) for s in found.sizes] == [(1, 6 * MS), (8, 13_500_000)]


def test_a_new_backend_takes_over_from_the_one_that_has_seen_most(tmp_path: Path) -> None:
    learned(tmp_path, {1: 6.0}, "a:1", observations=10)
    kept = learned(tmp_path, {1: 9.0}, "b:1", observations=500)
    for backend, ms in (("a:1", 6), ("b:1", 9), ("c:1", 9)):
        found = kept.entry(KEY, MODEL.signature, backend)
        assert found is not None
        assert found.sizes[0].mean_ns == ms * MS


def test_a_model_that_has_changed_has_learned_nothing(tmp_path: Path) -> None:
    kept = learned(tmp_path, {1: 6.0})
    assert kept.entry(KEY, OTHER.signature, "a:1") is None
    assert kept.of_other_model(KEY, OTHER.signature)
    assert not kept.of_other_model(KEY, MODEL.signature)
    assert not kept.of_other_model(("n", "1"), MODEL.signature)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "\x00" * 64,
        lambda text: text.replace("infersched-latencies", "infersched-profile"),
        lambda text: text.replace('"mean_ns":6000000', '"mean_ns":-6'),
        lambda text: text.replace('"mean_ns":6000000', '"mean_ns":1e300'),
        lambda text: text.replace('"rows":1', '"rows":0'),
        lambda text: text.replace('"backend":', '"bakend":'),
    ],
)
def test_a_corrupt_file_is_said_ignored_and_replaced(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    learned(tmp_path, {1: 6.0})
    file = tmp_path / FILE_NAME
    assert damage(file.read_text()) != file.read_text()
    file.write_text(damage(file.read_text()))
    assert LearnedLatencies(tmp_path).entry(KEY, MODEL.signature, "a:1") is None
    assert "learned latencies are ignored" in caplog.text
    learned(tmp_path, {1: 7.0})
    caplog.clear()
    assert LearnedLatencies(tmp_path).entry(KEY, MODEL.signature, "a:1") is not None
    assert caplog.text == ""


def test_a_directory_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    kept = learned(tmp_path / "file", {1: 6.0})
    kept.store()
    assert caplog.text.count("cannot be kept") == 1
    assert kept.entry(KEY, MODEL.signature, "a:1") is not None


def test_the_oldest_backends_go_where_there_are_too_many(tmp_path: Path) -> None:
    kept = learned(tmp_path, {1: 6.0}, "first:1")
    found = learned_latency(MODEL, "x", snapshot_of({1: 7.0}))
    assert found is not None
    kept.update({(KEY, f"b{n}:1"): found for n in range(ENTRIES_MAX - 1)})
    assert kept.entry(KEY, MODEL.signature, "first:1").sizes[0].mean_ns == 6 * MS  # type: ignore[union-attr]
    kept.update({(KEY, "last:1"): found})
    assert kept.entry(KEY, MODEL.signature, "first:1") == found, "that of another backend"


@pytest.mark.parametrize(
    "latency",
    [
        snapshot_of({1: 6.0}, observations=0),
        snapshot_of({}),
        snapshot_of({0: 6.0}),
        pb.LatencySnapshot(observations=3, sizes=[pb.BatchSize(rows=1, batches=1)]),
        pb.LatencySnapshot(
            observations=3, sizes=[pb.BatchSize(rows=1, batches=1, backend_ns=2**62)]
        ),
    ],
)
def test_what_was_not_observed_or_is_nonsense_is_not_kept(latency: pb.LatencySnapshot) -> None:
    assert learned_latency(MODEL, "a:1", latency) is None


# -- priors


def statistics(times_ms: dict[int, float], name: str = "identity") -> service_pb2.ModelStatistics:
    answer = service_pb2.ModelStatistics(name=name, version="1")
    for rows, ms in times_ms.items():
        entry = answer.batch_stats.add(batch_size=rows)
        for field, part in (("input", 0.1), ("infer", 0.8), ("output", 0.1)):
            duration = getattr(entry, f"compute_{field}")
            duration.count, duration.ns = 5, round(ms * part * 5 * MS)
    return answer


def test_batch_statistics_are_a_prior() -> None:
    assert milliseconds(statistics_prior(statistics({8: 13.5, 1: 6.0}))) == {1: 6.0, 8: 13.5}


def test_statistics_that_make_no_sense_are_said_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = statistics({0: 5.0, 2: 0.0, 3: 4_000_000.0, 4: 9.0, 2**31: 9.0, 2**60: 9.0})
    found.batch_stats[2].compute_infer.ns = 2**64 - 1
    assert milliseconds(statistics_prior(found)) == {4: 9.0}
    priors = Priors(LearnedLatencies(tmp_path))
    for _ in range(2):
        priors.offer_statistics("a:1", [found])
    (record,) = caplog.records
    assert "batch statistics of Triton that make no sense are ignored" in record.getMessage()
    assert vars(record)["fields"] == {"version": "1", "sizes": 5}
    assert priors.ignored == {(KEY, "a:1"): 10}
    assert milliseconds(priors.of(spec(), "a:1", Batching())) == {4: 9.0}


def test_batches_that_triton_has_not_timed_yet_are_no_nonsense(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = statistics({4: 9.0})
    found.batch_stats.add(batch_size=5)
    Priors(LearnedLatencies(tmp_path)).offer_statistics("a:1", [found])
    assert milliseconds(statistics_prior(found)) == {4: 9.0}
    assert caplog.text == ""


def test_what_was_learned_comes_before_a_profile_and_that_before_statistics(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    save_profile(profile_of({1: 5.0}, name="identity", signature=MODEL.signature), file)
    empty = LearnedLatencies(tmp_path / "none")
    full = learned(tmp_path, {1: 6.0})
    with_profile = Batching(profile=file)
    for known, batching, ms in (
        (full, with_profile, 6.0),
        (empty, with_profile, 5.0),
        (empty, Batching(), 4.0),
    ):
        priors = Priors(known)
        priors.offer_statistics("a:1", [statistics({1: 4.0})])
        assert milliseconds(priors.of(spec(), "a:1", batching)) == {1: ms}


def test_a_prior_stays_as_it_was_said(tmp_path: Path) -> None:
    kept = learned(tmp_path, {1: 6.0})
    priors = Priors(kept)
    before = priors.of(spec(), "a:1", Batching())
    newer = learned_latency(MODEL, "a:1", snapshot_of({1: 7.0}))
    assert newer is not None
    kept.update({(KEY, "a:1"): newer})
    assert priors.of(spec(), "a:1", Batching()) == before
    priors.renew()
    assert milliseconds(priors.of(spec(), "a:1", Batching())) == {1: 7.0}


def test_statistics_that_come_late_are_still_said(tmp_path: Path) -> None:
    priors = Priors(LearnedLatencies(tmp_path))
    assert priors.of(spec(), "a:1", Batching()) == ()
    assert priors.offer_statistics("a:1", [statistics({1: 4.0}), statistics({1: 4.0}, "unknown")])
    assert milliseconds(priors.of(spec(), "a:1", Batching())) == {1: 4.0}
    assert not priors.offer_statistics("a:1", [statistics({1: 5.0})])


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (profile_of({1: 5.0}, name="other"), "it is of model other version 1"),
        (profile_of({1: 5.0}, name="identity", version="2"), "version 2, not of identity"),
        (profile_of({1: 5.0}, name="identity", signature=OTHER.signature), "other inputs"),
        (None, "is no profile"),
    ],
)
def test_a_profile_that_cannot_be_used_is_said_once_and_ignored(
    tmp_path: Path, profile: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "p.json"
    if profile is None:
        file.write_text("{}")
    else:
        save_profile(profile, file)
    priors = Priors(LearnedLatencies(tmp_path))
    for backend in ("a:1", "b:1"):
        assert priors.of(spec(), backend, Batching(profile=file)) == ()
    assert caplog.text.count("is ignored") == 1
    assert reason in caplog.text


def test_priors_reach_the_data_plane(tmp_path: Path) -> None:
    pool = pool_of(({"address": "a:1"}, {"identity": "", "s": "sequence_batching {}"}))
    known = spec('name: "identity" max_batch_size: 8')
    priors = Priors(LearnedLatencies(tmp_path))
    priors.offer_statistics("a:1", [statistics({1: 4.0}), statistics({1: 4.0}, "s")])
    assert pool.catalog[KEY].spec.max_batch_size == known.max_batch_size
    apply = DesiredState(tmp_path, priors).build(pool, Settings(), Regions(tmp_path))
    found = {m.name: milliseconds(m.placements[0].latency_prior) for m in apply.models}
    assert found == {"identity": {1: 4.0}, "s": {}}


# -- objectives


def latencies_of(tmp_path: Path, settings: Settings) -> tuple[Latencies, DesiredState]:
    """Of a pool of one backend that serves `identity`; the data plane has the numbers 0 and 0."""
    pool = pool_of(({"address": "a:1"}, {"identity": ""}))
    asked: Any = None  # nothing here
    found = Latencies(tmp_path, pool, asked, asked, lambda: settings, lambda: None)
    desired = DesiredState(tmp_path, found.priors)
    desired.build(pool, settings, Regions(tmp_path))
    return found, desired


def spec_of(latencies: Latencies) -> ModelSpec:
    return latencies._pool.catalog[KEY].spec


def snapshot(times_ms: dict[int, float], observations: int) -> pb.Snapshot:
    latency = snapshot_of(times_ms, observations)
    return pb.Snapshot(models=[pb.ModelSnapshot(index=0, latencies=[latency])])


def settings_of(**keys: Any) -> Settings:
    return Settings.model_validate({"models": {"identity": keys}})


def test_an_objective_below_what_was_learned_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(slo="5ms", priority_levels=2, priorities={"2": {"slo": "50ms"}})
    found, desired = latencies_of(tmp_path, settings)
    found.take(desired, snapshot({1: 6.125, 8: 13.0}, OBSERVATIONS_MIN - 1))
    assert caplog.text == ""
    for _ in range(2):
        found.take(desired, snapshot({1: 6.125, 8: 13.0}, OBSERVATIONS_MIN))
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "models.identity.slo: 5ms is below the 6.12 ms that a lone request takes"
    )
    assert found.problems(KEY, settings.batching_for("identity")).keys() == {"slo"}
    assert found.problems(KEY, Batching.model_validate({"slo": "7ms"})) == {}
    assert found.problems(("other", "1"), Batching.model_validate({"slo": "1ms"})) == {}


def many(times_ms: dict[int, float]) -> pb.LatencySnapshot:
    """As snapshot_of, of as many batches as are believed."""
    latency = pb.LatencySnapshot(observations=1000)
    for rows, ms in times_ms.items():
        batches = OBSERVATIONS_MIN
        latency.sizes.add(rows=rows, batches=batches, backend_ns=round(ms * batches * MS))
    return latency


def test_an_objective_below_what_an_earlier_life_learned_is_said_before_the_first_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept_in(tmp_path, many({1: 6.0, 8: 13.0}), model=POOLED)
    settings = settings_of(slo="5ms")
    latencies, desired = latencies_of(tmp_path, settings)
    for _ in range(2):
        latencies.judge_priors()
    (record,) = caplog.records
    text = "5ms is below the 6 ms that a lone request takes at the model (learned earlier)"
    assert f"models.identity.slo: {text}" in record.getMessage()
    assert text in latencies.problems(KEY, settings.batching_for("identity"))["slo"]
    latencies.take(desired, snapshot({1: 4.0}, OBSERVATIONS_MIN))
    assert latencies.problems(KEY, settings.batching_for("identity")) == {}, "measured here"


def test_a_size_that_is_there_twice_stops_nothing(tmp_path: Path) -> None:
    twice = many({4: 10.0})
    twice.sizes.append(twice.sizes[0])
    kept_in(tmp_path, twice, model=POOLED)
    latencies, _ = latencies_of(tmp_path, Settings())
    assert latencies.priors.floor_ns(KEY) == 2_500_000


def test_what_is_hardly_known_and_what_triton_counted_is_no_floor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "none").mkdir()
    kept_in(tmp_path / "few", snapshot_of({1: 6.0}), model=POOLED)  # 10 batches of the size
    for directory in ("few", "none"):
        settings = settings_of(slo="5ms")
        latencies, desired = latencies_of(tmp_path / directory, settings)
        # A first batch that took seconds is in their mean.
        counted = statistics({1: 60.0})
        counted.batch_stats[0].compute_infer.count = OBSERVATIONS_MIN
        counted.batch_stats[0].compute_infer.ns = 60 * MS * OBSERVATIONS_MIN
        told = latencies.priors.offer_statistics("a:1", [counted])
        assert told == (directory == "none")
        desired.build(latencies._pool, settings, Regions(tmp_path))
        latencies.judge_priors()
    assert caplog.text == ""


def test_a_profile_is_no_floor_of_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Objectives are judged by a profile when it is read."""
    file = tmp_path / "profile.json"
    save_profile(profile_of({1: 50.0}, name="identity", signature=POOLED.signature), file)
    latencies, _ = latencies_of(tmp_path, settings_of(slo="60ms", profile=file))
    latencies.judge_priors()
    assert latencies.priors.of(spec_of(latencies), "a:1", Batching(profile=file))
    assert latencies.problems(KEY, Batching.model_validate({"slo": "5ms"})) == {}
    assert caplog.text == ""


def test_the_floor_of_larger_batches_is_that_of_a_lone_request(tmp_path: Path) -> None:
    found, desired = latencies_of(tmp_path, Settings())
    found.take(desired, snapshot({8: 13.0, 16: 21.0}, OBSERVATIONS_MIN))
    assert found.floor_ns(KEY) == 6 * MS


def test_what_was_taken_is_in_the_file(tmp_path: Path) -> None:
    found, desired = latencies_of(tmp_path, Settings())
    found.take(desired, snapshot({1: 6.0}, 3))
    found.keep()
    (entry,) = json.loads((tmp_path / FILE_NAME).read_text())["latencies"]
    assert (entry["model"]["name"], entry["backend"]) == ("identity", "a:1")
    assert entry["sizes"] == [{"rows": 1, "batches": 10, "mean_ns": 6 * MS}]


def test_a_backend_that_is_replaced_takes_its_latencies_along(tmp_path: Path) -> None:
    settings = settings_of(slo="5ms")
    found, desired = latencies_of(tmp_path, settings)
    found.priors.offer_statistics("a:1", [statistics({1: 4.0})])
    found.take(desired, snapshot({1: 6.0}, OBSERVATIONS_MIN))
    assert [label[2] for label in found.figures()] == ["a:1"]
    assert found.floor_ns(KEY) == 6 * MS
    pool = found._pool
    pool.watches["b:1"] = pool.watches.pop("a:1")
    pool.backends["b:1"] = pool.backends.pop("a:1")
    found.take(desired, pb.Snapshot())
    assert found.figures() == {}
    assert found.floor_ns(KEY) == 0
    assert found.problems(KEY, settings.batching_for("identity")) == {}
    assert found.priors._statistics == {}
    assert found.priors._floors_ns == {}


def test_models_of_the_data_plane_that_are_gone_are_left_out(tmp_path: Path) -> None:
    found, desired = latencies_of(tmp_path, Settings())
    strange = pb.Snapshot(models=[pb.ModelSnapshot(index=7, latencies=[snapshot_of({1: 6.0})])])
    strange.models.add(index=0).latencies.add(backend_index=9, observations=5)
    found.take(desired, strange)
    found.keep()
    assert found.current == {}
    assert not (tmp_path / FILE_NAME).exists()
