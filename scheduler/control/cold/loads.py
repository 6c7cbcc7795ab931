"""What clients loaded and unloaded, so that a backend that was away can be told.

Kept in the runtime directory: the wish outlives the control plane as it outlives a Triton.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import model_config_pb2, service_pb2

from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

# A load may carry a model's files. What is larger is not kept.
REQUEST_BYTES_MAX = 16 * 2**20
# Of the parameters that carry them.
FILE_PREFIX = "file:"


@dataclass(frozen=True)
class Wish:
    """The last load of a model and the configuration it led to; None when it was unloaded since.

    `missed`: the backends that were out of reach when it was loaded (again). What they have may be
    of the time before.
    """

    load: service_pb2.RepositoryModelLoadRequest | None
    config: model_config_pb2.ModelConfig | None = None
    missed: frozenset[str] = frozenset()

    @property
    def has_files(self) -> bool:
        return self.load is not None and any(
            key.startswith(FILE_PREFIX) for key in self.load.parameters
        )


class Loads:
    """The wishes by model name."""

    def __init__(self, runtime_directory: Path) -> None:
        self._path = runtime_directory / "loads.json"
        self.by_name: dict[str, Wish] = {}
        self._load()

    def loaded(
        self,
        request: service_pb2.RepositoryModelLoadRequest,
        config: model_config_pb2.ModelConfig | None,
        answered: Collection[str] = (),
        missed: Collection[str] = (),
    ) -> None:
        """A load without parameters leaves an earlier override as it is, as in Triton."""
        name = request.model_name
        known = self.by_name.get(name)
        if known is not None and known.load is not None and not request.parameters:
            # Who missed an override does not have it by this load.
            made_up = () if known.load.parameters else answered
            missed = known.missed.difference(made_up).union(missed)
            self.by_name[name] = replace(known, missed=missed)
        elif request.ByteSize() > REQUEST_BYTES_MAX:
            log(logger, logging.WARNING, "a load is too large to be repeated on a backend that "
                "comes back", model=name, bytes=request.ByteSize())  # fmt: skip
            self.by_name.pop(name, None)
        else:
            self.by_name[name] = Wish(request, config, frozenset(missed))
        self._store()

    def made_up(self, name: str, address: str) -> None:
        """The backend has what it missed."""
        wish = self.by_name.get(name)
        if wish is not None and address in wish.missed:
            self.by_name[name] = replace(wish, missed=wish.missed - {address})
            self._store()

    @property
    def with_files(self) -> set[str]:
        """The models whose files came with the load: a Triton has them from nowhere else."""
        return {name for name, wish in self.by_name.items() if wish.has_files}

    def unloaded(self, name: str) -> None:
        self.by_name[name] = Wish(None)
        self._store()

    def _load(self) -> None:
        try:
            for name, stored in json.loads(self._path.read_text()).items():
                self.by_name[name] = Wish(None) if stored is None else _wish(*stored)
        except (OSError, ValueError, AttributeError, TypeError, DecodeError):
            # Absent at the first start; a torn one costs the wishes.
            self.by_name = {}

    def _store(self) -> None:
        entries = {
            name: None
            if wish.load is None
            else [_text(wish.load), _text(wish.config), sorted(wish.missed)]
            for name, wish in self.by_name.items()
        }
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(entries))
        temporary.replace(self._path)


def _wish(load: str, config: str | None, missed: Collection[str] = ()) -> Wish:
    return Wish(
        service_pb2.RepositoryModelLoadRequest.FromString(_bytes(load)),
        None if config is None else model_config_pb2.ModelConfig.FromString(_bytes(config)),
        frozenset(missed),
    )


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _text(message: Message | None) -> str | None:
    return None if message is None else base64.b64encode(message.SerializeToString()).decode()
