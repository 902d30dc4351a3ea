"""Watches the kernel's events of devices: who has a tap open, and what was changed or went away behind vifd's back.

It runs in the unprivileged process: rtnetlink(7) lets everybody listen to RTNLGRP_LINK, RTNLGRP_TC and RTNLGRP_NEIGH. A tap's
carrier says that a process has a queue of it open (drivers/net/tun.c, tun_attach and __tun_detach).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from logging import getLogger
from typing import NamedTuple

from vifd.kernel import learning, linkfilter, tc
from vifd.kernel.linkevents import LinkEvent, parse_events
from vifd.kernel.netlink import IFF_LOWER_UP

_log = getLogger(__name__)
_RTMGRP_LINK, _RTMGRP_TC = 1, 8
_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP, _RTNLGRP_NEIGH = 270, 1, 2, 3
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_PACKET_BYTES = 1 << 16
_BUFFER_BYTES = 4 << 20
_PACKETS_A_TURN = 64


class Listener(NamedTuple):
    """What is called when something happens to a device, in the loop that the monitor was started in.

    Args:
        on_carrier: with a device's index and whether it has carrier.
        on_change: with the index of a device that something else was changed of; vifd's own changes are told too.
        on_port: with the index of a device and what its bridge says of it as a port, for `linkevents.parse_port`.
        on_gone: with the index and the name of a device that went away: an endpoint's, or a bridge.
        on_learned: with the index of a device that a bridge has seen a new address on, while `follow_learning` wants it.
        on_overflow: when events were lost: everything has to be looked at afresh.
    """

    on_carrier: Callable[[int, bool], None]
    on_change: Callable[[int], None]
    on_port: Callable[[int, bytes], None]
    on_gone: Callable[[int, str], None]
    on_learned: Callable[[int], None]
    on_overflow: Callable[[], None]


def open_events() -> socket.socket:
    """Open a socket for the kernel's events. Who has CAP_NET_ADMIN gets room for more of them than net.core.rmem_max allows."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    events.setblocking(False)
    try:
        events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    except PermissionError:
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    linkfilter.attach(events)
    return events


class LinkMonitor:
    """Tells of each change of carrier, of each other change, and of each end, of an endpoint's device, whatever its name is now.

    Args:
        listener: whom.
        events: from `open_events`, which it closes in the end.
    """

    def __init__(self, listener: Listener, events: socket.socket) -> None:
        self._tell, self._socket = listener, events
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_TC))
        self._carrier: dict[int, bool] = {}
        self._follows_learning = False

    def start(self) -> None:
        """Begin to tell, in the running loop: what bridges have learned until now, and whatever comes."""
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        self._list_learned()

    def close(self) -> None:
        """Stop telling."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def follow_learning(self, wanted: bool) -> None:
        """Tell of what bridges learn from now on, or don't: in a large network that is much, and little of it matters."""
        if wanted != self._follows_learning:
            self._follows_learning = wanted
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP if wanted else _DROP_MEMBERSHIP, _RTNLGRP_NEIGH)

    def _list_learned(self) -> None:
        try:
            self._socket.send(learning.list_learned())
        except OSError as error:
            _log.warning("what bridges have learned can't be asked for", extra={"error": str(error)})

    def has_carrier(self, ifindex: int) -> bool:
        """Tell the carrier as the last event had it; False where there was none since the start."""
        return self._carrier.get(ifindex, False)

    def _read(self) -> None:
        """Take what is there, but no more than lets others have their turn; the loop calls again while there is more."""
        try:
            for _ in range(_PACKETS_A_TURN):
                self._take(self._socket.recv(_PACKET_BYTES))
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)

    def _take(self, packet: bytes) -> None:
        """Tell of a packet. The kernel puts no two kinds into one."""
        kind = int.from_bytes(packet[4:6], sys.byteorder)
        if kind in tc.EVENTS:
            for ifindex in tc.changed_devices(packet):
                self._tell.on_change(ifindex)
        elif kind == learning.RTM_NEWNEIGH:
            for ifindex in learning.ports_that_learned(packet):
                self._tell.on_learned(ifindex)
        else:
            for event in parse_events(packet):
                self._note(event)

    def _lose(self, error: OSError) -> None:
        """Note that the kernel dropped events because this process was slow (ENOBUFS): what was known may be so no more."""
        _log.warning("events of devices were lost", extra={"error": str(error)})
        self._carrier.clear()
        self._tell.on_overflow()
        self._list_learned()

    def _note(self, event: LinkEvent) -> None:
        if event.deleted:
            self._carrier.pop(event.ifindex, None)
            self._tell.on_gone(event.ifindex, event.ifname.decode(errors="replace"))
            return
        if event.port:
            self._tell.on_port(event.ifindex, event.port)
            return
        carrier = bool(event.flags & IFF_LOWER_UP)
        before = self._carrier.get(event.ifindex)
        if before is not carrier:
            self._carrier[event.ifindex] = carrier
            self._tell.on_carrier(event.ifindex, carrier)
        if carrier or before is not None:  # else it is new, and this its first event; one may tell of two changes at once
            self._tell.on_change(event.ifindex)
