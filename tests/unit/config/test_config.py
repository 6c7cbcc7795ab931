"""Configuration: units, strictness, precedence, origins, contradictions."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.config import ConfigError, load_settings
from scheduler.config.address import Address, parse_address
from scheduler.config.units import (
    format_duration,
    format_size,
    parse_duration_ns,
    parse_size_bytes,
)


def load_text(tmp_path: Path, text: str, **sources: object):  # type: ignore[no-untyped-def]
    file = tmp_path / "infersched.yaml"
    file.write_text(text)
    sources.setdefault("environment", {})
    return load_settings(file, **sources)  # type: ignore[arg-type]


def problems(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load_text(tmp_path, text)
    return str(raised.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("5ms", 5_000_000),
        ("1.5s", 1_500_000_000),
        ("200us", 200_000),
        ("200µs", 200_000),
        ("7ns", 7),
        ("2m", 120 * 10**9),
        ("0", 0),
        (0, 0),
    ],
)
def test_durations_are_nanoseconds(text: object, nanoseconds: int) -> None:
    assert parse_duration_ns(text) == nanoseconds


@pytest.mark.parametrize(
    "text", ["5", 5, "5 parsecs", "-1ms", "ms", "", True, None, "1e3ms", "9" * 30]
)
def test_a_duration_that_cannot_be_read_is_refused(text: object) -> None:
    with pytest.raises(ValueError):
        parse_duration_ns(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("64MiB", 2**26), ("1GB", 10**9), (12, 12), ("1.5KiB", 1536)]
)
def test_sizes_are_bytes(text: object, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


def test_formatting_is_the_inverse_of_parsing(rng) -> None:  # type: ignore[no-untyped-def]
    for _ in range(500):
        number = rng.randrange(2 ** rng.randrange(1, 62))
        assert parse_duration_ns(format_duration(number)) == number
        assert parse_size_bytes(format_size(number)) == number


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8001", Address("127.0.0.1", 8001)),
        ("[::1]:1", Address("::1", 1)),
        (":8001", Address("", 8001)),
        ("triton-3.local:0", Address("triton-3.local", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["host", "host:", "host:x", "::1:80", "http://h:1", "h:70000", "h:\N{SUPERSCRIPT TWO}"]
)
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_defaults_are_valid_and_bounded() -> None:
    settings = load_settings(environment={}).settings
    assert settings.defaults.max_queue_requests > 0
    assert settings.defaults.max_queue_bytes <= settings.server.host_bytes_max
    assert settings.server.message_bytes_max == 2**31 - 1
    assert settings.defaults.max_queue_bytes > settings.server.message_bytes_max


def test_an_unknown_key_names_its_path_line_and_the_nearest_key(tmp_path: Path) -> None:
    text = problems(tmp_path, "server:\n  drain:\n    dedline: 3s\n")
    assert text == "server.drain.dedline (infersched.yaml:3): unknown key; did you mean deadline?"
    text = problems(tmp_path, "models:\n  m: {sloo: 5ms}\n")
    assert text == "models.m.sloo (infersched.yaml:2): unknown key; did you mean slo?"


@pytest.mark.parametrize("value", ["[auto]", "{}", "1", "on_request", "{auto: off}"])
@pytest.mark.parametrize("section", ["embedded: {shared_memory: VALUE}",
    "backends: [{address: 'h:1', shared_memory: VALUE}]"])  # fmt: skip
def test_shared_memory_is_auto_or_off(tmp_path: Path, section: str, value: str) -> None:
    text = problems(tmp_path, section.replace("VALUE", value))
    assert "shared_memory (infersched.yaml:1): " in text
    assert "'auto' or 'off'" in text


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = problems(
        tmp_path,
        "backends:\n  - ok:1\n  - adress: x:1\ndefaults:\n  max_queue_delay: 5\n  slo: 1year\n",
    )
    assert "backends[1].adress (infersched.yaml:3): unknown key; did you mean address?" in text
    assert "defaults.max_queue_delay (infersched.yaml:5): 5 needs a unit: write 5ms or 5s" in text
    assert "defaults.slo (infersched.yaml:6): unknown unit 'year'" in text


def test_mistakes_of_models_are_reported_beside_the_others(tmp_path: Path) -> None:
    text = problems(
        tmp_path,
        "server:\n  drain:\n    dedline: 3s\nmodels:\n  m: {sloo: 5ms}\n  n: {slo: 5}\n",
    )
    assert text.splitlines() == [
        "server.drain.dedline (infersched.yaml:3): unknown key; did you mean deadline?",
        "models.m.sloo (infersched.yaml:5): unknown key; did you mean slo?",
        "models.n.slo (infersched.yaml:6): 5 needs a unit: write 5ms or 5s",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server: [", "not valid YAML"),
        ("- 1\n", "expected sections"),
        ("server: 3\n", "server (infersched.yaml:1): expected a section"),
        ("logging: {level: info}\nlogging: {level: debug}\n", "written twice; keep one"),
        ("logging: {level: loud}\n", "logging.level"),
        ("backends: [a:1, a:1]\n", "backend a:1 is listed twice"),
        ("backends: ['a:0']\n", "a backend needs a host and a port"),
        ("server: {forward_metadata: [grpc-timeout]}\n", "belongs to the transport"),
        ("server: {forward_metadata: [Triton_GRPC_Error]}\n", "leave it out"),
        ("server: {forward_metadata: ['x-.*']}\n", "one '*' behind it (x-*)"),
        ("server: {forward_metadata: ['*-x']}\n", "one '*' behind it (x-*)"),
        ("server: {forward_metadata: ['x-**']}\n", "one '*' behind it (x-*)"),
        ("server: {forward_metadata: ['x (*']}\n", "can be no name"),
        ("server: {forward_metadata: ['grpc-*']}\n", "belongs to the transport"),
        ("defaults: {max_queue_requests: 0}\n", "defaults.max_queue_requests"),
    ],
)
def test_wrong_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(tmp_path, text)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("slo: 5ms, max_queue_delay: 5ms", "make max_queue_delay smaller than slo"),
        ("max_batch_rows: 8, mandatory_batch_rows: [4, 16]", "mandatory_batch_rows 16 is above"),
        ("max_batch_rows: 8, preferred_batch_rows: [9]", "preferred_batch_rows 9 is above"),
        ("mandatory_batch_rows: [4], preferred_batch_rows: [3]", "3 is not one of mandatory"),
        ("merge: false, preferred_batch_rows: [4]", "need merge: true"),
        ("priority_levels: 2, default_priority: 3", "default_priority 3 is not one of the 2"),
        ("preferred_batch_rows: [0]", "at least 1"),
    ],
)
def test_contradictions_are_explained(tmp_path: Path, keys: str, message: str) -> None:
    assert message in problems(tmp_path, f"defaults: {{{keys}}}\n")
    assert message in problems(tmp_path, f"models:\n  m: {{{keys}}}\n")


def test_a_model_overrides_only_what_it_names(tmp_path: Path) -> None:
    text = "defaults: {slo: 50ms, staged_batches: 3}\nmodels:\n  m: {slo: 20ms}\n"
    settings = load_text(tmp_path, text).settings
    assert settings.batching_for("m").slo == 20_000_000
    assert settings.batching_for("m").staged_batches == 3
    assert settings.batching_for("other").slo == 50_000_000


def test_an_override_that_contradicts_a_default_is_found(tmp_path: Path) -> None:
    text = problems(tmp_path, "defaults: {max_queue_delay: 10ms}\nmodels:\n  m: {slo: 5ms}\n")
    assert text.startswith("models.m (infersched.yaml:3): max_queue_delay 10ms leaves nothing")


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    text = "server:\n  listen: file:1\n  connections_max: 7\nlogging:\n  level: debug\n"
    environment = {"INFERSCHED_SERVER__LISTEN": "env:1", "INFERSCHED_LOGGING__LEVEL": "error"}
    flags = {("server", "listen"): (["flag:1"], "--listen")}
    loaded = load_text(tmp_path, text, environment=environment, flags=flags)
    origins = {".".join(map(str, path)): (value, o) for path, value, o in loaded.effective()}
    assert origins["server.listen"] == (["flag:1"], "flag --listen")
    assert origins["logging.level"] == ("error", "env INFERSCHED_LOGGING__LEVEL")
    assert origins["server.connections_max"] == (7, f"{tmp_path}/infersched.yaml:3")
    assert origins["server.readiness"] == ("strict", "default")


def test_a_list_comes_from_where_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "infersched.yaml"
    path.write_text(
        "server:\n  listen: ['a:1', 'b:2']\nbackends: [{address: 'c:3', devices: [x]}]\n"
    )
    loaded = load_settings(path, environment={})
    assert loaded.origin(("server", "listen")) == f"{path}:2"
    assert loaded.origin(("backends", 0, "devices")) == f"{path}:3"
    assert loaded.origin(("backends", 0, "connections")) == "default"


def test_lists_are_replaced_whole_and_forget_their_old_origin(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        "backends:\n  - {address: a:1, connections: 9}\n",
        environment={"INFERSCHED_BACKENDS": "b:1, c:1"},
    )
    assert [str(b.address) for b in loaded.settings.backends] == ["b:1", "c:1"]
    assert loaded.origin(("backends", 0, "connections")) == "env INFERSCHED_BACKENDS"


def test_the_environment_keeps_the_case_of_a_model_name() -> None:
    loaded = load_settings(environment={"INFERSCHED_MODELS__BertLarge__SLO": "30ms"})
    assert loaded.settings.batching_for("BertLarge").slo == 30_000_000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("INFERSCHED_SERVER__LISTN", "did you mean listen?"),
        ("INFERSCHED_SEVER__LISTEN", "did you mean server?"),
        ("INFERSCHED_SERVER", "a section, not a key"),
        ("INFERSCHED_MODELS__m__SLOW", "did you mean slo?"),
    ],
)
def test_a_mistyped_variable_is_an_error(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"env {name}") as raised:
        load_settings(environment={name: "1"})
    assert message in str(raised.value)


def test_variables_of_the_build_are_not_configuration() -> None:
    load_settings(environment={"INFERSCHED_ONLY": "codec", "INFERSCHED_CONFIG": "x"})


def test_a_file_that_is_not_there_is_an_error_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(tmp_path / "none.yaml", environment={})


def test_compression_and_batch_keys_reach_their_sections(tmp_path: Path) -> None:
    settings = load_text(
        tmp_path,
        "server: {response_compression: gzip}\n"
        "backends: [{address: 'a:1', compression: deflate}]\n"
        "embedded: {compression: gzip}\n"
        "models: {m: {batch_keys: X-Tenant}}\n",
    ).settings
    assert settings.server.response_compression == "gzip"
    assert settings.backends[0].compression == "deflate"
    assert settings.embedded.compression == "gzip"
    assert settings.batching_for("m").batch_keys == ("x-tenant",)
    assert settings.batching_for("other").batch_keys == ()
