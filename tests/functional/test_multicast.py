"""Multicast on a bridge: a VM that asks who has joined what, as a router does, gets no more of it for that."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.support import frames, guests
from tests.support.asking import make
from tests.support.daemon import Daemon, wait_for
from tests.support.frames import UDP, ip4, ip6, udp
from tests.support.guests import Guest
from vifclient import Client
from vifclient.messages import GuardSpec, PortSpec
from vifd.kernel.nft.elements import link_local

GROUP4, GROUP4_MAC, GROUP6 = "239.1.2.3", "01:00:5e:01:02:03", "ff05::1:2:3"


def query(version: int, guest: Guest, last: int) -> bytes:
    """A question; the bridge listens to who has the least address."""
    if version == 4:
        return frames.igmp_query(guest.mac, f"10.91.0.{last}")
    return frames.multicast_query(guest.mac, link_local(guest.mac))


def multicast(version: int, guest: Guest) -> bytes:
    """A datagram to a group that nobody has joined."""
    if version == 4:
        frame = ip4(guest.mac, "10.91.0.30", GROUP4, UDP, udp(1000, 2000))
        return frames.mac_bytes(GROUP4_MAC) + frame[6:]
    return ip6(guest.mac, link_local(guest.mac), GROUP6, UDP, udp(1000, 2000))


def routers(netns: str) -> set[str]:
    """The ports that a bridge takes for routers of multicast."""
    argv = ["bridge", "-n", netns, "-j", "-d", "mdb", "show"]
    shown: Any = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    return {one["port"] for ports in shown[0]["router"].values() for one in ports}


@pytest.mark.parametrize("version", [4, 6])
def test_a_guarded_vm_that_asks_gets_no_multicast_that_it_has_not_joined(vifd: Daemon, version: int) -> None:
    ports = [PortSpec(mac=f"52:54:00:00:00:{n:02}", guard=GuardSpec(enabled=n == 20)) for n in (10, 20, 30)]
    with Client(vifd.socket, fd_socket_path=vifd.fd_socket) as client:
        free, kept, sender = (make(client, port=port) for port in ports)
        with guests.guest(client, free) as free_, guests.guest(client, kept) as kept_, guests.guest(client, sender) as sender_:
            guests.connect(sender_, [free_, kept_])
            guests.connect(free_, [sender_])
            guests.connect(kept_, [sender_])

            def asked_and_got() -> tuple[bool, bool]:
                """Let both ask, first the guarded one, which has the greater address; tell who gets a datagram then."""
                kept_.send(query(version, kept_, 20))
                free_.send(query(version, free_, 10))
                datagram = multicast(version, sender_)
                got = guests.arrived(sender_, [free_, kept_], datagram)
                return datagram in got[0], datagram in got[1]

            wait_for(lambda: asked_and_got() == (True, False))
            assert routers(vifd.netns) == {free.tap.ifname}
