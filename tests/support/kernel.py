"""What the kernel has in a namespace, read back with `ip` and `bridge`; and how a process opens a tap there."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.support.daemon import ip

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _TUNSETPERSIST, _TUNGETIFF = 0x400454CA, 0x400454CB, 0x800454D2
_SIOCSIFHWADDR, _ARPHRD_ETHER = 0x8924, 1
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
# What the kernel changes by itself: some time after a port came or went (net/core/link_watch.c), and on a bridge that had one
# (net/bridge/br_if.c, br_set_gso_limits); and when nobody has claimed an IPv6 address for a while (RFC 4862, 5.4).
_LATE_FLAGS = {"LOWER_UP", "NO-CARRIER"}
_LATE_SETTINGS = ("operstate", "state", "tso_max_size", "tso_max_segs", "tentative")


def snapshot(netns: str) -> Any:
    """Every device with its settings and addresses, without what changes by itself."""
    return [_settled(link) for link in ip(netns, "address", "show")]


def bridge_ports(netns: str) -> Any:
    """Every port of every bridge, as `bridge -d -j link` shows it."""
    done = subprocess.run(["bridge", "-n", netns, "-d", "-j", "link", "show"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


def qdiscs(netns: str, device: str) -> Any:
    """Every qdisc of a device, as `tc -j qdisc` shows it."""
    done = subprocess.run(["tc", "-n", netns, "-j", "qdisc", "show", "dev", device], check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


def settings(netns: str, ifname: str) -> Any:
    """One device with its settings and addresses, without what changes by itself."""
    return next(link for link in snapshot(netns) if link["ifname"] == ifname)


def run(netns: str, *arguments: str) -> None:
    """Run `ip` in a namespace."""
    subprocess.run(["ip", "-n", netns, *arguments], check=True)


def nft(netns: str, *arguments: str) -> str:
    """Run `nft` in a namespace and give what it prints."""
    argv = ["ip", "netns", "exec", netns, "nft", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def inside(netns: str, function: Callable[[], T]) -> T:
    """Call a function in a namespace; what it opens stays there."""

    def run_inside() -> T:
        _enter(netns)
        return function()

    with ThreadPoolExecutor(1) as thread:  # a namespace is a thread's own
        return thread.submit(run_inside).result()


def open_tap(netns: str, ifname: str, *, vnet_hdr: bool = True, multi_queue: bool = False) -> int:
    """Open a tap by its name, as a hypervisor does, and give the descriptor."""

    def attach() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_hdr else 0) | (_IFF_MULTI_QUEUE if multi_queue else 0)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", ifname.encode(), flags))
        except OSError:
            os.close(fd)
            raise
        return fd

    return inside(netns, attach)


def tun_interface(fd: int) -> tuple[str, int]:
    """The device and the flags behind a descriptor of a tap or macvtap, as the kernel says (TUNGETIFF)."""
    name, flags = struct.unpack("16sH22x", fcntl.ioctl(fd, _TUNGETIFF, bytes(40)))
    return name.rstrip(b"\0").decode(), flags


def set_mac(fd: int, mac: str) -> None:
    """Change the MAC of a tap or macvtap as its holder may (SIOCSIFHWADDR, netdevice(7))."""
    name, _ = tun_interface(fd)
    fcntl.ioctl(fd, _SIOCSIFHWADDR, struct.pack("16sH6s16x", name.encode(), _ARPHRD_ETHER, bytes.fromhex(mac.replace(":", ""))))


def packet_socket(netns: str, ifname: str, ether_type: int) -> socket.socket:
    """Open a packet socket (packet(7)) on a device of a namespace."""

    def attach() -> socket.socket:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ether_type))
        one.bind((ifname, ether_type))
        return one

    return inside(netns, attach)


def make_tap(netns: str, ifname: str, *, alias: str = "") -> None:
    """Make a persistent tap with vnet_hdr that isn't vifd's, or pretends to be."""
    fd = open_tap(netns, ifname)
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    os.close(fd)
    if alias:
        run(netns, "link", "set", ifname, "up", "alias", alias)


def let_tap_go(fd: int) -> None:
    """Delete a tap as its owner may: by making it mortal."""
    fcntl.ioctl(fd, _TUNSETPERSIST, 0)
    os.close(fd)


def _enter(netns: str) -> None:
    with Path("/run/netns", netns).open() as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _settled(part) for key, part in value.items() if key not in _LATE_SETTINGS and not key.endswith("_timer")}
        return kept | ({"flags": sorted(set(value["flags"]) - _LATE_FLAGS)} if isinstance(value.get("flags"), list) else {})
    return [_settled(part) for part in value] if isinstance(value, list) else value
