"""vDPA devices by generic netlink (linux/vdpa.h, drivers/vdpa/vdpa.c), packed by hand.

The kernel speaks of vDPA only in the network namespace that it began with (`netnsok` of vdpa_nl_family is false), and vifd may
work in another: so there is one socket, opened before vifd enters that, and all threads share it. pyroute2's would open one for
each thread, in the namespace of the thread.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from enum import IntEnum
from struct import pack, unpack_from
from typing import NamedTuple, Protocol

from vifd.kernel.netlink import NLM_F_ACK, NLMSG_ERROR, attribute, parse_attributes, parse_error, request, text

_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2  # linux/genetlink.h
_FAMILY, _VERSION = "vdpa", 1
_GENL_HEADER_BYTES, _NETLINK_HEADER_BYTES = 4, 16
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NETLINK_GENERIC = 16  # linux/netlink.h
_RECEIVE_BYTES = 1 << 15
_VIRTIO_ID_NET = 1  # linux/virtio_ids.h


class Command(IntEnum):
    """VDPA_CMD_*."""

    MGMTDEV_GET = 2
    DEV_NEW = 3
    DEV_DEL = 4
    DEV_GET = 5
    DEV_CONFIG_GET = 6


class Attribute(IntEnum):
    """VDPA_ATTR_*."""

    MGMTDEV_BUS_NAME = 1
    MGMTDEV_DEV_NAME = 2
    MGMTDEV_SUPPORTED_CLASSES = 3
    DEV_NAME = 4
    DEV_NET_CFG_MACADDR = 10
    DEV_NET_CFG_MAX_VQP = 12
    DEV_NET_CFG_MTU = 13
    DEV_MGMTDEV_MAX_VQS = 15


class ManagementDevice(NamedTuple):
    """What makes vDPA devices.

    Args:
        is_net: whether they are network devices.
        max_queues: how many queue pairs one has at most; 0: it doesn't say.
    """

    name: str
    is_net: bool
    max_queues: int


class NetConfig(NamedTuple):
    """What a vDPA device tells its VM."""

    mac: str
    mtu_bytes: int


class VdpaNetlink(Protocol):
    """What the kernel is told of vDPA devices, by any thread.

    Raises:
        OSError: of each call: what the kernel says, in its words. EPROTONOSUPPORT: it says nothing of vDPA here.
    """

    def close(self) -> None:
        """Let go of it."""

    def find_management_device(self, name: str) -> ManagementDevice | None:
        """Find a management device; None: there is none of that name."""

    def find(self, name: str) -> str | None:
        """Give the management device of a vDPA device; None: there is no such device."""

    def find_config(self, name: str) -> NetConfig | None:
        """Give what a device tells its VM; None: older kernels say that only of one that a VM has begun to use."""

    def add(self, name: str, management_device: str, *, mac: str, mtu_bytes: int, queues: int) -> None:
        """Make a device.

        Args:
            name: its name.
            management_device: on what.
            mac: its MAC.
            mtu_bytes: its MTU; 0: the driver's choice.
            queues: how many queue pairs it has; 1: the driver isn't told, for not each takes a number.
        """

    def delete(self, name: str) -> None:
        """Delete a device. As long as somebody has it open, this doesn't return, and nothing of vDPA goes on in the whole host
        (vhost_vdpa_remove waits for that under vdpa_dev_lock).
        """


class GenericSocket:
    """The kernel's own; see VdpaNetlink. It works in the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.bind((0, 0))
        self._one_thread = threading.Lock()
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def find_management_device(self, name: str) -> ManagementDevice | None:
        """See VdpaNetlink."""
        found = self._find(Command.MGMTDEV_GET, _management_device(name))
        if found is None:
            return None
        classes = int.from_bytes(found.get(Attribute.MGMTDEV_SUPPORTED_CLASSES, b""), "little")
        max_vqs = int.from_bytes(found.get(Attribute.DEV_MGMTDEV_MAX_VQS, b""), "little")
        return ManagementDevice(name, bool(classes >> _VIRTIO_ID_NET & 1), max_vqs // 2)

    def find(self, name: str) -> str | None:
        """See VdpaNetlink."""
        found = self._find(Command.DEV_GET, text(Attribute.DEV_NAME, name))
        if found is None:
            return None
        parts = [_text(found, kind) for kind in (Attribute.MGMTDEV_BUS_NAME, Attribute.MGMTDEV_DEV_NAME)]
        return "/".join(part for part in parts if part)

    def find_config(self, name: str) -> NetConfig | None:
        """See VdpaNetlink."""
        try:
            found = self._ask(Command.DEV_CONFIG_GET, text(Attribute.DEV_NAME, name))
        except BlockingIOError:
            return None
        mac = found.get(Attribute.DEV_NET_CFG_MACADDR, b"").hex(":")
        return NetConfig(mac, int.from_bytes(found.get(Attribute.DEV_NET_CFG_MTU, b""), "little"))

    def add(self, name: str, management_device: str, *, mac: str, mtu_bytes: int, queues: int) -> None:
        """See VdpaNetlink."""
        attributes = _management_device(management_device) + text(Attribute.DEV_NAME, name)
        attributes += attribute(Attribute.DEV_NET_CFG_MACADDR, bytes.fromhex(mac.replace(":", "")))
        if mtu_bytes:
            attributes += attribute(Attribute.DEV_NET_CFG_MTU, pack("=H", mtu_bytes))
        if queues > 1:
            attributes += attribute(Attribute.DEV_NET_CFG_MAX_VQP, pack("=H", queues))
        self._ask(Command.DEV_NEW, attributes, NLM_F_ACK)

    def delete(self, name: str) -> None:
        """See VdpaNetlink."""
        self._ask(Command.DEV_DEL, text(Attribute.DEV_NAME, name), NLM_F_ACK)

    def _find(self, command: Command, attributes: bytes) -> dict[int, bytes] | None:
        try:
            return self._ask(command, attributes)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None

    def _ask(self, command: Command, attributes: bytes, flags: int = 0) -> dict[int, bytes]:
        """Send a message of vDPA's and give the attributes of the answer, if it has any."""
        with self._one_thread:
            return self._exchange(self._find_family(), command, _VERSION, attributes, flags)

    def _find_family(self) -> int:
        """Give the number of vDPA's messages: each time anew, for with its module it comes and goes."""
        try:
            found = self._exchange(_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, 1, text(_CTRL_ATTR_FAMILY_NAME, _FAMILY), 0)
        except FileNotFoundError as error:
            raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT)) from error
        number: int = unpack_from("=H", found[_CTRL_ATTR_FAMILY_ID])[0]
        return number

    def _exchange(self, family: int, command: int, version: int, attributes: bytes, flags: int) -> dict[int, bytes]:
        self._sequence += 1
        message = request(family, flags, pack("=BBH", command, version, 0) + attributes)
        self._socket.send(message[:8] + pack("=I", self._sequence) + message[12:])
        while True:
            answer = self._socket.recv(_RECEIVE_BYTES)
            length, kind, answer_flags, sequence = unpack_from("=IHHI", answer)
            if sequence == self._sequence:
                break  # an earlier one is of a call that was given up
        if kind != NLMSG_ERROR:
            return parse_attributes(answer[_NETLINK_HEADER_BYTES + _GENL_HEADER_BYTES : length])
        refused = parse_error(answer[:length], answer_flags)
        if refused.errno:
            raise OSError(refused.errno, refused.message)
        return {}


def _management_device(name: str) -> bytes:
    bus, _, device = name.rpartition("/")
    return (text(Attribute.MGMTDEV_BUS_NAME, bus) if bus else b"") + text(Attribute.MGMTDEV_DEV_NAME, device)


def _text(attributes: dict[int, bytes], kind: Attribute) -> str:
    return attributes.get(kind, b"").rstrip(b"\0").decode(errors="replace")
