"""Watches the kernel's events of devices: who has a tap open, and what was changed or went away behind vifd's back.

It runs in the unprivileged process: rtnetlink(7) lets everybody listen to RTNLGRP_LINK and RTNLGRP_TC. A tap's carrier says that
a process has a queue of it open (drivers/net/tun.c, tun_attach and __tun_detach).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from logging import getLogger

from vifd.kernel import linkfilter, tc
from vifd.kernel.netlink import IFF_LOWER_UP, LinkEvent, PortState, parse_events

_log = getLogger(__name__)
_RTMGRP_LINK, _RTMGRP_TC = 1, 8
_PACKET_BYTES = 1 << 16
_BUFFER_BYTES = 4 << 20


class LinkMonitor:
    """Tells of each change of carrier, of each other change, and of each end, of an endpoint's device, whatever its name is now.

    Args:
        on_carrier: called with a device's index and whether it has carrier.
        on_change: called with the index of a device that something else was changed of; vifd's own changes are told too.
        on_port: called with the index of a device and what its bridge says of it as a port.
        on_gone: called with the index and the name of a device that went away: an endpoint's, or a bridge.
        on_overflow: called when events were lost: everything has to be looked at afresh.
    """

    def __init__(
        self,
        on_carrier: Callable[[int, bool], None],
        on_change: Callable[[int], None],
        on_port: Callable[[int, PortState], None],
        on_gone: Callable[[int, str], None],
        on_overflow: Callable[[], None],
    ) -> None:
        self._on_carrier, self._on_change, self._on_port = on_carrier, on_change, on_port
        self._on_gone, self._on_overflow = on_gone, on_overflow
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._socket.setblocking(False)
        linkfilter.attach(self._socket)
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_TC))
        self._carrier: dict[int, bool] = {}

    def start(self) -> None:
        """Begin to tell, in the running loop."""
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def close(self) -> None:
        """Stop telling."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def has_carrier(self, ifindex: int) -> bool:
        """Tell the carrier as the last event had it; False where there was none since the start."""
        return self._carrier.get(ifindex, False)

    def _read(self) -> None:
        """Take one packet; the loop calls again while there are more."""
        try:
            packet = self._socket.recv(_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            # ENOBUFS: the kernel dropped events because this process was slow.
            _log.warning("events of devices were lost", extra={"error": str(error)})
            self._on_overflow()
            return
        for event in parse_events(packet):
            self._note(event)
        for ifindex in tc.changed_devices(packet):
            self._on_change(ifindex)

    def _note(self, event: LinkEvent) -> None:
        if event.deleted:
            self._carrier.pop(event.ifindex, None)
            self._on_gone(event.ifindex, event.ifname.decode(errors="replace"))
            return
        if event.port is not None:
            self._on_port(event.ifindex, event.port)
            return
        carrier = bool(event.flags & IFF_LOWER_UP)
        before = self._carrier.get(event.ifindex)
        if before is not carrier:
            self._carrier[event.ifindex] = carrier
            self._on_carrier(event.ifindex, carrier)
        if carrier or before is not None:  # else it is new, and this its first event; one may tell of two changes at once
            self._on_change(event.ifindex)
