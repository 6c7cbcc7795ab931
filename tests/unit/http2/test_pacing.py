"""A large request gets its window in small pieces while small ones come, but on slow links."""

from __future__ import annotations

import random

import pytest

from tests.unit.http2.peers import INFER, Pair, connect, server

pytestmark = pytest.mark.native

WINDOW_BYTES = 1 << 20
PACED_BYTES = 128 << 10
SIZE = 8 << 20
FRAMING_BYTES = 1 << 10
FOR_EVER = 1 << 62
MILLISECOND = 1_000_000


def portions(pair: Pair, ns_per_byte: float = 0.0) -> list[int]:
    """What the client of a large request sends at once, each time it may."""
    pair.client.call(INFER, bytes(SIZE))
    sent = []
    while True:
        portion = 0
        while data := pair.client.pull():
            portion += len(data)
            pair.server.feed(data, pair.now)
            pair.now += round(len(data) * ns_per_byte)
        if portion == 0:
            break
        sent.append(portion)
        pair.client.feed(pair.server.pull(), pair.now)
    (event,) = pair.server.events()
    assert (event.kind, len(event.message)) == ("request", SIZE)
    assert sum(sent) >= SIZE
    pair.server.release(event)
    return sent


def test_after_its_first_window_a_paced_request_comes_in_small_portions() -> None:
    pair = connect(server())
    pair.server.pace_until(FOR_EVER)
    sent = portions(pair)
    whole = 0  # of what comes before, as fast as it would without
    while whole < 2 * WINDOW_BYTES:
        whole += sent.pop(0)
    assert whole <= 2 * WINDOW_BYTES + WINDOW_BYTES // 4 + FRAMING_BYTES
    assert max(sent) <= PACED_BYTES + FRAMING_BYTES
    assert min(sent[:-1]) >= PACED_BYTES // 2


def test_a_request_that_is_alone_comes_in_large_portions() -> None:
    assert min(portions(connect(server()))[1:-1]) > PACED_BYTES + FRAMING_BYTES


def test_pacing_ends_at_its_moment() -> None:
    pair = connect(server())
    pair.server.pace_until(SIZE // 2)
    sent = portions(pair, ns_per_byte=1.0)
    paced = [portion <= PACED_BYTES + FRAMING_BYTES for portion in sent[:-1]]
    first = paced.index(True)
    assert paced == [False] * first + [True] * sum(paced) + [False] * (
        len(paced) - first - sum(paced)
    )
    assert sum(sent[: first + sum(paced)]) <= SIZE // 2 + WINDOW_BYTES
    assert not paced[-1]


@pytest.mark.parametrize(("ns_per_byte", "paced"), [(3.0, True), (6.0, False)])
def test_a_slow_link_is_not_made_slower(ns_per_byte: float, paced: bool) -> None:
    pair = connect(server())
    pair.server.pace_until(FOR_EVER)
    sent = portions(pair, ns_per_byte)
    assert (sent[-2] <= PACED_BYTES + FRAMING_BYTES) == paced


@pytest.mark.parametrize("rtt_ms", [1, 10, 40])
@pytest.mark.parametrize("size", [3 << 19, 2 << 20, SIZE])
def test_a_long_way_costs_no_more_round_trips(rtt_ms: int, size: int) -> None:
    def took_ns(paced: bool) -> int:
        pair = connect(server())
        pair.server.pace_until(FOR_EVER if paced else 0)
        began = pair.now
        pair.client.call(INFER, bytes(size))
        while data := pair.client.pull():
            while data:  # all that its window allows, at 8 Gbit/s
                pair.server.feed(data, pair.now)
                pair.now += len(data)
                data = pair.client.pull()
            pair.now += rtt_ms * MILLISECOND
            pair.client.feed(pair.server.pull(), pair.now)
        return pair.now - began

    # But for what would be faster than 250 MB/s.
    assert took_ns(True) <= max(took_ns(False), 4 * size) + rtt_ms * MILLISECOND


def test_windows_smaller_than_a_portion_stay_as_they_are() -> None:
    windows = {"stream_window_bytes": 1 << 16}
    alone, paced = connect(server(**windows)), connect(server(**windows))
    paced.server.pace_until(FOR_EVER)
    assert portions(alone) == portions(paced)


@pytest.mark.parametrize("number", range(20))
def test_a_request_gets_through_however_often_pacing_begins_and_ends(
    number: int, seed: int
) -> None:
    rng = random.Random(seed + number)
    pair = connect(server())
    pair.client.call(INFER, bytes(SIZE))
    while data := pair.client.pull():
        pair.server.pace_until(FOR_EVER if rng.random() < 0.5 else 0)
        pair.server.feed(data, pair.now)
        if rng.random() < 0.7:
            pair.client.feed(pair.server.pull(), pair.now)
    pair.pump()
    assert [len(event.message) for event in pair.take_server()] == [SIZE]
