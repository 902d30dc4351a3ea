"""What systemd is told (sd_notify(3)) and says (sd_watchdog_enabled(3)); nothing where it doesn't run."""

from __future__ import annotations

import os
import socket
import time
from logging import getLogger

_log = getLogger(__name__)


class Notifier:
    """Tells systemd how the service is. Takes its address from the environment, and out of it."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        mine = microseconds.isdecimal() and pid == str(os.getpid())
        #: How often a sign of life is due, in seconds; None: never.
        self.watchdog_s = int(microseconds) / 2e6 if mine else None

    def ready(self, status: str) -> None:
        """Say that vifd serves."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is being read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that vifd is about to end."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.connect(address)
                sender.send(message.encode())
        except OSError as error:
            _log.warning("systemd can't be told", extra={"error": str(error)})
