"""Taps by ioctl (linux/if_tun.h; Documentation/networking/tuntap.rst)."""

from __future__ import annotations

import fcntl
import os
import struct

_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_TUNGETIFF, _TUNSETCARRIER = 0x800454D2, 0x400454E2  # the latter since Linux 5.0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x0100, 0x8000
_IFF_NO_CARRIER = 0x0040  # since Linux 6.1; before, no flag that isn't known is looked at
SIOCGIFINDEX, SIOCGIFMTU = 0x8933, 0x8921  # linux/sockios.h


def create(ifname: str, *, uid: int, gid: int | None, multi_queue: bool, vnet_hdr: bool) -> int:
    """Make a tap that lives as long as the descriptor, until `persist` is called: a helper that dies in between leaves nothing.

    It has no carrier, so that nobody takes it for attached as it is set up.

    Args:
        ifname: its name; it must not exist.
        uid: who may open it (TUNSETOWNER).
        gid: the group that the opener must be in as well (TUNSETGROUP), None: no matter.
        multi_queue: whether several queues may be opened.
        vnet_hdr: whether frames carry a virtio-net header.

    Returns:
        The descriptor.

    Raises:
        OSError: EBUSY where a device of that name exists (IFF_TUN_EXCL), or what else the kernel says.
    """
    fd = _attach(ifname, _flags(multi_queue=multi_queue, vnet_hdr=vnet_hdr) | _IFF_TUN_EXCL)
    try:
        fcntl.ioctl(fd, _TUNSETCARRIER, struct.pack("i", 0))
        set_owner(fd, uid=uid, gid=gid)
    except OSError:
        os.close(fd)
        raise
    return fd


def set_owner(fd: int, *, uid: int, gid: int | None) -> None:
    """Say who may open a tap.

    Args:
        fd: a queue of it.
        uid: who (TUNSETOWNER).
        gid: the group that the opener must be in as well (TUNSETGROUP), None: that stays as it is.

    Raises:
        OSError: EBADFD where the tap is gone.
    """
    fcntl.ioctl(fd, _TUNSETOWNER, _as_int(uid))
    if gid is not None:
        fcntl.ioctl(fd, _TUNSETGROUP, _as_int(gid))


def name_of(fd: int) -> str:
    """Give the name that the tap of a queue has now (TUNGETIFF).

    Raises:
        OSError: EBADFD where the tap is gone.
    """
    name: bytes = struct.unpack_from("16s", fcntl.ioctl(fd, _TUNGETIFF, bytes(40)))[0]
    return name.rstrip(b"\0").decode(errors="replace")


def persist(fd: int) -> None:
    """Let a tap outlive its descriptor, and close that."""
    try:
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


def open_queue(ifname: str, *, multi_queue: bool, vnet_hdr: bool, packet_info: bool = False, carrier: bool = True) -> int:
    """Open a queue of a tap that exists, asked for as it is: else the kernel changes it, or refuses.

    The caller checks with `device_number` that it is the one meant: if that has gone in the meantime, the kernel has just made a
    new one, which goes with the descriptor.

    Args:
        ifname: the tap.
        multi_queue: whether several may be opened.
        vnet_hdr: whether frames carry a virtio-net header.
        packet_info: whether frames carry four bytes of the tap's own.
        carrier: whether the tap has carrier from now on, if nobody else has it open.

    Raises:
        OSError: EBUSY where a tap with one queue is open already.
    """
    flags = _flags(multi_queue=multi_queue, vnet_hdr=vnet_hdr, packet_info=packet_info)
    return _attach(ifname, flags | (0 if carrier else _IFF_NO_CARRIER))


def device_number(socket_fd: int, request: int, ifname: str) -> int:
    """Ask one number of a device by its name (netdevice(7)): its index or MTU.

    Args:
        socket_fd: any socket.
        request: SIOCGIFINDEX or SIOCGIFMTU.
        ifname: the device.

    Raises:
        OSError: ENODEV where there is none.
    """
    answer = fcntl.ioctl(socket_fd, request, struct.pack("16si20x", ifname.encode(), 0))
    number: int = struct.unpack_from("16si", answer)[1]
    return number


def _flags(*, multi_queue: bool, vnet_hdr: bool, packet_info: bool = False) -> int:
    form = _IFF_TAP | (0 if packet_info else _IFF_NO_PI)
    return form | (_IFF_MULTI_QUEUE if multi_queue else 0) | (_IFF_VNET_HDR if vnet_hdr else 0)


def _attach(ifname: str, flags: int) -> int:
    fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", ifname.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return fd


def _as_int(number: int) -> int:
    """Give a 32-bit id as the C int that fcntl.ioctl takes."""
    return number - (1 << 32) if number >= 1 << 31 else number
