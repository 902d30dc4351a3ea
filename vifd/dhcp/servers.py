"""The DHCP servers as the unprivileged process sees them: it says who the hosts are, and hears how the servers do."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path

from vifd.dhcp import hosts, leases, wire
from vifd.dhcp.dnsmasq import Files
from vifd.dhcp.hosts import Entry, Host
from vifd.dhcp.leases import Lease, Leases
from vifd.dhcp.network import DhcpNetwork, IPv4Or6

_log = getLogger(__name__)
#: Between two rounds of a network's changes; the first of a while is written at once.
_PAUSE_S = 0.1
_PAUSE_AFTER_FAILURE_S = 1.0
#: How many rounds the end of a lease is told for; and again, as soon as the server starts anew.
_ROUNDS = 20
_WITHOUT_SUPERVISOR = "dhcp = true takes a restart of vifd where no network had it at the start"


class _Ending:
    """An address that a guest gave back: the lease that was there for it first, and for how many rounds its end was told."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.rounds = 0


class _Served:
    """A network that is served, and what of its hosts its server hasn't been told."""

    def __init__(self, serving: DhcpNetwork) -> None:
        self.serving = serving
        self.changed = True
        self.problem = ""
        self.write_problem = ""
        self.round: asyncio.Task[None] | None = None
        self.ending: dict[IPv4Or6, _Ending] = {}


class DhcpServers:
    """Keeps the hosts' files as the endpoints are, and the supervisor informed. It lives in the event loop's thread alone.

    Hosts are set before `start`, for a server that doesn't know a guest takes its address away.

    Args:
        channel: to the supervisor; None: there is none.
        files: where the files are.
        networks: what is served.
        on_lost: is called when the supervisor is gone.
    """

    def __init__(
        self,
        channel: socket.socket | None,
        files: Files,
        networks: Mapping[str, DhcpNetwork],
        on_lost: Callable[[str], None],
    ) -> None:
        self._channel, self._files, self._on_lost = channel, files, on_lost
        self._served: dict[str, _Served] = {}
        #: By network and endpoint, whether the network is served or not: it may be after a reload.
        self._entries: dict[str, dict[str, Entry]] = {}
        self._started = False
        self._listeners: list[Callable[[str, str], None]] = []
        self._take(networks)

    @property
    def problems(self) -> dict[str, str]:
        """By network, why it isn't served now."""
        found = {name: served.write_problem or served.problem for name, served in self._served.items()}
        return {name: problem for name, problem in found.items() if problem}

    def on_status(self, listener: Callable[[str, str], None]) -> None:
        """Call a function with a network and its problem, or "", whenever that changes."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Write every network's hosts and let it be served."""
        self._started = True
        if self._channel is not None:
            self._channel.setblocking(False)
            asyncio.get_running_loop().add_reader(self._channel, self._hear, self._channel)
        for name in self._served:
            self._change(name)

    async def close(self) -> None:
        """Write and say nothing more."""
        if self._channel is not None and self._started:
            asyncio.get_running_loop().remove_reader(self._channel)
        self._started = False
        rounds = [served.round for served in self._served.values() if served.round is not None]
        for task in rounds:
            task.cancel()
        await asyncio.gather(*rounds, return_exceptions=True)

    def set_host(self, network: str, endpoint_id: str, host: Host) -> None:
        """Let an endpoint's guest have addresses and a name.

        Raises:
            ValueError: the MAC or an address is none.
        """
        entry, entries = hosts.entry(host), self._entries.setdefault(network, {})
        before = entries.get(endpoint_id)
        if entry != before:
            entries[endpoint_id] = entry
            self._let_go(network, before, entry)
            self._change(network)

    def remove_host(self, network: str, endpoint_id: str) -> None:
        """Let an endpoint's guest have nothing any more. Idempotent."""
        before = self._entries.get(network, {}).pop(endpoint_id, None)
        if before is not None:
            self._let_go(network, before, None)
            self._change(network)

    def end_leases(self, network: str, endpoint_id: str) -> None:
        """Let whatever starts next behind an endpoint have its addresses: call it when a VM has stopped.

        DHCPv6 knows a guest by a name that it makes itself (DUID), and another system, or a boot loader, makes another.
        Idempotent.
        """
        entry = self._entries.get(network, {}).get(endpoint_id)
        if entry is not None and (served := self._served.get(network)):
            served.ending |= {address: _Ending() for address in entry.addresses}
            self._keep_up(network, served)

    def configure(self, networks: Mapping[str, DhcpNetwork]) -> None:
        """Take what a new configuration says, which the supervisor reads for itself."""
        for name in self._served.keys() - networks.keys():
            self._set_problem(name, self._served[name], problem="", write_problem="")
            if (task := self._served.pop(name).round) is not None:
                task.cancel()
        self._take(networks)
        self._send(wire.Reload())
        for name in networks:
            self._change(name)

    def _take(self, networks: Mapping[str, DhcpNetwork]) -> None:
        for name, serving in networks.items():
            self._served.setdefault(name, _Served(serving)).serving = serving
            if self._channel is None:
                self._set_problem(name, self._served[name], problem=_WITHOUT_SUPERVISOR)

    def _let_go(self, network: str, before: Entry | None, after: Entry | None) -> None:
        """Note the leases that have to end: of addresses that a guest gave back, or has under another MAC."""
        if before is not None and (served := self._served.get(network)):
            kept = after.addresses if after is not None and after.mac == before.mac else ()
            served.ending |= {address: _Ending() for address in before.addresses if address not in kept}

    def _change(self, network: str) -> None:
        if served := self._served.get(network):
            served.changed = True
            self._keep_up(network, served)

    def _keep_up(self, network: str, served: _Served) -> None:
        if self._started and self._channel is not None and served.round is None:
            served.round = asyncio.ensure_future(self._go_round(network, served))

    async def _go_round(self, network: str, served: _Served) -> None:
        """Write and tell what has changed, and again what has until then, until there is nothing left."""
        try:
            while served.changed or served.ending:
                if served.changed:
                    served.changed = False
                    self._write(network, served)
                self._tell_ends(network, served)
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S if served.write_problem else _PAUSE_S)
        finally:
            served.round = None

    def _write(self, network: str, served: _Served) -> None:
        dhcp, names = hosts.files(self._entries.get(network, {}).values())
        try:
            _replace(self._files.names(network), names)
            _replace(self._files.dhcp_hosts(network), dhcp)
        except OSError as error:
            served.changed = True
            self._set_problem(network, served, write_problem=f"the hosts can't be written for its DHCP: {error}")
        else:
            self._set_problem(network, served, write_problem="")
            self._send(wire.HostsChanged(network))

    def _tell_ends(self, network: str, served: _Served) -> None:
        """Tell the server of leases that are over, until it has forgotten them."""
        if not served.ending:
            return
        found = leases.read(self._files.lease_file(network))
        try:
            leases.release(served.serving, found, _take_ended(served.ending, found, self._owners(network)))
        except OSError as error:
            _log.warning("the end of leases can't be told", extra={"network": network, "error": str(error)})

    def _owners(self, network: str) -> dict[IPv4Or6, str]:
        return {address: entry.mac for entry in self._entries.get(network, {}).values() for address in entry.addresses}

    def _send(self, request: wire.Request) -> None:
        if self._channel is None or not self._started:
            return
        try:
            self._channel.send(wire.encode_request(request))
        except BlockingIOError:
            # The supervisor is far behind: it has hundreds of these to read.
            _log.warning("the dhcp supervisor is slow")
            asyncio.get_running_loop().call_later(_PAUSE_S, self._send, request)
        except OSError as error:
            self._on_lost(f"the dhcp supervisor: {error.strerror}")

    def _hear(self, channel: socket.socket) -> None:
        try:
            packet = channel.recv(wire.PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            asyncio.get_running_loop().remove_reader(channel)
            self._on_lost("the dhcp supervisor died")
            return
        status = wire.decode_status(packet)
        if served := self._served.get(status.network):
            self._set_problem(status.network, served, problem=status.problem)
            if not status.problem:
                self._find_strange_leases(status.network, served)

    def _find_strange_leases(self, network: str, served: _Served) -> None:
        """End the leases of a server's file that are no guest's: nobody told it of what happened before it started."""
        owners = self._owners(network)
        for lease in leases.read(self._files.lease_file(network)).leases:
            if lease.address not in owners or (lease.mac and lease.mac != owners[lease.address]):
                served.ending[lease.address] = _Ending()
        self._keep_up(network, served)

    def _set_problem(
        self, network: str, served: _Served, *, problem: str | None = None, write_problem: str | None = None
    ) -> None:
        before = served.write_problem or served.problem
        served.problem = served.problem if problem is None else problem
        served.write_problem = served.write_problem if write_problem is None else write_problem
        after = served.write_problem or served.problem
        if after != before:
            for listener in self._listeners:
                listener(network, after)


def _take_ended(ending: dict[IPv4Or6, _Ending], found: Leases, owners: Mapping[IPv4Or6, str]) -> list[Lease]:
    """Give the leases that are over and still there, and forget those that aren't, or are somebody's again.

    A lease that isn't there at the first look may be in a file that is just being written.
    """
    present, ended = {lease.address: lease for lease in found.leases}, []
    for address, one in list(ending.items()):
        lease, one.rounds = present.get(address), one.rounds + 1
        gone = one.rounds > 1 if lease is None else one.lease not in (None, lease) or lease.mac == owners.get(address, "nobody")
        if gone or one.rounds > _ROUNDS:
            del ending[address]
        elif lease is not None:
            one.lease = lease
            ended.append(lease)
    return ended


def _replace(path: Path, text: str) -> None:
    """Write a file that others read: the old text or the new, never a part."""
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:  # noqa: PTH123  a descriptor; and to open it as text takes a module in, perhaps out of reach
        file.write(text.encode())
        os.fchmod(fd, 0o644)
    new.replace(path)
