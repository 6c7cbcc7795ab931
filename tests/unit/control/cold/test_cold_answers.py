"""How the answers of many backends become one."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import text_format
from tritonclient.grpc import service_pb2

from scheduler.backends.local import is_local
from scheduler.backends.probe import RpcError
from scheduler.config import Batching
from scheduler.control.cold.errors import ColdError
from scheduler.control.cold.fan_out import Outcome
from scheduler.control.cold.repository import merged_index
from scheduler.control.cold.statistics import add_runs_inside_ensembles, merged_statistics
from scheduler.control.desired import batching_message
from scheduler.control.turns import Turns
from tests.unit.control.triton_answers import spec

INTERNAL = grpc.StatusCode.INTERNAL


def index(text: str) -> service_pb2.RepositoryIndexResponse:
    return text_format.Parse(text, service_pb2.RepositoryIndexResponse())


def statistics(text: str) -> service_pb2.ModelStatisticsResponse:
    return text_format.Parse(text, service_pb2.ModelStatisticsResponse())


# -- failures


def test_one_backend_speaks_for_itself() -> None:
    outcome = Outcome({}, (RpcError("a:1", INTERNAL, "it broke"),), named=False)
    with pytest.raises(ColdError) as raised:
        outcome.raise_failures()
    assert (raised.value.code, raised.value.text) == (INTERNAL, "it broke")


def test_every_failure_names_its_backends_and_the_first_gives_the_code() -> None:
    failures = (
        RpcError("a:1", INTERNAL, "it broke"),
        RpcError("b:1", grpc.StatusCode.UNAVAILABLE, "refused"),
        RpcError("c:1", INTERNAL, "it broke"),
    )
    with pytest.raises(ColdError) as raised:
        Outcome({"d:1": None}, failures, named=True).raise_failures()
    assert raised.value.code is INTERNAL
    assert raised.value.text == (
        "it broke (backends a:1, c:1); refused (backend b:1); it succeeded on backend d:1"
    )


def test_no_failure_raises_nothing() -> None:
    Outcome({"a:1": None}, (), named=True).raise_failures()


# -- the repository index


@pytest.mark.parametrize(
    ("here", "there", "merged"),
    [
        ("READY", "UNAVAILABLE", "READY"),
        ("UNAVAILABLE", "LOADING", "LOADING"),
        ("UNLOADING", "UNAVAILABLE", "UNLOADING"),
        ("UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"),
        ("SOMETHING_NEW", "UNAVAILABLE", "UNAVAILABLE"),
    ],
)
def test_a_version_has_its_best_state(here: str, there: str, merged: str) -> None:
    answers = {
        address: index(f'models {{ name: "m" version: "1" state: "{state}" }}')
        for address, state in (("a:1", here), ("b:1", there))
    }
    assert [model.state for model in merged_index(answers).models] == [merged]


def test_reasons_of_the_state_shown_are_kept_with_their_backends() -> None:
    failed = 'models {{ name: "m" version: "1" state: "{}" reason: "{}" }}'
    alone = merged_index({"a:1": index(failed.format("UNAVAILABLE", "no file"))})
    assert [model.reason for model in alone.models] == ["no file"]
    both = merged_index(
        {
            "a:1": index(failed.format("UNAVAILABLE", "no file")),
            "b:1": index(failed.format("UNAVAILABLE", "unloaded")),
            "c:1": index(failed.format("", "not looked at")),
        }
    )
    assert both.models[0].reason == "no file (backend a:1); unloaded (backend b:1)"


def test_a_model_without_a_version_is_listed_only_where_nobody_knows_one() -> None:
    answers = {
        "a:1": index('models { name: "m" } models { name: "n" }'),
        "b:1": index(
            'models { name: "m" version: "10" state: "READY" }'
            'models { name: "m" version: "9" state: "READY" }'
        ),
    }
    listed = [(model.name, model.version) for model in merged_index(answers).models]
    assert listed == [("m", "9"), ("m", "10"), ("n", "")]


# -- statistics


def test_statistics_are_added_up_by_version_size_place_and_device() -> None:
    one = statistics("""
        model_stats {
          name: "m" version: "1" last_inference: 50 inference_count: 10 execution_count: 2
          inference_stats { success { count: 3 ns: 30 } fail { } }
          batch_stats { batch_size: 4 compute_infer { count: 1 ns: 5 } }
          memory_usage { type: "GPU" id: 0 byte_size: 100 }
          response_stats { key: "0" value { success { count: 7 ns: 70 } } }
        }
        model_stats { name: "only here" version: "2" execution_count: 1 }""")
    two = statistics("""
        model_stats {
          name: "m" version: "1" last_inference: 40 inference_count: 1 execution_count: 1
          inference_stats { success { count: 1 ns: 9 } fail { count: 2 ns: 8 } }
          batch_stats { batch_size: 4 compute_infer { count: 2 ns: 6 } }
          batch_stats { batch_size: 8 compute_infer { count: 1 ns: 1 } }
          memory_usage { type: "GPU" id: 0 byte_size: 10 }
          memory_usage { type: "GPU" id: 1 byte_size: 1 }
          response_stats { key: "1" value { cancel { count: 1 ns: 2 } } }
        }""")
    assert merged_statistics([one, two]) == statistics("""
        model_stats {
          name: "m" version: "1" last_inference: 50 inference_count: 11 execution_count: 3
          inference_stats { success { count: 4 ns: 39 } fail { count: 2 ns: 8 } }
          batch_stats { batch_size: 4 compute_infer { count: 3 ns: 11 } }
          batch_stats { batch_size: 8 compute_infer { count: 1 ns: 1 } }
          memory_usage { type: "GPU" id: 0 byte_size: 110 }
          memory_usage { type: "GPU" id: 1 byte_size: 1 }
          response_stats { key: "0" value { success { count: 7 ns: 70 } } }
          response_stats { key: "1" value { cancel { count: 1 ns: 2 } } }
        }
        model_stats { name: "only here" version: "2" execution_count: 1 }""")


def test_a_step_of_an_ensemble_is_completed_by_what_its_tritons_ran() -> None:
    # Two batches of 12 requests went there; the Tritons ran three more for ensembles.
    ours = statistics("""model_stats { name: "m" version: "1" last_inference: 50
      inference_count: 40 execution_count: 2
      inference_stats { success { count: 12 ns: 900 } fail { count: 1 ns: 5 }
        queue { count: 12 ns: 300 } compute_infer { count: 12 ns: 600 }
        compute_input { count: 12 } compute_output { count: 12 } }
      batch_stats { batch_size: 20 compute_infer { count: 2 ns: 100 } } }""")
    theirs = statistics("""model_stats { name: "m" version: "1" last_inference: 90
      inference_count: 46 execution_count: 5
      inference_stats { success { count: 5 ns: 200 } queue { count: 5 ns: 20 }
        compute_input { count: 5 ns: 30 } compute_infer { count: 5 ns: 110 }
        compute_output { count: 5 ns: 40 } }
      batch_stats { batch_size: 20 compute_infer { count: 2 ns: 60 } }
      batch_stats { batch_size: 2 compute_infer { count: 3 ns: 50 } } }""")
    completed = statistics("""model_stats { name: "m" version: "1" last_inference: 90
      inference_count: 46 execution_count: 5
      inference_stats { success { count: 15 ns: 1000 } fail { count: 1 ns: 5 }
        queue { count: 15 ns: 320 } compute_infer { count: 15 ns: 610 }
        compute_input { count: 15 ns: 30 } compute_output { count: 15 ns: 40 } }
      batch_stats { batch_size: 20 compute_infer { count: 2 ns: 60 } }
      batch_stats { batch_size: 2 compute_infer { count: 3 ns: 50 } } }""")
    add_runs_inside_ensembles(ours.model_stats[0], theirs.model_stats[0])
    assert ours == completed


def test_a_step_is_not_counted_down_by_a_triton_that_began_anew() -> None:
    ours = statistics("""model_stats { name: "m" version: "1" last_inference: 50
      inference_count: 40 execution_count: 2
      inference_stats { success { count: 12 ns: 900 } compute_infer { count: 12 ns: 600 } }
      batch_stats { batch_size: 20 compute_infer { count: 2 ns: 100 } } }""")
    theirs = statistics("""model_stats { name: "m" version: "1" last_inference: 90
      inference_count: 1 execution_count: 1
      inference_stats { success { count: 1 ns: 8 } compute_infer { count: 1 ns: 7 } }
      batch_stats { batch_size: 1 compute_infer { count: 1 ns: 7 } } }""")
    add_runs_inside_ensembles(ours.model_stats[0], theirs.model_stats[0])
    (model,) = ours.model_stats
    assert (model.inference_count, model.execution_count) == (40, 2)
    times = model.inference_stats
    assert (times.success.count, times.success.ns, times.compute_infer.ns) == (12, 900, 600)
    assert [batch.batch_size for batch in model.batch_stats] == [20]


# -- turns


def test_operations_on_a_name_follow_each_other_and_others_do_not_wait() -> None:
    async def run() -> list[str]:
        turns, order = Turns(), []
        gate = asyncio.Event()

        async def operation(label: str, names: list[str], wait: bool = False) -> None:
            async with turns.of(names):
                order.append(label)
                if wait:
                    await gate.wait()

        first = asyncio.create_task(operation("a", ["m"], wait=True))
        await asyncio.sleep(0)
        second = asyncio.create_task(operation("b", ["n", "m"]))
        await operation("c", ["o"])
        assert order == ["a", "c"]
        gate.set()
        await asyncio.gather(first, second)
        await operation("d", ["n"])
        assert not turns.names
        return order

    assert asyncio.run(run()) == ["a", "c", "b", "d"]


def test_one_that_was_cancelled_while_it_waited_holds_nothing() -> None:
    async def run() -> None:
        turns = Turns()
        async with turns.of(["m"]):
            waiting = asyncio.create_task(_enter(turns, ["a", "m"]))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await asyncio.wait_for(_enter(turns, ["a"]), 5)
        assert not turns.names

    asyncio.run(run())


async def _enter(turns: Turns, names: list[str]) -> None:
    async with turns.of(names):
        pass


# -- policies of direct models; hosts


@pytest.mark.parametrize(
    ("block", "direct_max", "idle_ns"),
    [
        ("", 0, 0),
        ("model_transaction_policy { decoupled: true }", 1024, 0),
        ("sequence_batching { }", 1024, 1_000_000_000),
        ("sequence_batching { max_sequence_idle_microseconds: 5000 }", 1024, 5_000_000),
    ],
)
def test_what_triton_schedules_itself_is_not_bound_by_instances(
    block: str, direct_max: int, idle_ns: int
) -> None:
    message = batching_message(Batching(), spec(f'name: "m" {block}'), merge=False)
    assert (message.direct_max, message.sequence_idle_ns) == (direct_max, idle_ns)


def test_the_bound_of_direct_models_can_be_set() -> None:
    sequence = spec('name: "m" sequence_batching { }')
    assert batching_message(Batching(max_inflight=7), sequence, merge=False).direct_max == 7


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("192.0.2.1", False),
        ("a..b", False),  # no name at all
        ("a" * 64, False),
    ],
)
def test_backends_of_this_host_are_known(host: str, local: bool) -> None:
    assert asyncio.run(is_local(host)) is local
