"""Answers of a Triton for unit tests: metadata, configuration and a scripted `TritonCalls`."""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from scheduler.backends.catalog import ModelSpec, model_spec
from scheduler.backends.pool import BackendPool, join_catalogs
from scheduler.backends.probe import Answer, CallError, ProbeResult
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.config import Backend
from scheduler.config.schema import Discovery

IDENTITY = """
name: "identity" backend: "python" max_batch_size: 64
input { name: "INPUT0" data_type: TYPE_FP32 dims: 16 }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: 16 }
instance_group { kind: KIND_CPU count: 1 }
"""


def config(text: str = IDENTITY) -> model_config_pb2.ModelConfig:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def spec(text: str = IDENTITY, version: str = "1") -> ModelSpec:
    parsed = config(text)
    metadata = service_pb2.ModelMetadataResponse(name=parsed.name, versions=[version])
    return model_spec(version, metadata, parsed)


class ScriptedCalls:
    """Stands in for TritonCalls: the test sets what the Triton would answer."""

    def __init__(self, **configs: str) -> None:
        self.configs = configs
        self.states: dict[tuple[str, str], str] = {(name, "1"): "READY" for name in configs}
        self.answer = ProbeResult(Answer.READY)
        self.unlisted: set[str] = set()  # names that are served and not in the index
        self.tells_served = True
        self.silences = 0  # questions whether it serves something that come to nothing first
        self.asked_for: list[str] = []  # whether they are served
        self.model_reads: list[tuple[str, str]] = []
        self.probes = 0

    async def close(self) -> None:
        pass

    async def ready(self, timeout_s: float) -> ProbeResult:
        self.probes += 1
        return self.answer

    async def server_metadata(self) -> service_pb2.ServerMetadataResponse:
        self._check()
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    async def index(self) -> service_pb2.RepositoryIndexResponse:
        self._check()
        answer = service_pb2.RepositoryIndexResponse()
        for (name, version), state in self.states.items():
            if name not in self.unlisted:
                answer.models.add(name=name, version=version, state=state)
        return answer

    async def served(self, name: str) -> list[tuple[str, str]] | None:
        self.asked_for.append(name)
        if self.silences:
            self.silences -= 1
            return None
        if not self.tells_served:
            return None
        return [
            key for key, state in self.states.items() if state == "READY" and name in ("", key[0])
        ]

    async def model(
        self, name: str, version: str
    ) -> tuple[service_pb2.ModelMetadataResponse, model_config_pb2.ModelConfig]:
        self._check()
        self.model_reads.append((name, version))
        return self.describe(name, version, self.configs[name])

    @staticmethod
    def describe(
        name: str, version: str, text: str
    ) -> tuple[service_pb2.ModelMetadataResponse, model_config_pb2.ModelConfig]:
        return service_pb2.ModelMetadataResponse(name=name, versions=[version]), config(text)

    def _check(self) -> None:
        if self.answer.answer not in (Answer.READY, Answer.NOT_READY):
            raise CallError("UNAVAILABLE")


def pool_of(*backends: tuple[dict[str, object], dict[str, str]]) -> BackendPool:
    """A pool of (keys of the backend, groups by model) that serves."""
    pool = BackendPool(lambda: None)
    for keys, models in backends:
        backend = Backend.model_validate(keys)
        address = str(backend.address)
        watch = BackendWatch(address, Discovery(), lambda: None, calls=ScriptedCalls())  # type: ignore[arg-type]
        watch.models = {
            (name, "1"): spec(f'name: "{name}" max_batch_size: 8 {groups}')
            for name, groups in models.items()
        }
        watch.ready_models = set(watch.models)
        watch.status, watch.settled, watch.catalog_read = BackendStatus.SERVING, True, True
        pool.backends[address], pool.watches[address] = backend, watch
    pool.catalog = join_catalogs(pool.watches, {})
    return pool
