"""The process that keeps the networks' DHCP servers: a fork of vifd that may become their user, and does nothing else.

`start` forks it before any thread exists. It reads the configuration itself; from the unprivileged process it takes the two words
of `vifd.dhcp.wire`, and a network's name counts only where the configuration has it. When that process ends, it ends the
servers and itself; when it ends, the kernel ends the servers.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from typing import NamedTuple, NoReturn

from vifd import privileges
from vifd.dhcp import process, wire
from vifd.dhcp.dnsmasq import Files
from vifd.dhcp.keeper import Keeper, Server
from vifd.dhcp.network import DhcpNetwork
from vifd.errors import StartError
from vifd.privileges import Capability, User

_log = getLogger(__name__)
#: To become the servers' user, and to end what runs as that; and to hand on.
CAPABILITIES = frozenset(
    {
        *(Capability.SETUID, Capability.SETGID, Capability.KILL),
        *(Capability.NET_BIND_SERVICE, Capability.NET_ADMIN, Capability.NET_RAW),
    }
)
NAME = "vifd-dhcp"
_PR_SET_NAME = 15  # linux/prctl.h
_STDIO = 3
_PACKETS_A_STEP = 256
_UNTOLD = 1024

#: Reads the configuration: the networks that are to be served.
Load = Callable[[], Mapping[str, DhcpNetwork]]
Launch = Callable[[str, DhcpNetwork], Server]


class Supervisor(NamedTuple):
    """The unprivileged process's side.

    Args:
        pid: the process.
        channel: takes requests and gives statuses, packet by packet (`vifd.dhcp.wire`); end-of-file when the process is dead.
    """

    pid: int
    channel: socket.socket

    def stop(self) -> None:
        """End it, and wait until its servers have ended."""
        self.channel.close()
        os.waitpid(self.pid, 0)


def start(load: Load, files: Files, user: User | None, keep_fds: Sequence[int] = ()) -> Supervisor:
    """Fork the supervisor. Call it as root, before any thread exists; drop the privileges after it.

    Args:
        load: reads the configuration, now and when it is told to.
        files: where the servers have their files.
        user: whom the servers run as; None: this host has no such user, which is told as each network's problem.
        keep_fds: what it holds on to until it ends, like locks; everything else it closes.
    """
    networks = load()
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _run(back, load, networks, lambda name, serving: process.launch(name, serving, files, user), keep_fds)
    back.close()
    os.register_at_fork(after_in_child=front.close)  # or the helper would keep it from noticing that the front is gone
    return Supervisor(pid, front)


def _run(
    channel: socket.socket, load: Load, networks: Mapping[str, DhcpNetwork], launch: Launch, keep_fds: Sequence[int]
) -> NoReturn:
    status = 1
    try:
        # A terminal and systemd signal all processes at once; this one ends when the front process has.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _close_all_but({channel.fileno(), *keep_fds})
        ctypes.CDLL(None).prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
        privileges.keep(CAPABILITIES)
        Loop(channel, load, networks, launch).run()
        status = 0
    except Exception:
        _log.critical("the dhcp supervisor fails", exc_info=True)
    finally:
        os._exit(status)


def _close_all_but(kept: set[int]) -> None:
    before = _STDIO - 1
    for fd in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(before + 1, fd)
        before = fd


class Loop:
    """What the supervisor does all day.

    Args:
        channel: to the unprivileged process.
        load: reads the configuration.
        networks: what it said the last time.
        launch: starts a network's server.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        channel: socket.socket,
        load: Load,
        networks: Mapping[str, DhcpNetwork],
        launch: Launch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel, self._load, self._networks, self._launch, self._clock = channel, load, networks, launch, clock
        self._keepers: dict[str, Keeper] = {}
        self._untold: dict[str, str] = {}
        self._selector = selectors.PollSelector()

    def run(self) -> None:
        """Serve until the other side closes the channel."""
        self._channel.setblocking(False)
        while self._step():
            pass
        for keeper in self._keepers.values():
            keeper.stop()

    def _step(self) -> bool:
        """Wait for whatever comes first; False: the other side is gone."""
        events = self._watch().select(self._wait_s())
        for key, _ in events:
            if key.fd == self._channel.fileno():
                if not self._take_requests():
                    return False
            else:
                key.data()
        for keeper in self._keepers.values():
            keeper.tick()
        return self._tell_all()

    def _watch(self) -> selectors.BaseSelector:
        """Watch the channel, and the servers that there are now: a few, so that there is nothing to keep in step."""
        self._selector = selectors.PollSelector()
        self._selector.register(self._channel, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._untold else 0))
        for keeper in self._keepers.values():
            if keeper.server is not None:
                if keeper.logs:
                    self._selector.register(keeper.server.output, selectors.EVENT_READ, keeper.on_output)
                self._selector.register(keeper.server.pidfd, selectors.EVENT_READ, keeper.on_end)
        return self._selector

    def _wait_s(self) -> float | None:
        due = [keeper.due for keeper in self._keepers.values() if keeper.due is not None]
        return max(min(due) - self._clock(), 0.0) if due else None

    def _take_requests(self) -> bool:
        """Take what was sent, each different request once: a flood of them costs no more than one."""
        requests = set()
        for _ in range(_PACKETS_A_STEP):
            try:
                packet = self._channel.recv(wire.PACKET_BYTES)
            except BlockingIOError:
                break
            except ConnectionResetError:
                return False
            if not packet:
                return False
            requests.add(wire.decode_request(packet))
        if wire.Reload() in requests:
            self._reload()
        for request in requests:
            if isinstance(request, wire.HostsChanged):
                self._hosts_changed(request.network)
        return True

    def _hosts_changed(self, network: str) -> None:
        serving = self._networks.get(network)
        if serving is None and len(self._untold) < _UNTOLD:
            self._untold[network] = "its DHCP isn't in the configuration that vifd's supervisor has read; reload vifd"
        if serving is None:
            return
        keeper = self._keepers.get(network) or self._make_keeper(network, serving)
        keeper.hosts_changed()

    def _make_keeper(self, network: str, serving: DhcpNetwork) -> Keeper:
        def tell(problem: str) -> None:
            self._untold[network] = problem

        keeper = Keeper(network, serving, lambda: self._launch(network, serving), tell, self._clock)
        self._keepers[network] = keeper
        return keeper

    def _reload(self) -> None:
        """Read the configuration again; a server whose part of it changed is replaced, one that has none any more ended."""
        try:
            self._networks = self._load()
        except StartError as error:
            _log.error("the configuration is wrong and stays as it was for dhcp", extra={"error": str(error)})
            return
        for network, keeper in list(self._keepers.items()):
            if self._networks.get(network) == keeper.serving:
                continue
            keeper.stop()
            del self._keepers[network]
            if network in self._networks:
                self._make_keeper(network, self._networks[network]).hosts_changed()

    def _tell_all(self) -> bool:
        """Say what is new; what finds no room waits. False: the other side is gone."""
        for network, problem in list(self._untold.items()):
            try:
                self._channel.send(wire.encode_status(wire.Status(network, problem)))
            except BlockingIOError:
                break
            except BrokenPipeError:
                return False
            del self._untold[network]
        return True
