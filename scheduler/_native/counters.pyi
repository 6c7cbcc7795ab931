from typing import Any

PAGE_BYTES: int
MODELS_MAX: int
BACKENDS_MAX: int
OUTCOMES: tuple[str, ...]
REASONS: tuple[str, ...]
DURATION_BOUNDS_NS: tuple[int, ...]
ROW_BOUNDS: tuple[int, ...]

class CountersPage:
    def __init__(self, fd: int) -> None: ...
    @property
    def valid(self) -> bool: ...
    def page(self) -> dict[str, int]: ...
    def backend(self, index: int) -> dict[str, int] | None: ...
    def model(self, index: int) -> dict[str, Any] | None: ...
