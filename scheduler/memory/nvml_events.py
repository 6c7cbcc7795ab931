"""What NVML's event sets tell: ECC errors and Xid errors."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pynvml

from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

# Read at once; more wait for the next time.
EVENTS_AT_ONCE = 3

_KINDS = {
    pynvml.nvmlEventTypeSingleBitEccError: "ecc corrected",
    pynvml.nvmlEventTypeDoubleBitEccError: "ecc uncorrected event",
    pynvml.nvmlEventTypeXidCriticalError: "xid",
}
_WANTED = sum(_KINDS)


class NvmlEvents:
    """One event set for all GPUs; without a word where the driver has none."""

    def __init__(self, count_call: Callable[[str], None]) -> None:
        self._count_call = count_call
        self._set: Any = None
        self._key_of: dict[int, str] = {}  # by the address of the handle
        self._supported = True

    def watch(self, gpus: Mapping[str, Any]) -> None:
        """These GPUs by key from now on; nothing is done when they are the same."""
        if not self._supported or set(gpus) == set(self._key_of.values()):
            return
        self.close()
        try:
            self._count_call("")
            self._set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            self._supported = False
            log(logger, logging.DEBUG, "no events of devices", reason=str(error))
            return
        for key, handle in gpus.items():
            self._register(key, handle)
        self._key_of = {_address(handle): key for key, handle in gpus.items()}

    def _register(self, key: str, handle: Any) -> None:
        try:
            self._count_call(key)
            wanted = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & _WANTED
            if wanted:
                self._count_call(key)
                pynvml.nvmlDeviceRegisterEvents(handle, wanted, self._set)
        except pynvml.NVMLError as error:
            log(logger, logging.DEBUG, "no events of a device", device=key, reason=str(error))

    def take(self) -> list[tuple[str, str]]:
        """What has happened: (key of the GPU, kind). Does not wait."""
        happened: list[tuple[str, str]] = []
        if self._set is None:
            return happened
        for _ in range(EVENTS_AT_ONCE):
            try:
                self._count_call("")
                event = pynvml.nvmlEventSetWait(self._set, 0)
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_TIMEOUT:
                    self._key_of = {}  # a GPU of the set is lost: it is made anew with the others
                break
            key = self._key_of.get(_address(event.device), "")
            kind = _KINDS.get(event.eventType, "other")
            if kind == "xid":
                kind = f"xid {event.eventData}"
                log(logger, logging.WARNING, "the driver tells an Xid error of a device; NVIDIA's "
                    "list of Xid errors says what it means", device=key,
                    xid=int(event.eventData))  # fmt: skip
            happened.append((key, kind))
        return happened

    def close(self) -> None:
        if self._set is None:
            return
        try:
            pynvml.nvmlEventSetFree(self._set)
        except pynvml.NVMLError as error:
            log(logger, logging.DEBUG, "an event set is not freed", reason=str(error))
        self._set, self._key_of = None, {}


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
