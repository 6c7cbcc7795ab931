"""Objectives, classes and tenants as they are configured, refused and told to the data plane."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.config import Batching, ConfigError, Settings, ignored_profiles, load_settings
from scheduler.config.profile import save_profile
from scheduler.control.cold.regions import Regions
from scheduler.control.desired import DesiredState, batching_message
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.test_executors import pool_of
from tests.unit.control.triton_answers import spec
from tests.unit.profiling.test_profile import profile_of

MS = 1_000_000


def loaded(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "infersched.yaml"
    file.write_text(text)
    return load_settings(file, environment={}).settings


def message(**keys: object) -> pb.Batching:
    return batching_message(Batching.model_validate(keys), spec(), merge=True)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("slo: 50us", "slo (infersched.yaml:2): 50us is out of the range of 100us to 24h"),
        ("slo: 25h", "25h is out of the range"),
        ("slo: -5ms", "-5ms is negative; expected a duration"),
        (
            "slo: 0",
            "0 is no objective; leave the key out, or write none where another is inherited",
        ),
        ("slo: 0.0ms", "0.0ms is no objective"),
        ("slo: 0.0000001ms", "0.0000001ms is no objective"),
        ("slo: .nan", "expected a duration"),
        ("priorities: {1: {slo: 0}}", "0 is no objective; leave the key out for the model's, or"),
        ("priorities: {1: {slo: none}}", "write best_effort: true for a level without one"),
        ("attainment: 1.5", "1.5 is no part of the requests; write a number between 0 and 1"),
        ("attainment: 99", "for 99 % write 0.99"),
        ("attainment: 0", "0 is no part of the requests"),
        ("attainment: -1", "-1 is no part of the requests"),
        ("attainment: 1", "1 is no part of the requests"),
        ("attainment: .nan", "nan is no part of the requests"),
        ("attainment: 0.0000001", "attainment (infersched.yaml:2): 1e-07 is out of the range of 0"),
        ("attainment: 0.4999", "0.4999 is out of the range of 0.5 to 0.9999, for which margins"),
        ("attainment: 0.9999999", "0.9999999 is out of the range of 0.5 to 0.9999"),
        ("max_queue_age: 2000000h", "2000000h is longer than anybody waits; write at most 24h"),
        ("value: 0", "0 is no weight; write a number from 1e-06 to 1e+06"),
        ("value: -2", "-2 is no weight"),
        ("value: .inf", "inf is no weight"),
        ("value: 2.0e+6", "2e+06 is no weight"),
        ("value: 1.0e-300", "1e-300 is no weight; write a number from 1e-06 to 1e+06"),
        ("max_queue_delay: 25h", "25h is longer than anybody waits; write at most 24h"),
        ("slo: 5ms, max_queue_delay: 6ms", "max_queue_delay 6ms leaves nothing of slo 5ms"),
        (
            "max_queue_delay: 6ms, priority_levels: 2, priorities: {1: {slo: 5ms}}",
            "leaves nothing of priorities.1.slo 5ms",
        ),
        (
            "batching: load_aware, max_queue_delay: 1ms",
            "max_queue_delay contradicts batching: load_aware, which decides by itself how long to "
            "wait; set it to 0",
        ),
        (
            "batching: load_aware, preferred_batch_rows: [4]",
            "preferred_batch_rows contradicts batching: load_aware, which decides by itself how "
            "long to wait; set it to []",
        ),
        ("priorities: {2: {slo: 5ms}}", "priorities 2 is not one of the 1 priority_levels"),
        ("priorities: {0: {slo: 5ms}}", "priorities 0 is not one of the 1 priority_levels"),
        ("priorities: {1: {sloo: 5ms}}", "unknown key; did you mean slo?"),
        ("priorities: {1: {slo: 5}}", "write 5ms or 5s"),
        ("priorities: {1: {slo: 5ms, best_effort: true}}", "best_effort has no slo"),
        (
            "priorities: {1: {attainment: 0.9, best_effort: true}}",
            "best_effort has no attainment",
        ),
        ("priorities: {1: {attainment: 90}}", "for 90 % write 0.9"),
        ("priorities: [{sloo: 5ms}]", "unknown key; did you mean slo?"),
        (
            "priority_levels: 2, priorities: [{best_effort: true}]",
            "priorities 1 is best_effort and above level 2",
        ),
        (
            "slo: 5ms, priorities: [{best_effort: true}]",
            "slo acts on no level, all are best_effort",
        ),
        ("aging: 1s", "aging needs priority_levels of 2 or more"),
        ("batching: fixed", "'load_aware'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_key_and_the_fix(
    tmp_path: Path, keys: str, text: str
) -> None:
    for section in (f"defaults:\n  {{{keys}}}\n", f"models:\n  m: {{{keys}}}\n"):
        with pytest.raises(ConfigError) as raised:
            loaded(tmp_path, section)
        (problem,) = raised.value.problems
        assert text in str(problem).replace(f"{tmp_path}/", "")
        assert problem.origin.startswith(f"{tmp_path}/infersched.yaml:")


def test_values_at_the_bounds_are_taken(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "defaults: {slo: 24h, attainment: 0.9999, value: 1000000}\n")
    assert settings.defaults.slo == 24 * 3600 * 10**9
    least = loaded(tmp_path, "defaults: {slo: 100us, attainment: 0.5, value: 0.001}\n").defaults
    assert (least.slo, least.attainment) == (100_000, 0.5)
    assert loaded(tmp_path, "defaults: {max_queue_age: 24h}\n").defaults.max_queue_age > 0
    low = "defaults: {priorities: {1: {attainment: 0.1}}}\n"
    assert loaded(tmp_path, low).defaults.priorities[1].attainment == 0.1


def test_a_model_can_do_without_the_objective_that_it_inherits(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        "defaults: {slo: 20ms, priority_levels: 2, priorities: {1: {attainment: 0.9}}}\n"
        "models: {m: {slo: none}, n: {}}\n",
    )
    assert (settings.batching_for("m").slo, settings.batching_for("n").slo) == (0, 20 * MS)
    assert batching_message(settings.batching_for("m"), spec(), merge=True).slo_ns == 0
    assert settings.batching_for("m").priorities[1].attainment == 0.9
    shown = settings.batching_for("m").model_dump(mode="json")
    assert (shown["slo"], shown["priorities"]["1"]["slo"]) == ("none", None)
    assert Batching.model_validate(shown) == settings.batching_for("m")


def test_zero_configuration_is_load_aware() -> None:
    plain = message()
    assert (plain.fixed_delay, plain.attainment, plain.value) == (False, 0.99, 0.0)
    assert (plain.slo_ns, plain.aging_ns, list(plain.levels)) == (0, 0, [])


@pytest.mark.parametrize(
    ("keys", "fixed"),
    [
        ({"max_queue_delay": "1ms"}, True),
        ({"preferred_batch_rows": [8]}, True),
        ({"batching": "fixed_delay"}, True),
        ({"batching": "load_aware", "slo": "20ms"}, False),
        ({"slo": "20ms", "mandatory_batch_rows": [8]}, False),
    ],
)
def test_a_delay_or_preferred_sizes_imply_fixed_delay(keys: dict[str, object], fixed: bool) -> None:
    assert message(**keys).fixed_delay is fixed


def test_classes_reach_the_data_plane_by_level() -> None:
    built = message(
        slo="50ms",
        attainment=0.95,
        value=3,
        aging="2s",
        priority_levels=4,
        priorities={
            "1": {"slo": "20ms"},
            "2": {"attainment": 0.9},
            "4": {"best_effort": True},
        },
    )
    assert (built.slo_ns, built.attainment, built.value) == (50 * MS, 0.95, 3.0)
    assert built.aging_ns == 2_000 * MS
    assert [(level.slo_ns, level.best_effort, level.attainment) for level in built.levels] == [
        (20 * MS, False, 0),
        (0, False, 0.9),
        (0, False, 0),
        (0, True, 0),
    ]


def test_a_list_of_classes_begins_at_level_1(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        "models: {m: {priority_levels: 3, priorities: [{slo: 9ms}, null, {best_effort: true}]}}\n",
    )
    assert {n: c.slo for n, c in settings.batching_for("m").priorities.items()} == {
        1: 9 * MS,
        2: 0,
        3: 0,
    }


def test_classes_of_the_defaults_hold_for_models_that_name_none(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        "defaults: {priority_levels: 2, priorities: {1: {slo: 9ms}}}\n"
        "models: {m: {value: 2}, n: {priorities: {}}}\n",
    )
    assert settings.batching_for("m").priorities[1].slo == 9 * MS
    assert settings.batching_for("n").priorities == {}


def test_tritons_batching_takes_none_of_them() -> None:
    built = message(
        batching="triton", slo="5ms", priority_levels=2, priorities=[{"slo": "1ms"}], aging="1s"
    )
    assert (built.slo_ns, built.aging_ns, list(built.levels)) == (0, 0, [])


# -- profiles


def profiled(tmp_path: Path, keys: str, name: str = "m") -> str:
    """The problems of these keys of a model whose profile has a floor of 6 ms; empty: none."""
    save_profile(profile_of({1: 6.0, 2: 7.0}, name=name), tmp_path / "p.json")
    try:
        loaded(tmp_path, f"models:\n  m: {{profile: {tmp_path}/p.json, {keys}}}\n")
    except ConfigError as error:
        return str(error).replace(f"{tmp_path}/", "")
    return ""


def test_profiles_that_will_be_ignored_are_told(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"format": ')
    save_profile(profile_of({1: 6.0}, name="other"), tmp_path / "other.json")
    save_profile(profile_of({1: 6.0}, name="d"), tmp_path / "d.json")
    names = {"a": "none.json", "b": "cut.json", "c": "other.json", "d": "d.json"}
    text = "".join(f"  {name}: {{profile: {tmp_path}/{file}}}\n" for name, file in names.items())
    (tmp_path / "infersched.yaml").write_text(f"models:\n{text}")
    read = load_settings(tmp_path / "infersched.yaml", environment={})
    told = [str(each) for each in ignored_profiles(read)]
    assert len(told) == 3
    assert told[0].startswith(f"models.a.profile ({tmp_path}/infersched.yaml:2): cannot read ")
    assert "cut.json is no profile: " in told[1]
    assert told[2].endswith("other.json is of model other: it is ignored")


def test_a_profile_is_beside_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file is named from a working directory that has one of that name, too."""
    (tmp_path / "conf" / "profiles").mkdir(parents=True)
    save_profile(profile_of({1: 6.0}, name="m"), tmp_path / "conf" / "profiles" / "p.json")
    save_profile(profile_of({1: 2.0}, name="m"), tmp_path / "p.json")
    config = tmp_path / "conf" / "infersched.yaml"
    monkeypatch.chdir(tmp_path)
    for named, found in {
        "profiles/p.json": f"{tmp_path}/conf/profiles/p.json",
        f"{tmp_path}/p.json": f"{tmp_path}/p.json",
    }.items():
        config.write_text(f"models: {{m: {{profile: {named}}}}}\n")
        for file in (config, config.relative_to(tmp_path)):
            read = load_settings(file, environment={})
            assert str(read.settings.batching_for("m").profile) == found
            assert ignored_profiles(read) == []
    (tmp_path / "conf" / "profiles" / "p.json").unlink()
    config.write_text("models: {m: {profile: p.json, slo: 1ms}}\n")
    (told,) = ignored_profiles(load_settings(config, environment={}))
    assert told.message == (
        f"cannot read {tmp_path}/conf/p.json: No such file or directory; there is a p.json in the "
        f"working directory {tmp_path}, but what a file names is relative to that file: it is "
        "ignored"
    )


def test_a_profile_of_the_environment_is_found_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read = load_settings(environment={"INFERSCHED_MODELS__m__PROFILE": "p.json"})
    assert str(read.settings.batching_for("m").profile) == "p.json"
    (told,) = ignored_profiles(read)
    missing = f"{tmp_path}/p.json: No such file or directory"
    assert told.message == f"cannot read {missing}: it is ignored"


def test_an_objective_below_the_measured_floor_is_refused(tmp_path: Path) -> None:
    assert profiled(tmp_path, "slo: 6ms") == (
        "models.m.slo (infersched.yaml:2): 6ms is below the 6 ms that a lone request takes at the "
        "model (measured, p.json); raise it above that"
    )
    text = profiled(tmp_path, "slo: 20ms, priority_levels: 2, priorities: {1: {slo: 5ms}}")
    assert text.startswith("models.m.priorities.1.slo (infersched.yaml:2): 5ms is below the 6 ms")


def test_a_wait_that_leaves_less_than_a_lone_request_takes_is_refused(tmp_path: Path) -> None:
    assert profiled(tmp_path, "slo: 8ms, max_queue_delay: 7ms") == (
        "models.m.max_queue_delay (infersched.yaml:2): 7ms leaves 1ms of slo 8ms, and a lone "
        "request takes 6 ms at the model (measured, p.json): what waits so long is late; make it "
        "less than 2ms"
    )
    assert "make it less than 2ms" in profiled(tmp_path, "slo: 8ms, max_queue_delay: 2ms")
    levels = "slo: 90ms, max_queue_delay: 3ms, priority_levels: 2, priorities: {1: {slo: 8ms}}"
    assert "leaves 5ms of priorities.1.slo 8ms" in profiled(tmp_path, levels)
    impossible = profiled(tmp_path, "slo: 5ms, max_queue_delay: 3ms")
    assert impossible.startswith("models.m.slo ")
    assert "max_queue_delay" not in impossible


@pytest.mark.parametrize(
    "keys",
    [
        "slo: 6001us",
        "value: 1",
        "batching: triton, slo: 1ms",
        "slo: 8ms, max_queue_delay: 1999us",
        "max_queue_delay: 9ms",
        "batching: triton, slo: 8ms, max_queue_delay: 7ms",
    ],
)
def test_other_objectives_are_taken(tmp_path: Path, keys: str) -> None:
    assert profiled(tmp_path, keys) == ""


def test_a_profile_that_cannot_be_used_stops_nothing(tmp_path: Path) -> None:
    assert profiled(tmp_path, "slo: 1ms", name="other") == ""
    (tmp_path / "torn.json").write_text("{")
    for file in ("torn.json", "none.json"):
        text = f"models: {{m: {{profile: {tmp_path}/{file}, slo: 1ms}}}}\n"
        assert loaded(tmp_path, text).batching_for("m").slo == MS


def test_a_profile_is_of_one_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write models\.NAME\.profile"):
        loaded(tmp_path, "defaults: {profile: p.json}\n")


# -- tenants


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("weights: {gold: 3}", "tenants (infersched.yaml:1): weights need metadata_key"),
        ("metadata_key: grpc-timeout", "belongs to the transport"),
        ("metadata_key: ''", "the name of a request header is empty"),
        ("metadata_key: x-tenant-bin", "is binary"),
        ("metadata_key: X Tenant", "'x tenant' can be no name of a request header"),
        ("metadata_key: x, weights: {gold: 0}", "tenants.weights.gold"),
        ("metadata_key: x, weights: {gold: -1}", "-1 is no weight"),
        ("metadata_key: x, weights: {'': 1}", "tenants.weights"),
        ("metadata_key: x, default_weight: 0", "0 is no weight"),
        ("metadata_key: x, weigths: {gold: 1}", "unknown key; did you mean weights?"),
    ],
)
def test_wrong_tenants_are_refused(tmp_path: Path, keys: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, f"tenants: {{{keys}}}\n")
    assert text in str(raised.value).replace(f"{tmp_path}/", "")


def test_1023_tenants_can_be_named_and_no_more(tmp_path: Path) -> None:
    def text(count: int) -> str:
        named = ", ".join(f"t{i}: 1" for i in range(count))
        return f"tenants: {{metadata_key: x, weights: {{{named}}}}}\n"

    assert len(loaded(tmp_path, text(1023)).tenants.weights) == 1023
    with pytest.raises(ConfigError, match="1024 tenants are above the limit of 1023"):
        loaded(tmp_path, text(1024))


def test_tenants_reach_the_data_plane_with_everybody_else_first(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        "tenants: {metadata_key: X-Tenant, weights: {gold: 3, free: 0.5}, default_weight: 2}\n",
    )
    limits = DesiredState(tmp_path).build(pool_of(), settings, Regions(tmp_path)).limits
    assert limits.tenant_metadata_key == "x-tenant"
    assert [(t.name, t.weight) for t in limits.tenants] == [("", 2.0), ("free", 0.5), ("gold", 3.0)]


def test_without_a_header_there_are_no_tenants(tmp_path: Path) -> None:
    limits = DesiredState(tmp_path).build(pool_of(), Settings(), Regions(tmp_path)).limits
    assert (limits.tenant_metadata_key, len(limits.tenants)) == ("", 0)
