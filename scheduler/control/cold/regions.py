"""The shared-memory regions that clients registered, and which backends have them now.

Kept in the runtime directory, for a backend that comes back must be told of them again, by a
control plane that was started anew too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

Kind = Literal["System", "Cuda"]
REGISTER_REQUESTS: dict[Kind, type[Any]] = {
    "System": service_pb2.SystemSharedMemoryRegisterRequest,
    "Cuda": service_pb2.CudaSharedMemoryRegisterRequest,
}


@dataclass
class Region:
    """One region. `backends` are the addresses of those that have it."""

    kind: Kind
    request: Any
    backends: set[str] = field(default_factory=set)


class Regions:
    """The regions by name: both kinds share their names, as in Triton."""

    def __init__(self, runtime_directory: Path) -> None:
        self._path = runtime_directory / "regions.json"
        self.by_name: dict[str, Region] = {}
        self._load()

    def names(self, kind: Kind) -> list[str]:
        return [name for name, region in self.by_name.items() if region.kind == kind]

    def add(self, kind: Kind, request: Any, backends: Iterable[str]) -> None:
        self.by_name[request.name] = Region(kind, request, set(backends))
        self._store()

    def remove(self, names: Collection[str]) -> None:
        for name in names:
            self.by_name.pop(name, None)
        self._store()

    def gained(self, name: str, address: str) -> None:
        """The backend has the region again."""
        if name in self.by_name:
            self.by_name[name].backends.add(address)
            self._store()

    def lost(self, address: str) -> None:
        """The backend has gone, and its regions with it."""
        having = [region for region in self.by_name.values() if address in region.backends]
        for region in having:
            region.backends.discard(address)
        if having:
            self._store()

    def _load(self) -> None:
        try:
            for stored in json.loads(self._path.read_text()):
                payload = base64.b64decode(stored["request"], validate=True)
                request = REGISTER_REQUESTS[stored["kind"]].FromString(payload)
                region = Region(stored["kind"], request, set(stored["backends"]))
                self.by_name[request.name] = region
        except (OSError, ValueError, KeyError, TypeError, DecodeError):
            # Absent at the first start; a torn one costs the regions.
            self.by_name = {}

    def _store(self) -> None:
        entries = [
            {
                "kind": region.kind,
                "request": base64.b64encode(region.request.SerializeToString()).decode(),
                "backends": sorted(region.backends),
            }
            for region in self.by_name.values()
        ]
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(entries))
        temporary.replace(self._path)
