"""Hot-plug: from the request of an endpoint to the NIC in a running VM, and how much of that time is vifd's."""

from __future__ import annotations

import socket
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.bench.contenders.vifd import make_request
from tests.bench.daemon import running_daemon
from tests.bench.measure import Row, Samples, make_row, timed
from tests.guest import image, machine
from vifclient import Client
from vifclient.hypervisors import qemu, qmp
from vifclient.messages import Endpoint

_REQUESTED, _HANDED, _PLUGGED, _SEEN = "request", "queues handed over", "QMP commands", "until the NIC is there"
#: Who does what, in this order.
_STEPS = {_REQUESTED: "vifd", _HANDED: "vifd", _PLUGGED: "QEMU", _SEEN: "guest"}
_WARM_UP = 2
HOT_PLUGS = 20
_SEEN_TIMEOUT_S = 60.0
_ROOT_PORT = "rp0"
# The guest's kernel tells each device as it comes, and busybox prints it: nobody polls, and the guest idles until then.
_LISTEN = "uevent & until grep -q ' 15 .* 00000001 ' /proc/net/netlink; do :; done"
_NIC_ADDED = r"add@\S+/net/eth0\n"


@dataclass(frozen=True)
class _Guest:
    """A running VM: its QEMU, and its console, on which it tells of its devices."""

    monitor: qmp.Monitor
    console: machine.Console


def measure_hot_plug(advance: Callable[[], None]) -> list[Row]:
    """Plug a tap into a running VM and take it away again, HOT_PLUGS times.

    Args:
        advance: is called after each.
    """
    samples: defaultdict[str, Samples] = defaultdict(list)
    with running_daemon() as daemon, Client(daemon.socket, fd_socket_path=daemon.fd_socket) as client, _running_guest() as guest:
        for _ in range(_WARM_UP):
            _plug_and_unplug(client, guest, defaultdict(list))
        for _ in range(HOT_PLUGS):
            _plug_and_unplug(client, guest, samples)
            advance()
    rows = [make_row(who, f"hot-plug: {step}", samples[step]) for step, who in _STEPS.items()]
    whole = [sum(steps) for steps in zip(*(samples[step] for step in _STEPS), strict=True)]
    vifds = [sum(steps) for steps in zip(samples[_REQUESTED], samples[_HANDED], strict=True)]
    shares = [100 * part / all_ for part, all_ in zip(vifds, whole, strict=True)]
    return [*rows, make_row("all", "hot-plug: request to NIC", whole), make_row("vifd", "hot-plug: share", shares, "%")]


def _plug_and_unplug(client: Client, guest: _Guest, samples: defaultdict[str, Samples]) -> None:
    endpoint = timed(samples[_REQUESTED], client.request_endpoint, make_request()).endpoint
    what = _plug_of(endpoint)
    with timed(samples[_HANDED], client.acquire_fds, endpoint.endpoint_id) as queues:
        timed(samples[_PLUGGED], qmp.plug, guest.monitor, what, queues)
        timed(samples[_SEEN], guest.console.wait_for, _NIC_ADDED, _SEEN_TIMEOUT_S)
    qmp.unplug(guest.monitor, what)
    client.release_endpoint(endpoint.endpoint_id)


def _plug_of(endpoint: Endpoint) -> qemu.Plug:
    return qemu.plug(endpoint, netdev_id="net0", device_options={"bus": _ROOT_PORT, "romfile": ""})


@contextmanager
def _running_guest() -> Iterator[_Guest]:
    """Boot the tests' guest without a NIC, but with a port for one."""
    ours, its = socket.socketpair()
    with its:
        number = its.fileno()
        monitor = ["-chardev", f"socket,id=qmp,fd={number}", "-mon", "chardev=qmp,mode=control"]
        argv = [*machine.argv(image.build(), addresses={}), *monitor, "-device", f"pcie-root-port,id={_ROOT_PORT}"]
        process = subprocess.Popen(argv, pass_fds=[number], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            console = machine.Console(process)
            console.wait_for(machine.READY, machine.BOOT_TIMEOUT_S)
            console.run(_LISTEN)
            with qmp.Monitor(ours) as one:
                yield _Guest(one, console)
        finally:
            process.kill()
