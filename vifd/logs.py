"""The log: lines for people or JSON for programs, on standard error. Data is in fields (`extra=`), never in the message."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

_BUILT_IN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OSLO = frozenset({"project", "version", "extra_keys"})  # what oslo.log adds to every record of oslo.privsep's


def setup(level: str, form: str) -> None:
    """Send the log to standard error.

    Args:
        level: "debug", "info", "warning" or "error".
        form: "text" or "json".
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The helper sends each record to the front process as a packet, and oslo.privsep says at each start what a test shows.
    logging.getLogger("oslo_privsep").setLevel(max(root.level, logging.WARNING))
    logging.getLogger("oslo.privsep").setLevel(max(root.level, logging.WARNING))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _BUILT_IN | _OSLO}


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{record.levelname.lower()}: {record.getMessage()}{fields}{trace}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _quoted(value: Any) -> str:
    """Keep a value on its line: what strangers send must not write lines of its own."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text and text else json.dumps(text)
