"""How many models a data plane takes: as many as the counters page has places for."""

from __future__ import annotations

import os

import pytest

from scheduler._native.counters import MODELS_MAX
from scheduler._native.gateway import Gateway
from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import identity_model
from tests.unit.gateway.shell import Loop, Timer

pytestmark = pytest.mark.native


def test_the_last_place_of_the_counters_page_is_given_and_the_next_model_refused() -> None:
    counters = os.memfd_create("counters")
    gateway = Gateway(Loop(), Timer(), counters, lambda *_: None)
    last = identity_model(MODELS_MAX - 1, "last", backends=())
    assert gateway.apply(pb.Apply(generation=1, models=[last])) == ""
    beyond = identity_model(MODELS_MAX, "beyond", backends=())
    refused = gateway.apply(pb.Apply(generation=2, models=[last, beyond]))
    assert f"of 'beyond' is not below {MODELS_MAX}" in refused
    os.close(counters)
