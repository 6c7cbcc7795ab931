"""Latency profiles: the file, what is refused of it, inputs for a measurement, line and picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import profiled_model
from scheduler.config.profile import (
    Profile,
    ProfileError,
    check_model,
    load_profile,
    model_signature,
    save_profile,
)
from scheduler.profiling.inputs import InputError, RequestMaker, random_inputs, read_inputs
from scheduler.profiling.measure import default_sizes, fit_line, line_text
from scheduler.profiling.plot import svg
from tests.unit.control.triton_answers import spec

MS = 1_000_000
SIGNATURE = model_signature(64, [("INPUT0", "FP32", [16])])
MIXED = spec(
    """name: "m" max_batch_size: 8
    input { name: "A" data_type: TYPE_FP32 dims: [-1, 2] }
    input { name: "W" data_type: TYPE_STRING dims: 1 }
    input { name: "B" data_type: TYPE_INT64 dims: 1 optional: true }
    output { name: "O" data_type: TYPE_FP32 dims: 1 }"""
)


def profile_of(times_ms: dict[int, float], **model: str) -> Profile:
    """A profile of these medians."""
    named = {"name": "m", "version": "1", "signature": SIGNATURE, **model}
    sizes = [
        {"rows": rows, "batches": 30, "mean_ns": int(ms * MS), "median_ns": int(ms * MS),
         "p99_ns": int(ms * MS * 1.2)}
        for rows, ms in times_ms.items()
    ]  # fmt: skip
    fit = fit_line(list(times_ms), [ms * MS for ms in times_ms.values()])
    return Profile.model_validate(
        {"model": named, "measured_at": "2026-01-01T00:00:00+00:00", "server": "triton 2.51.0",
         "in_flight": 4, "fit": fit, "sizes": sizes}
    )  # fmt: skip


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile = profile_of({1: 6.1, 2: 7.2, 8: 13.5})
    save_profile(profile, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == profile
    assert profile.floor_ns == 6_100_000


@pytest.mark.parametrize(
    ("times_ms", "floor_ms"),
    [
        ({1: 6.1}, 6.1),
        ({4: 10.0}, 2.5),  # at least that
        ({4: 10.0, 8: 14.0}, 7.0),
        ({4: 10.0, 8: 30.0}, 2.5),
        ({4: 10.0, 8: 9.0}, 10.0),
    ],
)
def test_the_floor_is_what_one_row_takes(times_ms: dict[int, float], floor_ms: float) -> None:
    assert profile_of(times_ms).floor_ns == pytest.approx(floor_ms * MS)


def damage(profile: Profile, **changes: Any) -> str:
    return json.dumps({**profile.model_dump(mode="json"), **changes})


GOOD = profile_of({1: 6.0, 2: 7.0})
SIZE = GOOD.sizes[0].model_dump()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "EOF"),
        ("[]", "is no profile"),
        (GOOD.model_dump_json()[:-40], "is no profile"),
        (damage(GOOD, format="other"), "format"),
        (damage(GOOD, format_version=2), "format_version"),
        (damage(GOOD, extra=1), "extra"),
        (damage(GOOD, sizes=[]), "sizes"),
        (damage(GOOD, sizes=[{**SIZE, "rows": 0}]), "sizes.0.rows"),
        (damage(GOOD, sizes=[{**SIZE, "median_ns": -5}]), "sizes.0.median_ns"),
        (damage(GOOD, sizes=[{**SIZE, "mean_ns": 10**16}]), "sizes.0.mean_ns"),
        (damage(GOOD, sizes=[SIZE, SIZE]), "ascending"),
        (damage(GOOD, sizes=[{**SIZE, "p99_ns": 1}]), "below their median"),
        (damage(GOOD, fit={"alpha_ns": "NaN", "beta_ns": 1, "r_squared": 1}), "fit.alpha_ns"),
        ("\x00" * 100, "is no profile"),
        (" " * (5 << 20), "larger than 4 MiB"),
    ],
)
def test_a_damaged_file_is_detected(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ProfileError, match=reason):
        load_profile(tmp_path / "p.json")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot read"):
        load_profile(tmp_path / "none.json")
    with pytest.raises(ProfileError, match="cannot read"):
        load_profile(tmp_path)


def test_a_profile_of_another_model_is_detected() -> None:
    check_model(GOOD, "m", "1", SIGNATURE)
    with pytest.raises(ProfileError, match="of model m version 1, not of n version 1"):
        check_model(GOOD, "n", "1", SIGNATURE)
    with pytest.raises(ProfileError, match="not of m version 2"):
        check_model(GOOD, "m", "2", SIGNATURE)
    with pytest.raises(ProfileError, match="other inputs, outputs"):
        check_model(GOOD, "m", "1", profiled_model(MIXED).signature)


@pytest.mark.parametrize(
    ("rows_max", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (5, (1, 2, 3, 4, 5)),
        (8, (1, 2, 3, 4, 6, 8)),
        (40, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)),
    ],
)
def test_the_sizes_that_are_measured(rows_max: int, sizes: tuple[int, ...]) -> None:
    assert default_sizes(rows_max) == sizes


def test_the_line_through_affine_times_is_exact() -> None:
    fit = fit_line([1, 2, 4, 8], [1.053 * b + 5.072 for b in (1, 2, 4, 8)])
    assert (fit.alpha_ns, fit.beta_ns) == (pytest.approx(1.053), pytest.approx(5.072))
    assert fit.r_squared == pytest.approx(1)
    assert fit_line([1, 2, 4], [1, 9, 1]).r_squared < 0.1
    assert fit_line([4], [7]).beta_ns == 7
    assert fit_line([1, 2], [3, 3]).r_squared == 1


def test_one_size_tells_no_line() -> None:
    told = line_text(profile_of({4: 19.0}))
    assert told == "no line: only batches of 4 rows were measured"
    assert "batches of 1 row were" in line_text(profile_of({1: 19.0}))
    assert "l(b) = " not in svg(profile_of({4: 19.0}))
    told = line_text(profile_of({1: 6.0, 2: 7.0}))
    assert told == "l(b) = 1 ms * b + 5 ms, R2 1.0000"


# -- inputs


def parsed(maker: RequestMaker, rows: int) -> service_pb2.ModelInferRequest:
    return service_pb2.ModelInferRequest.FromString(maker.message(rows))


def test_random_inputs_make_requests_of_any_rows() -> None:
    maker = RequestMaker(MIXED, random_inputs(MIXED, {"A": (3, 2)}, seed=1))
    for rows in (1, 70):
        request = parsed(maker, rows)
        assert [(i.name, i.datatype, list(i.shape)) for i in request.inputs] == [
            ("A", "FP32", [rows, 3, 2]),
            ("W", "BYTES", [rows, 1]),
        ]
        assert len(request.raw_input_contents[0]) == rows * 6 * 4


def test_a_model_without_a_batch_dimension_gets_none() -> None:
    plain = spec('name: "p" input { name: "A" data_type: TYPE_INT32 dims: 4 }')
    request = parsed(RequestMaker(plain, random_inputs(plain, {}, 1)), 1)
    assert list(request.inputs[0].shape) == [4]


def test_real_inputs_come_from_npz_and_json(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    np.savez(tmp_path / "i.npz", A=rows, W=np.array([["x"], ["y"], ["z"]]))
    (tmp_path / "i.json").write_text(json.dumps({"A": rows.tolist(), "W": [["x"], ["y"], ["z"]]}))
    (tmp_path / "kserve.json").write_text(
        json.dumps(
            {"inputs": [
                {"name": "A", "datatype": "FP32", "shape": [3, 2, 2],
                 "data": rows.ravel().tolist()},
                {"name": "W", "datatype": "BYTES", "shape": [3, 1], "data": ["x", "y", "z"]},
            ]}
        )
    )  # fmt: skip
    made = [
        parsed(RequestMaker(MIXED, read_inputs(tmp_path / name)), 4)
        for name in ("i.npz", "i.json", "kserve.json")
    ]
    assert made[0] == made[1] == made[2]
    # The fourth row is the first one again.
    assert made[0].raw_input_contents[0] == rows.tobytes() + rows[:1].tobytes()
    assert made[0].raw_input_contents[1].endswith(b"\x01\0\0\0z\x01\0\0\0x")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"A": [[[1.0, 2.0]]]}, "input W is missing"),
        ({"A": [[[1.0, 2.0]]], "W": [["x"]], "C": [1]}, "input C is none of the model's"),
        ({"A": [[[1.0, 2.0, 3.0]]], "W": [["x"]]}, "rows of shape"),
        ({"A": [], "W": [["x"]]}, "has no rows"),
        ({"A": [[["a", "b"]]], "W": [["x"]]}, "the model wants float32"),
        ({"A": [[[1.0, 2.0]]], "W": [["x"]], "B": [[1.5]]}, "the model wants int64"),
    ],
)
def test_inputs_that_do_not_fit_say_why(arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        RequestMaker(MIXED, {name: np.array(value) for name, value in arrays.items()})


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({}, "--shape A=16,2"),
        ({"A": (3,)}, "dims"),
        ({"A": (3, 3)}, "dims"),
        ({"A": (-1, 2)}, "dims"),
        ({"A": (1, 2), "X": (1,)}, "input X is none"),
    ],
)
def test_shapes_that_do_not_fit_say_why(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        random_inputs(MIXED, shapes, 1)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"inputs": [{"name": "A"}]}', '{"A": [[1], 2]}'])
def test_an_input_file_that_cannot_be_read_says_so(tmp_path: Path, text: str) -> None:
    for name in ("i.json", "i.npz"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name):
            read_inputs(tmp_path / name)


# -- picture


def test_the_picture_is_xml_and_shows_every_size() -> None:
    root = ElementTree.fromstring(svg(profile_of({1: 6, 2: 7, 64: 73}, name="<m>")))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 3
    assert all(0 <= float(c.get("cx", "-1")) <= 720 for c in circles)
    assert all(0 <= float(c.get("cy", "-1")) <= 440 for c in circles)
    texts = [e.text or "" for e in root.iter() if e.tag.endswith("text")]
    assert "<m> version 1" in texts
    assert any("l(b) = " in text for text in texts)


def test_a_profile_of_one_size_can_be_drawn() -> None:
    ElementTree.fromstring(svg(profile_of({1: 0.2})))
