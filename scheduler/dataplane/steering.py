"""The data plane's side of the steering interface (protos/scheduler/v1/dataplane.proto)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection
from typing import cast

from scheduler._native.gateway import Gateway
from scheduler.dataplane.device_figures import OUTLIVE_S, DeviceFigures
from scheduler.dataplane.files import ConnectionLimit
from scheduler.dataplane.frames import INTERFACE_VERSION, FrameError, FrameReader, pack_frame
from scheduler.dataplane.segment import Segment, create_segment, remove_abandoned
from scheduler.v1 import dataplane_pb2 as pb

log = logging.getLogger("infersched.dataplane")

# What a control plane may leave unread; then it is told everything again when it comes back.
UNREAD_BYTES_MAX = 16 << 20

# Values of the binding's notice kinds, in its order.
BACKEND_CONNECTION, BACKEND_LEAVING, MERGING_SWITCHED_OFF, DRAINED = range(4)
SHARED_MEMORY_LOST, MODEL_WANTED = range(4, 6)
# Where an Apply does not say.
CONNECTIONS_MAX = 10_000


class Steering:
    """Applies what control planes say, and tells every connected one what happens."""

    def __init__(self, on_applied: Callable[[pb.Apply], None]) -> None:
        self._on_applied = on_applied
        self._peers: set[SteeringProtocol] = set()
        self._gateway: Gateway | None = None
        self._figures = DeviceFigures(lambda: self.gateway)
        self._connections = ConnectionLimit()
        self._segment: Segment | None = None
        self._shared_memory_failed = False

    def attach(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def gateway(self) -> Gateway:
        if self._gateway is None:
            raise RuntimeError("steering is used before a gateway is attached")
        return self._gateway

    def protocol(self) -> SteeringProtocol:
        return SteeringProtocol(self)

    def connected(self, peer: SteeringProtocol) -> None:
        self._peers.add(peer)
        hello = pb.Hello(
            interface_version=INTERFACE_VERSION,
            pid=os.getpid(),
            generation=self.gateway.generation,
        )
        peer.send(pb.FromDataPlane(hello=hello))
        for name, requests, *_ in self.gateway.loading():
            wanted = pb.ModelWanted(name=name, waiting=requests)
            peer.send(pb.FromDataPlane(event=pb.Event(model_wanted=wanted)))

    def disconnected(self, peer: SteeringProtocol) -> None:
        self._peers.discard(peer)
        if not self._peers and self._gateway is not None:
            asyncio.get_running_loop().call_later(OUTLIVE_S, self._forget_devices)

    def _forget_devices(self) -> None:
        """Nobody looks at the devices any more."""
        if not self._peers:
            self._figures.forget("there is no control plane")

    def receive(self, peer: SteeringProtocol, message: pb.ToDataPlane) -> None:
        kind = message.WhichOneof("message")
        if kind == "apply":
            limits = message.apply.limits
            wanted = limits.connections_max or CONNECTIONS_MAX
            limits.connections_max = self._connections.within(wanted)
            self._want_shared_memory(limits.shared_memory_bytes_max)
            error = self.gateway.apply(message.apply)
            self._on_applied(message.apply)
            applied = pb.Applied(
                generation=message.apply.generation,
                error=error,
                shared_memory_key=self.gateway.shared_memory_key,
                shared_memory_bytes=self.gateway.shared_memory_bytes,
            )
            peer.send(pb.FromDataPlane(applied=applied))
        elif kind == "snapshot":
            indices = message.snapshot.model_indices
            peer.send(pb.FromDataPlane(snapshot=snapshot(self.gateway, indices)))
        elif kind == "statistics":
            indices = message.statistics.model_indices
            peer.send(pb.FromDataPlane(statistics=statistics(self.gateway, indices)))
        elif kind == "memory":
            self._figures.take(message.memory)
        elif kind == "drain":
            self.gateway.drain(message.drain.deadline_ms)

    def close(self) -> None:
        """Takes away what lasts longer than the process."""
        if self._segment is not None:
            self._segment.remove()

    def _want_shared_memory(self, size: int) -> None:
        if size == 0 or self._segment is not None or self._shared_memory_failed:
            return
        try:
            remove_abandoned()
            segment = create_segment(size)
            self._segment = segment
            self.gateway.adopt_shared_memory(segment.key, segment.fd, segment.size)
        except OSError as error:
            self._shared_memory_failed = True
            log.warning("large tensors go by the wire, there is no shared memory: %s", error)

    def on_notice(
        self, kind: int, backend: int, model: int, connected: bool, unanswered: int, reason: str
    ) -> None:
        """Called by the gateway, in the loop."""
        message = pb.FromDataPlane()
        if kind == BACKEND_CONNECTION:
            message.event.backend_connection.backend_index = backend
            message.event.backend_connection.connected = connected
            message.event.backend_connection.reason = reason
        elif kind == BACKEND_LEAVING:
            message.event.backend_leaving.backend_index = backend
            message.event.backend_leaving.model_index = model
        elif kind == MERGING_SWITCHED_OFF:
            log.warning("merging is off for model index %d: %s", model, reason)
            message.event.merging_switched_off.model_index = model
            message.event.merging_switched_off.reason = reason
        elif kind == SHARED_MEMORY_LOST:
            message.event.shared_memory_lost.backend_index = backend
            message.event.shared_memory_lost.region = reason
        elif kind == MODEL_WANTED:
            message.event.model_wanted.name = reason
            message.event.model_wanted.waiting = unanswered
        else:
            message.drained.unanswered_requests = unanswered
        for peer in self._peers:
            peer.send(message)


class SteeringProtocol(asyncio.Protocol):
    """One connected control plane."""

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._steering.connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._steering.receive(self, pb.ToDataPlane.FromString(frame))
        except (FrameError, ValueError) as error:
            log.error("steering connection closed: %s", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._steering.disconnected(self)
        self._transport = None

    def send(self, message: pb.FromDataPlane) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            log.error("a control plane reads nothing: its steering connection is closed")
            self._transport.abort()
            return
        self._transport.write(pack_frame(message.SerializeToString()))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def snapshot(gateway: Gateway, model_indices: Collection[int] = ()) -> pb.Snapshot:
    """The data plane as it stands now; with indices these models' latencies, too."""
    message = pb.Snapshot(
        generation=gateway.generation,
        draining=gateway.draining,
        client_connections=gateway.client_connections,
        host_bytes=gateway.host_bytes,
    )
    used, backed, quarantined, calls = gateway.shared_memory()
    message.shared_memory.used_bytes = used
    message.shared_memory.backed_bytes = backed
    message.shared_memory.quarantined_calls = quarantined
    message.shared_memory.calls = calls
    queues = gateway.queues(model_indices)
    for index, requests, rows, queued_bytes, age_ns, batches, merging in queues:
        model = message.models.add(
            index=index,
            queued_requests=requests,
            queued_rows=rows,
            queued_bytes=queued_bytes,
            oldest_age_ns=age_ns,
            inflight_batches=batches,
            merging=merging,
        )
        if model_indices:
            _add_latencies(model, gateway)
            for need in gateway.memory(index):
                model.memory.add(**need)
    for index, _, connections, _, batches, rows, state in gateway.backends():
        message.backends.add(
            index=index,
            connections_open=connections,
            inflight_batches=batches,
            inflight_rows=rows,
            state=state,
        )
    for number, backend, requests, rows, age_ns, memory_limited in gateway.batches():
        message.batches.add(
            model_index=number,
            backend_index=backend,
            requests=requests,
            rows=rows,
            age_ns=age_ns,
            memory_limited=memory_limited,
        )
    for name, requests, held, age_ns in gateway.loading():
        message.loading.add(name=name, requests=requests, bytes=held, oldest_age_ns=age_ns)
    for (
        index,
        known,
        free,
        total,
        headroom,
        measured_at_ns,
        fixed,
        reserved,
        own_bytes,
        own_measured_at_ns,
    ) in gateway.devices():
        device = message.devices.add(reserved_bytes=reserved)
        device.memory.index = index
        device.memory.known = known
        device.memory.free_bytes = free
        device.memory.total_bytes = total
        device.memory.headroom_bytes = headroom
        device.memory.measured_at_ns = measured_at_ns
        device.memory.fixed = fixed
        device.memory.own_bytes = own_bytes
        device.memory.own_measured_at_ns = own_measured_at_ns
    return message


def _add_latencies(model: pb.ModelSnapshot, gateway: Gateway) -> None:
    for (
        backend,
        known,
        observations,
        alpha_ns,
        beta_ns,
        margin,
        error_mean,
        beyond_margin,
        rows_target,
        rate_per_s,
        sizes,
        ignored,
    ) in gateway.latencies(model.index):
        latency = model.latencies.add(
            backend_index=backend,
            known=known,
            observations=observations,
            alpha_ns=alpha_ns,
            beta_ns=beta_ns,
            margin=margin,
            error_mean=error_mean,
            beyond_margin=beyond_margin,
            rows_target=rows_target,
            rate_per_s=rate_per_s,
            ignored={kind: count for kind, count in ignored.items() if count},
        )
        for rows, times, expected_ns in sizes:
            latency.sizes.add(rows=rows, batches=times, backend_ns=times * expected_ns)


def statistics(gateway: Gateway, model_indices: Collection[int]) -> pb.Statistics:
    """What happened to the requests of these models, of all where none is named."""
    message = pb.Statistics()
    for (
        index,
        rows,
        batches,
        completed,
        failed,
        rejected,
        cancelled,
        queue_ns,
        backend_ns,
        age_ns,
        sizes,
    ) in gateway.statistics(model_indices):
        model = message.models.add(
            index=index,
            rows=rows,
            batches=batches,
            completed=_counted_time(completed),
            failed=_counted_time(failed),
            rejected=_counted_time(rejected),
            cancelled=_counted_time(cancelled),
            queue_ns=queue_ns,
            backend_ns=backend_ns,
            last_answer_age_ns=age_ns,
        )
        for size, times, size_ns in sizes:
            model.batch_sizes.add(rows=size, batches=times, backend_ns=size_ns)
    return message


def _counted_time(count_and_ns: tuple[int, int]) -> pb.CountedTime:
    return pb.CountedTime(count=count_and_ns[0], total_ns=count_and_ns[1])
