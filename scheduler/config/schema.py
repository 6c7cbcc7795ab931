"""The configuration: every key, its unit, its default and what must hold between keys.

Values are immutable. Durations are stored in nanoseconds and sizes in bytes; `_ns` and `_bytes` are
left out of the keys because the user writes the unit with the value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from scheduler.config.address import Address, parse_address
from scheduler.config.device_memory import (
    DEVICES_MAX,
    DeviceKey,
    DeviceMemory,
    GpuNumber,
    MemoryNeed,
    bare_switch,
)
from scheduler.config.discovery import Discovery
from scheduler.config.headers import ForwardedNames, HeaderNames, listed
from scheduler.config.objectives import (
    ATTAINMENT_DEFAULT,
    QUEUE_REQUESTS,
    QUEUE_REQUESTS_MAX,
    AgeBound,
    Attainment,
    Objective,
    Priorities,
    QueueDelay,
    Tenants,
    Weight,
    objective_problems,
)
from scheduler.config.padding import Padding
from scheduler.config.residency import Residency, ResidencyKind, Weights
from scheduler.config.section import Section
from scheduler.config.tls import BackendTls, ListenerTls
from scheduler.config.units import Duration, Size

INT32_MAX = 2**31 - 1
MILLISECOND = 1_000_000
UINT32_MAX = 2**32 - 1


def _address(value: object) -> Address:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return Address(str(value[0]), int(value[1]))
    return parse_address(value)


def _optional_address(value: object) -> Address | None:
    return None if value is None or value in ("", "none", "off") else _address(value)


def _ascending_sizes(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if any(size < 1 for size in sizes):
        raise ValueError("batch sizes are at least 1")
    return tuple(sorted(set(sizes)))


def _metrics_port(value: object) -> object:
    """An address, or one of the words."""
    value = bare_switch(value)
    if value in ("auto", "off"):
        return value
    address = _address(value)
    if not address.host or not address.port:
        raise ValueError(f"a metrics port needs a host and a port, got {str(address)!r}")
    return str(address)


AddressText = Annotated[Address, BeforeValidator(_address), PlainSerializer(Address.__str__)]
OptionalAddressText = Annotated[
    Address | None,
    BeforeValidator(_optional_address),
    PlainSerializer(lambda address: None if address is None else str(address)),
]
BatchSizes = Annotated[tuple[int, ...], BeforeValidator(listed), AfterValidator(_ascending_sizes)]
CompressionName = Literal["none", "gzip", "deflate"]
Exclusive = Annotated[
    Literal["none", "gpu"],
    Field(description="gpu: of the instances on one GPU, of whatever model, one runs at a time"),
]
ExecutorName = Annotated[
    str,
    Field(
        max_length=256,
        description="backends of one name run on one device: of their instances one runs at a "
        "time, or with exclusive: gpu one on each GPU",
    ),
]
SharedMemoryUse = Annotated[
    Literal["auto", "off"],
    BeforeValidator(bare_switch),
    Field(description="large tensors through shared memory, where the Triton is on this host"),
]
Devices = Annotated[
    tuple[DeviceKey, ...],
    BeforeValidator(listed),
    Field(
        max_length=DEVICES_MAX,
        description="its GPUs in the order of the numbers that instance_group names; needed where "
        "they are not those of NVML on this host",
    ),
]
MetricsPort = Annotated[
    str,
    BeforeValidator(_metrics_port),
    Field(
        description="host:port of its /metrics, for the memory of its GPUs; auto: port 8002 of a "
        "backend of another host whose models run on GPUs; or off"
    ),
]


class Drain(Section):
    """What SIGTERM does: health turns NOT_SERVING, a wait, then no new work, then the end."""

    propagation_wait: Duration = Field(
        default=500 * MILLISECOND,
        description="time load balancers get to see NOT_SERVING before new requests are refused",
    )
    deadline: Duration = Field(
        default=30_000 * MILLISECOND,
        description="time admitted requests get to finish; the rest is answered UNAVAILABLE",
    )


class Server(Section):
    """Listeners and limits of the process as a whole."""

    listen: Annotated[
        tuple[AddressText, ...],
        BeforeValidator(listed),
        Field(min_length=1, description="client listeners; an empty host is every interface"),
    ] = (Address("0.0.0.0", 8001),)
    metrics_listen: OptionalAddressText = Field(
        default=Address("127.0.0.1", 8002),
        description="/metrics and /healthz; none switches it off",
    )
    control_listen: OptionalAddressText = Field(
        default=Address("127.0.0.1", 8004),
        description="the Control service, for the CLI; none switches it off",
    )
    message_bytes_max: Annotated[Size, Field(ge=1024, le=INT32_MAX)] = INT32_MAX
    host_bytes_max: Annotated[Size, Field(ge=2**20)] = 4 * 2**30
    shared_memory_bytes_max: Annotated[Size, Field(ge=0, le=2**40)] = Field(
        default=256 * 2**20,
        description="for large tensors on their way to and from a Triton of this host; 0 is none",
    )
    connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    streams_per_connection_max: Annotated[int, Field(ge=1, le=INT32_MAX)] = Field(
        default=10_000,
        description="calls and streams open at once, 2.4 KB each while idle; a client holds back "
        "what is beyond, without a word",
    )
    forward_metadata: ForwardedNames = ()
    response_compression: CompressionName = Field(
        default="none", description="of answers to clients that accept it"
    )
    readiness: Literal["strict", "lenient"] = Field(
        default="strict",
        description="strict: ready when every model has a ready backend; lenient: when any has",
    )
    state_directory: Path | None = Field(
        default=None,
        description="where what was learned, and the shared memory that clients registered, are "
        "kept over restarts; none keeps them while it runs",
    )
    scheduling_hints: bool = Field(
        default=True,
        description="ask the kernel for short slices for the data plane and a low priority for the "
        "control plane; false: leave them as they are, where a seccomp filter kills for it",
    )
    drain: Drain = Drain()
    tls: ListenerTls = ListenerTls()


class Backend(Section):
    """One Triton, by its gRPC address."""

    address: AddressText
    connections: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="data connections held to it"
    )
    compression: CompressionName = Field(default="none", description="of the requests sent to it")
    exclusive: Exclusive = "none"
    executor: ExecutorName = ""
    shared_memory: SharedMemoryUse = "auto"
    devices: Devices = ()
    metrics: MetricsPort = "auto"
    tls: Annotated[
        BackendTls | None,
        BeforeValidator(lambda value: None if value is False else value),
        Field(description="encrypt; true trusts the system's authorities"),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _reachable(self) -> Backend:
        if not self.address.host or not self.address.port:
            raise ValueError(f"a backend needs a host and a port, got {str(self.address)!r}")
        return self


class Embedded(Section):
    """A Triton that is started and supervised here."""

    model_repository: Path | None = Field(
        default=None, description="directory of models to serve; none starts no Triton"
    )
    connections: Annotated[int, Field(ge=1, le=64)] = 2
    compression: CompressionName = Field(default="none", description="of the requests sent to it")
    exclusive: Exclusive = "none"
    executor: ExecutorName = ""
    shared_memory: SharedMemoryUse = "auto"
    devices: Devices = ()
    model_control_mode: Literal["none", "explicit"] = Field(
        default="none", description="explicit: clients load and unload models"
    )
    load_models: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(
        default=(), description="models to load at start in explicit mode; * is all"
    )

    @model_validator(mode="after")
    def _loads_by_itself(self) -> Embedded:
        if self.load_models and self.model_control_mode != "explicit":
            raise ValueError("load_models needs model_control_mode: explicit; else all are loaded")
        return self


class Batching(Section):
    """How the requests of a model are queued, merged and dispatched."""

    batching: Literal["own", "load_aware", "fixed_delay", "triton"] = Field(
        default="own",
        description="load_aware: sizes, waits and refusals by learned latency, for requests with a "
        "deadline or an slo; fixed_delay: by max_queue_delay and preferred_batch_rows; own: "
        "fixed_delay where one of these two is set, else load_aware; "
        "triton: batches, order and refusals of the model's dynamic_batching block, as "
        "Triton's batcher has them; of the keys below, sizes, delay, slo and priorities are unused",
    )
    dynamic_batching: dict[str, Any] | None = Field(
        default=None,
        description="with batching: triton, a block in the words of config.pbtxt that acts instead "
        "of the model's own, which is best left out at Triton: its batcher would wait again",
    )
    merge: bool = Field(default=True, description="false: every request is dispatched alone")
    max_batch_rows: Annotated[int, Field(ge=0, le=UINT32_MAX)] = Field(
        default=0, description="largest batch in rows; 0 takes the model's max_batch_size"
    )
    preferred_batch_rows: BatchSizes = Field(
        default=(), description="a batch of one of these sizes does not wait for more rows"
    )
    mandatory_batch_rows: BatchSizes = Field(
        default=(), description="batches are padded to one of these sizes"
    )
    max_queue_delay: QueueDelay = Field(
        default=0, description="longest wait for more rows; 0 never waits while a slot is free"
    )
    slo: Objective = Field(default=0, description="latency objective of a request, or none")
    attainment: Attainment = Field(
        default=ATTAINMENT_DEFAULT,
        description="the part of the requests that is to be in time, 0.5 to 0.9999",
    )
    value: Weight | None = Field(
        default=None,
        description="what a request in time is worth against those of other models on the executor "
        "that have a value, too; none: it is not weighed",
    )
    priority_levels: Annotated[int, Field(ge=0, le=32)] = Field(
        default=1, description="number of levels; 1 is the most urgent"
    )
    default_priority: Annotated[int, Field(ge=0, le=32)] = Field(
        default=0, description="level of requests that name none; 0 takes the middle level"
    )
    priorities: Priorities = Field(
        default={},
        description="slo, best_effort and attainment by priority level; else the model's",
    )
    aging: AgeBound = Field(
        default=0,
        description="a request that has waited this long goes before all levels; 0 = never",
    )
    max_queue_requests: Annotated[int, Field(ge=1, le=QUEUE_REQUESTS_MAX)] = QUEUE_REQUESTS
    # Room for a message of the largest size there is.
    max_queue_bytes: Annotated[Size, Field(ge=1)] = 3 * 2**30
    max_queue_age: QueueDelay = Field(
        default=0,
        description="refuse requests while one queued of their level or above is older; 0 = never",
    )
    staged_batches: Annotated[int, Field(ge=0, le=64)] = Field(
        default=2,
        description="batches sent to a backend beyond its instances; 0 = also none that would be "
        "there just as an instance becomes free",
    )
    max_inflight: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1024,
        description="requests of a sequence or decoupled model that are out at a backend at once",
    )
    idempotent: bool = Field(
        default=True, description="a failed merged batch may be run again in parts"
    )
    cancellable: bool = Field(default=False, description="a running batch may be reset at Triton")
    batch_keys: HeaderNames = Field(
        default=(), description="request headers that must agree within a batch"
    )
    profile: Path | None = Field(
        default=None,
        description="a file of `infersched profile`: what is known before the first request",
    )
    memory: MemoryNeed | None = Field(
        default=None, description="of a device; else as learned, or as the profile says at first"
    )
    gpus: Annotated[tuple[GpuNumber, ...], BeforeValidator(listed)] = Field(
        default=(),
        description="numbers of the GPUs that its instances use, where its instance_group does not "
        "tell, as of a python model of KIND_CPU that uses a GPU all the same",
    )
    residency: ResidencyKind = "on_demand"
    weights: Weights = 0
    padding: Padding = Field(
        default=Padding(), description="inputs of different lengths made equal to share a batch"
    )

    @field_validator("dynamic_batching")
    @classmethod
    def _readable_block(cls, block: dict[str, Any] | None) -> dict[str, Any] | None:
        if block is not None:
            from google.protobuf import json_format
            from tritonclient.grpc import model_config_pb2

            try:
                json_format.ParseDict(block, model_config_pb2.ModelDynamicBatching())
            except json_format.ParseError as error:
                raise ValueError(f"not a dynamic_batching block: {error}") from error
        return block

    @property
    def forms_by_delay(self) -> bool:
        """Whether batches are formed by a fixed delay and not by learned latency."""
        if self.batching == "own":
            return bool(self.max_queue_delay or self.preferred_batch_rows)
        return self.batching == "fixed_delay"

    @model_validator(mode="after")
    def _consistent(self) -> Batching:
        for problem in batching_problems(self):
            raise ValueError(problem)
        return self


def batching_problems(batching: Batching, row_limit: int = 0) -> list[str]:
    """Contradictions, as sentences with the fix. `row_limit` is the model's, 0 = unknown."""
    if batching.batching == "triton":
        return []  # all that could contradict itself comes from a block that Triton has accepted
    problems = objective_problems(batching)
    if batching.dynamic_batching is not None:
        problems.append("dynamic_batching needs batching: triton")
    limit = batching.max_batch_rows or row_limit
    if row_limit and batching.max_batch_rows > row_limit:
        problems.append(
            f"max_batch_rows {batching.max_batch_rows} is above the model's max_batch_size "
            f"{row_limit}; lower it or raise max_batch_size in the model's config.pbtxt"
        )
    for key in ("preferred_batch_rows", "mandatory_batch_rows"):
        above = [size for size in getattr(batching, key) if limit and size > limit]
        if above:
            problems.append(f"{key} {above[0]} is above the largest batch of {limit} rows")
    if batching.mandatory_batch_rows and batching.preferred_batch_rows:
        odd = set(batching.preferred_batch_rows) - set(batching.mandatory_batch_rows)
        if odd:
            problems.append(
                f"preferred_batch_rows {min(odd)} is not one of mandatory_batch_rows "
                f"{list(batching.mandatory_batch_rows)}"
            )
    if not batching.merge and (batching.mandatory_batch_rows or batching.preferred_batch_rows):
        problems.append("preferred_batch_rows and mandatory_batch_rows need merge: true")
    if not batching.merge and batching.padding.inputs:
        problems.append("padding needs merge: true")
    if batching.default_priority > max(batching.priority_levels, 1):
        problems.append(
            f"default_priority {batching.default_priority} is not one of the "
            f"{max(batching.priority_levels, 1)} priority_levels"
        )
    return problems


class Logging(Section):
    """Log lines go to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(Section):
    """The whole configuration."""

    server: Server = Server()
    backends: Annotated[tuple[Backend, ...], BeforeValidator(listed)] = ()
    embedded: Embedded = Embedded()
    discovery: Discovery = Discovery()
    tenants: Tenants = Tenants()
    device_memory: DeviceMemory = DeviceMemory()
    residency: Residency = Residency()
    defaults: Batching = Batching()
    models: dict[str, dict[str, Any]] = Field(
        default={}, description="per model: the keys of `defaults` that differ for it"
    )
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _measured_of_one_model(self) -> Settings:
        for key in ("profile", "memory"):
            if getattr(self.defaults, key) is not None:
                raise ValueError(f"{key} in defaults: it is of one model; write models.NAME.{key}")
        return self

    @model_validator(mode="after")
    def _backends_differ(self) -> Settings:
        seen: set[Address] = set()
        for backend in self.backends:
            if backend.address in seen:
                raise ValueError(f"backend {backend.address} is listed twice; keep one")
            seen.add(backend.address)
        if len(self.backends) > 255:
            raise ValueError(f"{len(self.backends)} backends are above the limit of 255")
        return self

    def batching_for(self, model_name: str) -> Batching:
        """`defaults` with the overrides of `models.<model_name>`."""
        overrides = self.models.get(model_name)
        if not overrides:
            return self.defaults
        return Batching.model_validate({**self.defaults.model_dump(), **overrides})
