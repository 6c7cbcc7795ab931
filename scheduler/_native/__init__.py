"""Compiled bindings of the C++ core: codec, engine, http2, gateway, simulation.

INFERSCHED_NATIVE_DIR names a directory whose modules are taken before those in place; it is how a
debug or sanitizer build (`make build-debug`, `make build-asan`) is put under the tests.
"""

from __future__ import annotations

import os

_directory = os.environ.get("INFERSCHED_NATIVE_DIR")
if _directory:
    __path__.insert(0, _directory)
