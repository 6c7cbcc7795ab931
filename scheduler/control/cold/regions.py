"""The shared-memory regions that clients registered, and which backends have them.

Kept in the state directory, or else as long as the scheduler runs, for a backend that comes back
must be told of them, by a control plane that was started anew, too.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import DecodeError
from pydantic import Field
from tritonclient.grpc import service_pb2

from scheduler.config.section import Section
from scheduler.control.kept_file import KeptFile
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

Kind = Literal["System", "Cuda"]
FILE_NAME = "regions.json"
REGISTER_REQUESTS: dict[Kind, type[Any]] = {
    "System": service_pb2.SystemSharedMemoryRegisterRequest,
    "Cuda": service_pb2.CudaSharedMemoryRegisterRequest,
}


@dataclass
class Region:
    """One region. `backends` are the addresses of those that have it; `unsure` of those that had it
    when they were last heard. An `adopted` one was found at a backend and not registered through
    this scheduler: it is used where it is and registered nowhere else.
    """

    kind: Kind
    request: Any
    backends: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    adopted: bool = False


class KeptRegion(Section):
    """One region; `request` is that of the registration, in base64."""

    kind: Kind
    request: str
    backends: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    adopted: bool = False


class RegionsFile(Section):
    """The file. `leftovers` are names by the address of the backend."""

    format: Literal["infersched-regions"] = "infersched-regions"
    format_version: Literal[1] = 1
    regions: tuple[KeptRegion, ...] = ()
    leftovers: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Regions:
    """The regions by name: both kinds share their names, as in Triton."""

    def __init__(self, directory: Path) -> None:
        self._file = KeptFile(directory / FILE_NAME, RegionsFile, "registered shared memory")
        self.by_name: dict[str, Region] = {}
        # By address the names that clients took away or gave to other memory and that the backend
        # may still have: it was out of reach, or a request used them.
        self.leftovers: dict[str, set[str]] = {}
        self._load()

    def left_at(self, address: str) -> set[str]:
        """The leftovers of the backend."""
        return set(self.leftovers.get(address, ()))

    def is_behind(self, address: str) -> bool:
        """Whether there is something that the backend is to be told."""
        unsure = (address in region.unsure for region in self.by_name.values())
        return address in self.leftovers or any(unsure)

    def add(self, kind: Kind, request: Any, backends: Iterable[str], adopted: bool = False) -> None:
        """The backends have the region; what others may have by this name is another one."""
        self._drop(request.name, set(backends))
        self.by_name[request.name] = Region(kind, request, set(backends), adopted=adopted)
        self._store()

    def remove(self, names: Collection[str]) -> None:
        """Clients have them no more; their backends are not told yet."""
        for name in names:
            self._drop(name, set())
        self._store()

    def restore(self, region: Region, backends: set[str]) -> None:
        """These backends refused to let go of a removed one: it is as if they had not been asked.
        Others may have let go of it or not."""
        name = region.request.name
        having = (region.backends | region.unsure) - backends
        region.unsure = {address for address in having if name in self.left_at(address)}
        region.backends = backends
        for address in region.unsure | backends:
            self._without(address, name)
        self.by_name[name] = region
        self._store()

    def gained(self, name: str, address: str) -> None:
        """The backend has the region (again)."""
        region = self.by_name.get(name)
        if region is not None and address not in region.backends:
            region.unsure.discard(address)
            region.backends.add(address)
            self._store()

    def absent(self, name: str, address: str) -> None:
        """The backend has no such region, and what is nowhere and cannot be had is forgotten."""
        region = self.by_name.get(name)
        if region is None:
            return
        region.backends.discard(address)
        region.unsure.discard(address)
        if not region.backends and not region.unsure:
            del self.by_name[name]
        self._store()

    def lost(self, address: str) -> None:
        """The backend is out of reach."""
        having = [region for region in self.by_name.values() if address in region.backends]
        for region in having:
            region.backends.discard(address)
            region.unsure.add(address)
        if having:
            self._store()

    def doubt(self, name: str, address: str) -> None:
        """The backend was said to have the region and does not tell of it."""
        region = self.by_name[name]
        region.backends.discard(address)
        region.unsure.add(address)
        self._store()

    def leave(self, name: str, address: str) -> None:
        """The backend may have something else by this name."""
        region = self.by_name.get(name)
        if region is not None:
            region.backends.discard(address)
            region.unsure.discard(address)
        self.leftovers.setdefault(address, set()).add(name)
        self._store()

    def cleared(self, name: str, address: str) -> None:
        """The backend has nothing left by this name."""
        if name in self.left_at(address):
            self._without(address, name)
            self._store()

    def _drop(self, name: str, told: set[str]) -> None:
        """Forgets a region, but not who may have it beside those that were told."""
        former = self.by_name.pop(name, None)
        for address in (former.backends | former.unsure) - told if former is not None else ():
            self.leftovers.setdefault(address, set()).add(name)
        for address in told:
            self._without(address, name)

    def _without(self, address: str, name: str) -> None:
        left = self.left_at(address) - {name}
        if left:
            self.leftovers[address] = left
        else:
            self.leftovers.pop(address, None)

    def _load(self) -> None:
        kept = self._file.load()
        if kept is None:
            return
        try:
            for one in kept.regions:
                payload = base64.b64decode(one.request, validate=True)
                request = REGISTER_REQUESTS[one.kind].FromString(payload)
                self.by_name[request.name] = Region(
                    one.kind, request, set(one.backends), set(one.unsure), one.adopted
                )
            self.leftovers = {address: set(names) for address, names in kept.leftovers.items()}
        except (ValueError, DecodeError) as error:
            self.by_name = {}
            log(logger, logging.WARNING, "registered shared memory is forgotten: its file cannot "
                "be used", reason=error)  # fmt: skip

    def _store(self) -> None:
        regions = tuple(
            KeptRegion(
                kind=region.kind,
                request=base64.b64encode(region.request.SerializeToString()).decode(),
                backends=tuple(sorted(region.backends)),
                unsure=tuple(sorted(region.unsure)),
                adopted=region.adopted,
            )
            for region in self.by_name.values()
        )
        left = {address: tuple(sorted(names)) for address, names in self.leftovers.items()}
        self._file.store(RegionsFile(regions=regions, leftovers=left))
