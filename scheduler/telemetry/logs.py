"""One way to write log lines, to standard error, for all three processes.

    text   2026-03-01T12:00:00.123Z info  control  backend is up  backend=triton-0:8001
    json   {"time": "...", "level": "info", "process": "control", "message": "backend is up", ...}

Payloads and request ids never go into a line.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

# Set by the supervisor for its children; users say logging.level in the configuration.
LEVEL_VARIABLE = "INFERSCHED_LOG_LEVEL"
FORMAT_VARIABLE = "INFERSCHED_LOG_FORMAT"
LEVELS = ("debug", "info", "warning", "error")


def configure(process: str, level: str | None = None, line_format: str | None = None) -> None:
    """Sets up the root logger of this process; without arguments by the environment's word."""
    level = level or os.environ.get(LEVEL_VARIABLE, "info")
    line_format = line_format or os.environ.get(FORMAT_VARIABLE, "text")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(process) if line_format == "json" else _TextLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper() if level in LEVELS else "INFO")
    # Libraries report through us only what an operator can act on.
    for name in ("grpc", "asyncio"):
        logging.getLogger(name).setLevel("WARNING")


def log(logger: logging.Logger, level: int, message: str, **fields: Any) -> None:
    """One line: a short sentence and the values that belong to it."""
    logger.log(level, message, extra={"fields": fields})


def _time_text(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _value_text(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(c in text for c in ' "\n=') else text


class _TextLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time_text(record)} {record.levelname.lower():<7} {self._process:<10}"
        fields: dict[str, Any] = getattr(record, "fields", {})
        tail = " ".join(f"{key}={_value_text(value)}" for key, value in fields.items())
        line = f"{head} {record.getMessage()}" + (f"  {tail}" if tail else "")
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time_text(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
