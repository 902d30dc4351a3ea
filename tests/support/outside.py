"""A host between its guests and what is outside: three kinds of network namespaces, cabled."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from tests.support import kernel
from tests.support.daemon import network_namespace
from tests.support.patience import patient

#: On the link between the host and what is outside; and an address that the outside has behind another host.
HOST, OUTSIDE, HOST6, OUTSIDE6 = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"
UPLINK, OUTSIDE_DEVICE, GUEST_DEVICE = "up0", "eth0", "eth0"
_PORT = 9000
_SECONDS = patient(0.3)  # by when a packet that isn't dropped has crossed two namespaces of one machine
_CONNECTION_SECONDS = patient(10)


class Cabled(NamedTuple):
    """The namespaces of the host and of what is outside."""

    host: str
    outside: str


@contextlib.contextmanager
def cabled() -> Iterator[Cabled]:
    """Give a host with an uplink and a default route over it, and a machine at the uplink's other end that knows no way back."""
    with network_namespace() as host, network_namespace() as outside:
        join(host, UPLINK, outside, OUTSIDE_DEVICE)
        for netns, ifname, ip4, ip6 in ((host, UPLINK, HOST, HOST6), (outside, OUTSIDE_DEVICE, OUTSIDE, OUTSIDE6)):
            kernel.run(netns, "address", "add", f"{ip4}/24", "dev", ifname)
            kernel.run(netns, "address", "add", f"{ip6}/64", "dev", ifname, "nodad")
        kernel.run(host, "route", "add", "default", "via", OUTSIDE)
        kernel.run(host, "-6", "route", "add", "default", "via", OUTSIDE6)
        yield Cabled(host, outside)


def join(one: str, ifname: str, other: str, other_ifname: str) -> None:
    """Put a cable between two namespaces, both ends up."""
    kernel.run(one, "link", "add", ifname, "type", "veth", "peer", "name", other_ifname, "netns", other)
    for netns, name in ((one, ifname), (other, other_ifname)):  # a link-local address would come a while later
        kernel.run(netns, "link", "set", name, "addrgenmode", "none", "up")


@contextlib.contextmanager
def guest(host: str, bridge: str, *addresses: str, gateways: tuple[str, ...]) -> Iterator[str]:
    """Give a machine on a bridge of the host's, with addresses and default routes."""
    with network_namespace() as netns:
        port = f"p{netns[-8:]}"
        join(host, port, netns, GUEST_DEVICE)
        kernel.run(host, "link", "set", port, "master", bridge)
        for address in addresses:
            kernel.run(netns, "address", "add", address, "dev", GUEST_DEVICE, *(["nodad"] if ":" in address else []))
        for gateway in gateways:
            kernel.run(netns, *(["-6"] if ":" in gateway else []), "route", "add", "default", "via", gateway)
        yield netns


def ask(source: str, netns: str, address: str, *, to: str = "", by: str = "") -> tuple[str, str] | None:
    """Send a question from one namespace, and the answer from another.

    Args:
        source: who asks.
        netns: who answers.
        address: where it listens.
        to: what the question is sent to; empty: to where it listens.
        by: the asker's own address; empty: the kernel's choice.

    Returns:
        From which address the question came, and from which the answer; None: either got lost.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    asker, answerer = (kernel.inside(name, lambda: socket.socket(family, socket.SOCK_DGRAM)) for name in (source, netns))
    with asker, answerer:
        for one in (asker, answerer):
            one.settimeout(_SECONDS)
        if by:
            asker.bind((by, 0))
        answerer.bind((address, _PORT))
        try:
            asker.sendto(b"?", (to or address, _PORT))
            came_from = answerer.recvfrom(16)[1]
            answerer.sendto(b"!", came_from)
            return came_from[0], asker.recvfrom(16)[1][0]
        except OSError:
            return None


def talk(source: str, netns: str, address: str, *, to: str) -> str:
    """Connect by TCP and send a word each way; give the address that the connection came from.

    Args:
        source: who connects.
        netns: who answers.
        address: where it listens.
        to: what is connected to.

    Raises:
        OSError: it did not come to that.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = kernel.inside(netns, lambda: socket.create_server((address, _PORT), family=family))
    caller = kernel.inside(source, lambda: socket.socket(family, socket.SOCK_STREAM))
    with listener, caller:
        for one in (listener, caller):
            one.settimeout(_CONNECTION_SECONDS)
        caller.connect((to, _PORT))
        answerer, came_from = listener.accept()
        with answerer:
            answerer.settimeout(_CONNECTION_SECONDS)
            for sender, receiver in ((caller, answerer), (answerer, caller)):
                sender.sendall(b"word")
                assert receiver.recv(16) == b"word"
        return str(came_from[0])


def ping(netns: str, address: str) -> bool:
    """Tell whether an address answers ICMP's echo."""
    argv = ["ip", "netns", "exec", netns, "ping", "-c", "1", "-W", str(patient(1)), address]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0
