"""Runs a command under a seccomp filter that forbids the calls of systemd's @resources we make.

python -m tests.seccomp kill|refuse COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence

# setpriority and sched_setattr.
_FORBIDDEN = {"x86_64": (141, 314), "aarch64": (140, 274)}
SUPPORTED = sys.platform == "linux" and platform.machine() in _FORBIDDEN

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_INSTRUCTION = struct.Struct("HBBI")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def launcher(action: str) -> list[str]:
    return [sys.executable, "-m", "tests.seccomp", action]


def install(action: str) -> None:
    """For this process and all that it starts."""
    forbidden = _FORBIDDEN[platform.machine()]
    denied = _KILL_PROCESS if action == "kill" else _ERRNO | errno.EPERM
    program = [_INSTRUCTION.pack(_LOAD_NUMBER, 0, 0, 0)]
    for position, number in enumerate(forbidden):
        behind_allow = len(forbidden) - position
        program.append(_INSTRUCTION.pack(_JUMP_IF_EQUAL, behind_allow, 0, number))
    program += [_INSTRUCTION.pack(_RETURN, 0, 0, action) for action in (_ALLOW, denied)]
    code = ctypes.create_string_buffer(b"".join(program))
    filters = _Program(len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filters), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "no filter can be installed here")


def main(arguments: Sequence[str]) -> None:
    action, *command = arguments
    install(action)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
