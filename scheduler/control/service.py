"""The Control service (protos/scheduler/v1/control.proto): what the scheduler knows, read-only."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import grpc

from scheduler import __version__
from scheduler.backends.pool import CatalogEntry
from scheduler.backends.remembered import ModelKey
from scheduler.backends.watch import BackendStatus
from scheduler.config.errors import path_text
from scheduler.control.desired import batching_message, tensor_message
from scheduler.control.plane import ControlPlane
from scheduler.control.residency.on_demand import Shown
from scheduler.memory.table import DeviceMemory
from scheduler.v1 import control_pb2 as pb
from scheduler.v1 import control_pb2_grpc, dataplane_pb2

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["Control"].full_name

OLD_FIGURES = "its figures are old, so its headroom is wider"


class ControlServicer(control_pb2_grpc.ControlServicer):
    """Reads the plane's tables, the counters page and, for queues and batches, a snapshot."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:
        plane = self._plane
        entries = plane.pool.catalog.values()
        watches = plane.pool.watches.values()
        page = plane.counters.page()
        return pb.GetStatusResponse(
            version=__version__,
            control_plane_started_at_s=plane.started_at_s,
            ready=plane.readiness.ready,
            draining=plane.readiness.draining,
            listen_addresses=plane.parameters.listen,
            data_plane=pb.DataPlaneStatus(
                connected=plane.steering.connected,
                pid=plane.steering.data_plane_pid,
                applied_generation=plane.steering.applied_generation,
                apply_error=plane.steering.apply_error,
                client_connections=page["client_connections"],
                host_bytes=page["host_bytes"],
                loop_lag_max_ns=page["loop_lag_max_ns"],
            ),
            models=len(entries),
            models_ready=sum(entry.ready for entry in entries),
            backends=len(watches),
            backends_serving=sum(w.status is BackendStatus.SERVING for w in watches),
            config_reload_failures=plane.reload_failures,
            # Versions of one model have the same settings, and their problems once.
            problems=dict.fromkeys(
                [
                    *(text for entry in entries for text in self._problems(entry)),
                    *plane.devices.problems,
                    *plane.residency.problems,
                ]
            ),
            residency=self._residency_places(),
            devices=len(plane.devices.current),
            devices_known=sum(device.known for device in plane.devices.current.values()),
        )

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        entries = [
            entry
            for (name, _), entry in self._plane.pool.catalog.items()
            if not request.name or name == request.name
        ]
        shown = {s.name: s for s in self._plane.residency.shown() if request.name in ("", s.name)}
        if request.name and not entries and not shown:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no model {request.name!r} in the catalog"
            )
        answer = pb.ListModelsResponse(models=[self._model(entry) for entry in entries])
        for name in shown.keys() - {entry.spec.name for entry in entries}:
            answer.models.add(name=name)
        answer.models.sort(key=lambda model: (model.name, int(model.version or 0)))
        for model in answer.models:
            if model.name in shown:
                self._add_residency(model, shown[model.name])
        return answer

    async def ListBackends(self, request: Any, context: Any) -> pb.ListBackendsResponse:
        plane = self._plane
        answer = pb.ListBackendsResponse()
        for address, watch in plane.pool.watches.items():
            index = plane.desired.backend_index.get(address)
            counters = (plane.counters.backend(index) if index is not None else None) or {}
            answer.backends.add(
                address=address,
                state=f"BACKEND_STATE_{watch.status.name}",
                reason=watch.reason,
                server_version=watch.server.version if watch.server else "",
                connections_open=counters.get("connections_open", 0),
                connections_wanted=plane.pool.backends[address].connections,
                models_ready=len(watch.ready_models),
                inflight_batches=counters.get("inflight_batches", 0),
                inflight_rows=counters.get("inflight_rows", 0),
                batches_total=counters.get("batches", 0),
                failed_batches_total=counters.get("failed_batches", 0),
            )
        return answer

    async def ListDevices(self, request: Any, context: Any) -> pb.ListDevicesResponse:
        devices, now_ns = self._plane.devices, time.monotonic_ns()
        answer = pb.ListDevicesResponse()
        for key, device in sorted(devices.table.devices(now_ns).items()):
            status = device_status(device, devices.models_on(key))
            status.reserved_bytes = devices.reserved_bytes(key, self._plane.counters)
            answer.devices.append(status)
        for name, problem in devices.table.source_problems.items():
            answer.sources.add(name=name, problem=problem)
        return answer

    async def ListQueues(
        self, request: Any, context: grpc.aio.ServicerContext
    ) -> pb.ListQueuesResponse:
        snapshot = await self._snapshot(context)
        answer = pb.ListQueuesResponse()
        for model in snapshot.models:
            key = self._plane.desired.model_at(model.index)
            if key is None:
                continue
            batching = self._plane.batching_for(key[0])
            answer.queues.add(
                model_name=key[0],
                model_version=key[1],
                queued_requests=model.queued_requests,
                queued_rows=model.queued_rows,
                queued_bytes=model.queued_bytes,
                oldest_age_ns=model.oldest_age_ns,
                requests_max=batching.max_queue_requests,
                bytes_max=batching.max_queue_bytes,
                inflight_batches=model.inflight_batches,
            )
        return answer

    async def ListBatches(
        self, request: Any, context: grpc.aio.ServicerContext
    ) -> pb.ListBatchesResponse:
        snapshot = await self._snapshot(context)
        answer = pb.ListBatchesResponse()
        for batch in snapshot.batches:
            key = self._plane.desired.model_at(batch.model_index) or ("", "")
            answer.batches.add(
                model_name=key[0],
                model_version=key[1],
                backend_address=self._plane.desired.backend_at(batch.backend_index) or "",
                requests=batch.requests,
                rows=batch.rows,
                age_ns=batch.age_ns,
                memory_limited=batch.memory_limited,
            )
        return answer

    async def GetEffectiveConfig(self, request: Any, context: Any) -> pb.GetEffectiveConfigResponse:
        values = [
            pb.ConfigValue(path=path_text(path), value_json=json.dumps(value), origin=origin)
            for path, value, origin in self._plane.loaded.effective()
        ]
        return pb.GetEffectiveConfigResponse(values=values)

    async def _snapshot(self, context: grpc.aio.ServicerContext) -> dataplane_pb2.Snapshot:
        try:
            return await self._plane.steering.snapshot()
        except (ConnectionError, asyncio.TimeoutError) as error:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, f"the data plane does not answer: {error!r}"
            )
            raise AssertionError("abort returned") from error

    def _model(self, entry: CatalogEntry) -> pb.ModelStatus:
        plane, spec = self._plane, entry.spec
        off = plane.merging_off(entry)
        batching = batching_message(plane.batching_for(spec.name), spec, merge=not off)
        if not off and not batching.merge:
            off = "switched off by the configuration"
        status = pb.ModelStatus(
            name=spec.name,
            version=spec.version,
            is_default_version=entry.is_default_version,
            ready=entry.ready,
            max_batch_size=spec.max_batch_size,
            inputs=[tensor_message(tensor) for tensor in spec.inputs],
            outputs=[tensor_message(tensor) for tensor in spec.outputs],
            decoupled=spec.decoupled,
            sequence=spec.sequence,
            batching=batching,
            merging_off_reason=off,
        )
        key = (spec.name, spec.version)
        for placement in entry.placements:
            status.placements.add(
                backend_address=placement.address,
                instances=placement.instances,
                ready=placement.ready,
                conflict=placement.conflict,
                executor_group=plane.desired.executor_groups.get((key, placement.address), 0),
                latency=plane.latencies.current.get((key, placement.address)),
            )
        for device, need in plane.needs.of_model(key).items():
            status.memory.add(device=device, need=need)
        status.problems.extend(self._problems(entry))
        self._add_totals(status)
        return status

    def _add_residency(self, model: pb.ModelStatus, shown: Shown) -> None:
        counted = [
            loads
            for (name, _), loads in self._plane.residency.loader.counted.items()
            if name == shown.name
        ]
        model.residency.MergeFrom(
            pb.ModelResidency(
                state=shown.state,
                pinned=shown.pinned,
                weight_bytes=sum(shown.weights.values()),
                idle_ns=int(shown.idle_s * 1e9) if shown.idle_s >= 0 else -1,
                load_ns=shown.load_ns,
                error=shown.error,
                backends=shown.backends,
                loads=sum(loads.loads for loads in counted),
                unloads=sum(loads.unloads for loads in counted),
                load_failures=sum(loads.failures for loads in counted),
            )
        )

    def _residency_places(self) -> list[pb.ResidencyPlace]:
        residency = self._plane.residency
        if not residency.on:
            return []
        return [
            pb.ResidencyPlace(place=place, resident_bytes=used, budget_bytes=budget)
            for place, (used, budget) in residency.weights_by_place().items()
        ]

    def _problems(self, entry: CatalogEntry) -> list[str]:
        name, batching = entry.spec.name, self._plane.batching_for(entry.spec.name)
        key = (name, entry.spec.version)
        found = self._plane.latencies.problems(key, batching)
        return [
            *(f"models.{name}.{setting}: {text}" for setting, text in found.items()),
            *(f"model {name}: {text}" for text in self._plane.desired.inert.get(key, ())),
        ]

    def _add_totals(self, status: pb.ModelStatus) -> None:
        index = self._plane.desired.model_index.get((status.name, status.version))
        counters = self._plane.counters.model(index) if index is not None else None
        if counters is None:
            return
        for key in ("completed", "refused", "expired", "cancelled", "failed", "in_flight"):
            setattr(status.requests, key, counters[key])
        status.requests.batches = counters["batches"]
        status.requests.batch_rows = counters["batch_rows"][1]
        for level, (total, good) in counters["levels"].items():
            status.requests.objectives.add(priority=level, total=total, good=good)


def device_status(device: DeviceMemory, models: Sequence[ModelKey]) -> pb.DeviceStatus:
    reading = device.reading
    status = pb.DeviceStatus(
        key=device.key,
        name=reading.name,
        source=device.source,
        known=device.known,
        problem=device.problem or (OLD_FIGURES if device.old else ""),
        total_bytes=reading.total_bytes,
        free_bytes=reading.free_bytes,
        used_bytes=reading.used_bytes,
        driver_bytes=reading.reserved_bytes,
        headroom_bytes=device.headroom_bytes,
        age_ns=device.age_ns,
        mig=reading.mig,
        slowed_by_heat=reading.slowed_by_heat,
        schedulers=device.schedulers,
        models=[f"{name} {version}" for name, version in models],
    )
    for process in reading.processes:
        status.processes.add(pid=process.pid, used_bytes=process.used_bytes or 0)
    for event, count in sorted(reading.events.items()):
        status.events.add(event=event, count=count)
    return status
