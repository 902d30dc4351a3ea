"""The bare kernel: the same final state as vifd makes, by ioctl and packed netlink, in one loop of one process."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.bench.measure import Samples, timed
from tests.bench.namespaces import Namespace
from tests.bench.netlink import (
    ADDR_GEN_MODE_NONE,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_ALT_IFNAME,
    IFLA_GROUP,
    IFLA_IFALIAS,
    IFLA_INET6_ADDR_GEN_MODE,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_PROP_LIST,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_DELLINK,
    RTM_NEWLINKPROP,
    RTM_SETLINK,
    RouteSocket,
    attribute,
    link_message,
    nested,
    number,
    text,
)

BRIDGE = "br-bench"
OWNER_UID = 1000
MTU_BYTES = 1500
GROUP_SIZE = 128

# linux/if_tun.h
TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x4004_54CA, 0x4004_54CB, 0x4004_54CC
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_REQUEST = struct.Struct("16sH22x")  # ifreq: name, flags
_NO_IPV6 = nested(
    IFLA_AF_SPEC, nested(socket.AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE.to_bytes(1, "little")))
)


@dataclass(frozen=True)
class BareKernel:
    """Makes taps on a bridge and deletes them, one by one or by group."""

    namespace: Namespace
    route: RouteSocket
    bridge_index: int

    name = "bare kernel"

    def round(self, count: int) -> dict[str, Samples]:
        """Make `count` taps, then delete each by its ifindex."""
        made: Samples = []
        deleted: Samples = []
        with self.namespace.entered():
            for ifindex in [timed(made, self.make) for _ in range(count)]:
                timed(deleted, self._delete, ifindex)
        return {"make": made, "delete": deleted}

    def make(self) -> int:
        """Make a tap and give its ifindex."""
        endpoint = str(uuid.uuid4())
        name = f"vdt{endpoint[:8]}"
        _make_tap(name, OWNER_UID)
        ifindex = socket.if_nametoindex(name)
        properties = nested(IFLA_PROP_LIST, text(IFLA_ALT_IFNAME, f"vifd-{endpoint}"))
        self.route.send(
            [
                link_message(RTM_SETLINK, ifindex, *self._settings(endpoint), up=True),
                link_message(RTM_NEWLINKPROP, ifindex, properties, flags=NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND),
            ]
        )
        return ifindex

    def _settings(self, endpoint: str) -> list[bytes]:
        return [
            attribute(IFLA_ADDRESS, b"\xfe" + os.urandom(5)),
            number(IFLA_MTU, MTU_BYTES),
            text(IFLA_IFALIAS, f"vifd:{endpoint}"),
            number(IFLA_MASTER, self.bridge_index),
            _NO_IPV6,
        ]

    def _delete(self, ifindex: int) -> None:
        self.route.send([link_message(RTM_DELLINK, ifindex)])

    def delete_group(self, indexes: list[int]) -> None:
        """Put devices into a group of their own and delete that."""
        group = number(IFLA_GROUP, 1 + int.from_bytes(os.urandom(3), "little"))
        self.route.send([link_message(RTM_SETLINK, index, group) for index in indexes])
        self.route.send([link_message(RTM_DELLINK, 0, group)])


@dataclass(frozen=True)
class InGroups:
    """Makes many taps and deletes them in groups."""

    bare: BareKernel

    name = "bare kernel"

    def round(self, count: int) -> dict[str, Samples]:
        """Make `count` taps one by one, then delete them: each sample is what one device of its group cost."""
        made: Samples = []
        deleted: Samples = []
        with self.bare.namespace.entered():
            indexes = [timed(made, self.bare.make) for _ in range(count)]
            for first in range(0, count, GROUP_SIZE):
                timed(deleted, self.bare.delete_group, indexes[first : first + GROUP_SIZE])
        return {f"make, {count} on the bridge": made, f"delete, groups of {GROUP_SIZE}": [cost / GROUP_SIZE for cost in deleted]}


@contextmanager
def bare_kernel(namespace: Namespace) -> Iterator[BareKernel]:
    """Open a netlink socket in a namespace, in which a bridge is made."""
    namespace.ip("link", "add", BRIDGE, "up", "type", "bridge")
    with namespace.entered():
        route = RouteSocket()
        bridge_index = socket.if_nametoindex(BRIDGE)
    with route:
        yield BareKernel(namespace, route, bridge_index)


def _make_tap(name: str, owner_uid: int) -> None:
    """Make a persistent tap: five system calls."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tun, TUNSETIFF, _REQUEST.pack(name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL))
        fcntl.ioctl(tun, TUNSETOWNER, owner_uid)
        fcntl.ioctl(tun, TUNSETPERSIST, 1)
    finally:
        os.close(tun)
