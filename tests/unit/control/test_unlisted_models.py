"""Models that a Triton serves and does not list in its index."""

from __future__ import annotations

import asyncio

from tests.unit.control.test_catalog import MODEL, make_watch
from tests.unit.control.triton_answers import IDENTITY, ScriptedCalls


def test_a_model_that_is_served_and_not_listed_is_found() -> None:
    """As those are whose files came with the call that loaded them."""
    calls = ScriptedCalls(identity=IDENTITY)
    calls.unlisted.add("identity")
    watch = make_watch(calls)
    watch.take_probe(calls.answer)
    for _ in range(3):
        asyncio.run(watch.refresh())
        assert watch.ready_models == {MODEL}
    del calls.states[MODEL]
    asyncio.run(watch.refresh())
    assert watch.ready_models == set()
    calls.states[MODEL] = "READY"
    asyncio.run(watch.refresh())
    assert watch.ready_models == set(), "nobody asks for it"
    asyncio.run(watch.refresh(["identity"]))
    assert watch.ready_models == {MODEL}
