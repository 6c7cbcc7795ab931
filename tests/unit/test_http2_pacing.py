"""A large request gets its window in small pieces while small ones come, but on slow links."""

from __future__ import annotations

import random

import pytest

from tests.unit.http2_peers import INFER, Pair, connect, server

pytestmark = pytest.mark.native

WINDOW_BYTES = 1 << 20
PACED_BYTES = 128 << 10
SIZE = 8 << 20
FRAMING_BYTES = 1 << 10
FOR_EVER = 1 << 62


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
    pair.server.release(event.bytes)
    return sent


def test_after_its_first_window_a_paced_request_comes_in_small_portions() -> None:
    pair = connect(server())
    pair.server.pace_until(FOR_EVER)
    first, *others = portions(pair)
    assert first <= WINDOW_BYTES + FRAMING_BYTES
    assert max(others) <= PACED_BYTES + FRAMING_BYTES
    assert min(others[:-1]) >= PACED_BYTES // 2


def test_a_request_that_is_alone_comes_in_large_portions() -> None:
    assert min(portions(connect(server()))[1:-1]) > PACED_BYTES + FRAMING_BYTES


def test_pacing_ends_at_its_moment() -> None:
    pair = connect(server())
    pair.server.pace_until(SIZE // 2)
    sent = portions(pair, ns_per_byte=1.0)
    half = len(sent) // 2
    assert max(sent[1:half]) <= PACED_BYTES + FRAMING_BYTES
    assert sent[-2] > PACED_BYTES + FRAMING_BYTES


@pytest.mark.parametrize(("ns_per_byte", "paced"), [(3.0, True), (6.0, False)])
def test_a_slow_link_is_not_made_slower(ns_per_byte: float, paced: bool) -> None:
    pair = connect(server())
    pair.server.pace_until(FOR_EVER)
    sent = portions(pair, ns_per_byte)
    assert (sent[-2] <= PACED_BYTES + FRAMING_BYTES) == paced


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
