"""One network's server, kept running: when it is started, and again, and what is said of it. Time and processes are injected."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from logging import getLogger
from typing import Protocol

from vifd.dhcp import dnsmasq
from vifd.dhcp.network import DhcpNetwork
from vifd.dhcp.process import LaunchError

_log = getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_STEADY_S = 60.0
_START_S = 10.0
_LAST_WORDS = 10
_LINE_BYTES = 4096


class Server(Protocol):
    """What a keeper needs of a process."""

    pid: int
    pidfd: int
    output: int

    def read(self) -> bytes | None:
        """Give what it has logged; None: nothing now, empty: it logs no more."""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""

    def end(self) -> None:
        """End it and forget it."""

    def reap(self) -> int:
        """Forget it when it has ended, and give its exit status."""


class Keeper:
    """Keeps one network's server running.

    Args:
        network: the network's name.
        serving: what the configuration says of it.
        launch: starts its server; raises LaunchError.
        tell: is told what is wrong, or by an empty text that it runs.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        network: str,
        serving: DhcpNetwork,
        launch: Callable[[], Server],
        tell: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.network, self.serving = network, serving
        self._launch, self._tell, self._clock = launch, tell, clock
        self.server: Server | None = None
        #: Whether there is anything more to read of it.
        self.logs = False
        #: When `tick` has something to do; None: never.
        self.due: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._runs_since: float | None = None
        self._hosts_changed = False
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._rest = b""

    def hosts_changed(self) -> None:
        """Let the server read its hosts again; the first time, start it."""
        if self.server is None:
            if self.due is None:
                self._start()
        elif self._runs_since is None:
            self._hosts_changed = True  # it may have read them already, and may not take a signal yet
        else:
            self.server.signal(signal.SIGHUP)

    def on_output(self) -> None:
        """Read what the server logs."""
        if self.server is None:
            return
        output = self.server.read()
        self.logs = output != b""
        *lines, self._rest = (self._rest + (output or b"")).split(b"\n")
        self._rest = self._rest[-_LINE_BYTES:]
        for line in lines:
            text = line.decode(errors="replace")
            self._words.append(text)
            _log.debug("dnsmasq says", extra={"network": self.network, "line": text})
            if self._runs_since is None and dnsmasq.STARTED.search(text):
                self._on_started(self.server)

    def on_end(self) -> None:
        """Take the end of the server: start another, at once or later."""
        if self.server is None:
            return
        self.on_output()
        self._fail(dnsmasq.explain(list(self._words), self.server.reap(), self.serving.bridge))

    def tick(self) -> None:
        """Do what is due."""
        if self.due is None or self._clock() < self.due:
            return
        if self.server is None:
            self._start()
        else:
            self.server.end()
            self._fail(f"dnsmasq wasn't ready within {_START_S:.0f} s")

    def stop(self) -> None:
        """End the server, and start no other."""
        self.due = None
        if self.server is not None:
            self.server.end()
            self.server = None

    def _start(self) -> None:
        self._words.clear()
        self._rest, self._runs_since, self._hosts_changed = b"", None, False
        try:
            self.server = self._launch()
        except LaunchError as error:
            self._fail(str(error))
        else:
            self.logs, self.due = True, self._clock() + _START_S

    def _on_started(self, server: Server) -> None:
        self._runs_since, self.due = self._clock(), None
        _log.info("dhcp is served", extra={"network": self.network, "pid": server.pid})
        self._tell("")
        if self._hosts_changed:
            server.signal(signal.SIGHUP)

    def _fail(self, reason: str) -> None:
        """Start it again after a pause, a longer one each time unless it ran for a while."""
        self.server = None
        if self._runs_since is not None and self._clock() - self._runs_since >= _STEADY_S:
            self._pause_s = _FIRST_PAUSE_S
        self._runs_since, self.due = None, self._clock() + self._pause_s
        _log.error("dhcp isn't served", extra={"network": self.network, "error": reason, "again_in_s": self._pause_s})
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        self._tell(reason)
