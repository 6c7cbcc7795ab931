"""Trace and log settings that clients changed, so that a backend that comes back can be told.

Kept in the runtime directory: they outlive the control plane as they outlive a Triton.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

Method = Literal["LogSettings", "TraceSetting"]
REQUESTS: dict[Method, type[Any]] = {
    "LogSettings": service_pb2.LogSettingsRequest,
    "TraceSetting": service_pb2.TraceSettingRequest,
}


class ServerSettings:
    """One request for the log, one for all models' traces and one for each model that differs.

    Each has the last value of every setting that was changed; a cleared one is told as cleared.
    """

    def __init__(self, runtime_directory: Path) -> None:
        self._path = runtime_directory / "settings.json"
        self._by_subject: dict[tuple[Method, str], Any] = {}
        self._load()

    def changes(self) -> list[tuple[Method, Any]]:
        """What a Triton that was started anew must be asked for, in this order."""
        return [(method, request) for (method, _), request in sorted(self._by_subject.items())]

    def changed(self, method: Method, request: Any) -> None:
        """A change that a backend has accepted."""
        subject = (method, _model(request))
        known = self._by_subject.setdefault(subject, REQUESTS[method]())
        if _model(request):
            known.model_name = request.model_name
        for name, value in request.settings.items():
            known.settings[name].CopyFrom(value)
        self._store()

    def _load(self) -> None:
        try:
            for method, text in json.loads(self._path.read_text()):
                request = REQUESTS[method].FromString(base64.b64decode(text, validate=True))
                self._by_subject[method, _model(request)] = request
        except (OSError, ValueError, KeyError, TypeError, DecodeError):
            # Absent at the first start; a torn one costs the settings.
            self._by_subject = {}

    def _store(self) -> None:
        entries = [
            (method, base64.b64encode(request.SerializeToString()).decode())
            for method, request in self.changes()
        ]
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(entries))
        temporary.replace(self._path)


def _model(request: Any) -> str:
    return str(getattr(request, "model_name", ""))
