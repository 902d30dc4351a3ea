"""Where a VM runs: vifd is told, and announces it out of the uplink; nothing is said in its name before."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import frames, kernel
from tests.support.asking import BRIDGE, asked, make, refusal, state_of
from tests.support.daemon import Daemon, network_namespace, running, wait_for
from vifclient import Client, Watch
from vifclient.messages import Endpoint, EndpointPreference, EndpointState, MacvtapPreference, PortSpec

NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"
uplink = "up0"

[networks.red]
driver = "bridge"
bridge = "br-red"

[networks.cable]
driver = "direct"
uplink = "up1"
"""
MAC = "52:54:00:12:34:56"
PORT = PortSpec(mac=MAC, addresses=["10.9.0.7", "2001:db8::7"])
ETH_P_ALL = 3
MACVTAP = EndpointPreference(macvtap=MacvtapPreference())


@pytest.fixture(scope="module")
def host() -> Iterator[Daemon]:
    """A daemon with two uplinks, whose far ends are in its namespace too."""
    with network_namespace() as netns:
        for number in (0, 1):
            kernel.run(netns, "link", "add", f"up{number}", "type", "veth", "peer", "name", f"far{number}")
            kernel.run(netns, "link", "set", f"far{number}", "addrgenmode", "none", "up")
            kernel.run(netns, "link", "set", f"up{number}", "addrgenmode", "none", "up")
        with running(networks=NETWORKS, netns=netns) as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log()


@contextlib.contextmanager
def far_end(daemon: Daemon, ifname: str = "far0") -> Iterator[socket.socket]:
    with contextlib.closing(kernel.packet_socket(daemon.netns, ifname, ETH_P_ALL)) as one:
        yield one


def received(one: socket.socket) -> list[bytes]:
    """What has arrived until now: veth delivers before the sender's call returns, or within the same softirq."""
    found = []
    while select.select([one], [], [], 0.2)[0]:
        found.append(one.recv(2048))
    return found


def in_its_name(found: list[bytes]) -> list[bytes]:
    return [frame for frame in found if frame[6:12] == frames.mac_bytes(MAC)]


@contextlib.contextmanager
def opened(daemon: Daemon, client: Client, endpoint: Endpoint) -> Iterator[int]:
    """Open a tap as a hypervisor does, and wait until vifd knows."""
    fd = kernel.open_tap(daemon.netns, endpoint.tap.ifname)
    try:
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "ATTACHED")
        yield fd
    finally:
        os.close(fd)


def test_a_vm_that_runs_here_is_announced_out_of_the_uplink(vifd: Daemon, client: Client) -> None:
    with far_end(vifd) as far:
        endpoint = make(client, port=PORT)
        with opened(vifd, client, endpoint):
            assert in_its_name(received(far)) == []
            active = client.activate_endpoint(endpoint.endpoint_id)
            assert active.state == EndpointState.ENDPOINT_STATE_ACTIVE
            kinds = [int.from_bytes(frame[12:14], "big") for frame in in_its_name(received(far))]
            assert kinds == [frames.RARP, frames.ARP, frames.IPV6]
            assert client.activate_endpoint(endpoint.endpoint_id) == active
            assert in_its_name(received(far)) == []


def test_a_vm_on_a_macvtap_is_announced_too(vifd: Daemon, client: Client) -> None:
    with far_end(vifd, "far1") as far:
        endpoint = make(client, network="cable", acceptable=[MACVTAP], port=PORT)
        assert in_its_name(received(far)) == []
        client.activate_endpoint(endpoint.endpoint_id)
        assert len(in_its_name(received(far))) == 3
        assert state_of(client, endpoint.endpoint_id) == "ACTIVE"


def test_a_network_without_uplink_has_nobody_to_tell(vifd: Daemon, client: Client) -> None:
    endpoint = make(client, network="red", port=PORT)
    with far_end(vifd) as far, opened(vifd, client, endpoint):
        client.activate_endpoint(endpoint.endpoint_id)
        assert in_its_name(received(far)) == []
    assert "can't be announced" not in vifd.log()


def test_a_device_that_was_taken_off_its_bridge_is_not_announced(vifd: Daemon, client: Client) -> None:
    endpoint = make(client, port=PORT)
    with far_end(vifd) as far, opened(vifd, client, endpoint):
        kernel.run(vifd.netns, "link", "set", "up0", "nomaster")
        client.activate_endpoint(endpoint.endpoint_id)
        assert in_its_name(received(far)) == []
    wait_for(lambda: "aren't on one bridge" in vifd.log())
    kernel.run(vifd.netns, "link", "set", "up0", "master", "br-blue")


def test_an_uplink_that_sends_nothing_keeps_the_helper_from_nothing(vifd: Daemon, client: Client) -> None:
    many = PortSpec(addresses=[f"10.9.1.{i}" for i in range(64)])
    with stuck(vifd.netns, "up0"), contextlib.ExitStack() as stack:
        for _ in range(12):  # 65 frames each: more than a socket's send buffer has room for
            endpoint = make(client, port=many)
            stack.enter_context(opened(vifd, client, endpoint))
            assert client.activate_endpoint(endpoint.endpoint_id).state == EndpointState.ENDPOINT_STATE_ACTIVE
            client.release_endpoint(endpoint.endpoint_id)
    assert "can't be announced" in vifd.log()
    assert "Resource temporarily unavailable" in vifd.log()


@contextlib.contextmanager
def stuck(netns: str, ifname: str) -> Iterator[None]:
    """Let a device keep what it is to send, as one does whose other end has paused it."""
    keep = ["root", "tbf", "rate", "8bit", "burst", "1500", "limit", "10mb"]
    subprocess.run(["tc", "-n", netns, "qdisc", "add", "dev", ifname, *keep], check=True)
    try:
        yield
    finally:
        subprocess.run(["tc", "-n", netns, "qdisc", "del", "dev", ifname, "root"], check=True)


def test_a_tap_that_nobody_has_open_has_no_vm(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    with refusal("FAILED_PRECONDITION", "WRONG_STATE"):
        client.activate_endpoint(endpoint.endpoint_id)
    assert state_of(client, endpoint.endpoint_id) == "READY"


def test_of_a_port_that_the_hypervisor_makes_its_word_counts(vifd: Daemon, client: Client) -> None:
    endpoint = client.request_endpoint(asked(acceptable=[BRIDGE])).endpoint
    assert client.activate_endpoint(endpoint.endpoint_id).state == EndpointState.ENDPOINT_STATE_ACTIVE


def test_what_is_not_there_or_somebody_elses_is_not_activated(
    vifd: Daemon, client: Client, as_bob: Client, as_alice: Client
) -> None:
    endpoint = make(as_alice)
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        as_bob.activate_endpoint(endpoint.endpoint_id)
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        client.activate_endpoint("3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61")


def first_frame(fd: int, endpoint: Endpoint) -> None:
    """Send what a VM sends first: an ARP probe, behind the header of virtio-net."""
    os.write(fd, bytes(10) + frames.probe(endpoint.port.mac, 1))


def next_state(watch: Watch, endpoint: Endpoint, state: str) -> None:
    """Wait until the watch tells of an endpoint's state."""
    wanted = EndpointState.Value(f"ENDPOINT_STATE_{state}")
    for event in watch:
        if event.endpoint.endpoint_id == endpoint.endpoint_id and event.endpoint.state == wanted:
            return
    raise AssertionError("the watch ended")


@pytest.mark.parametrize("network", ["blue", "red"])
def test_the_first_frame_makes_it_active(vifd: Daemon, client: Client, network: str) -> None:
    endpoint = make(client, network=network, port=PortSpec(mac=MAC))
    with client.watch_endpoints(timeout_s=20) as watch, opened(vifd, client, endpoint) as fd:
        first_frame(fd, endpoint)
        next_state(watch, endpoint, "ACTIVE")
    with client.watch_endpoints(timeout_s=20) as watch:
        next_state(watch, endpoint, "READY")


def test_a_vm_that_comes_back_is_noticed_again(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    with client.watch_endpoints(timeout_s=20) as watch:
        for _ in range(3):
            with opened(vifd, client, endpoint) as fd:
                first_frame(fd, endpoint)
                next_state(watch, endpoint, "ACTIVE")
            next_state(watch, endpoint, "READY")


def test_the_first_frame_is_announced(vifd: Daemon, client: Client) -> None:
    endpoint = make(client, port=PORT)
    with far_end(vifd) as far, opened(vifd, client, endpoint) as fd:
        first_frame(fd, endpoint)
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "ACTIVE")
        kinds = [int.from_bytes(frame[12:14], "big") for frame in in_its_name(received(far))]
    assert kinds == [frames.ARP, frames.RARP, frames.ARP, frames.IPV6]  # its own, and those in its name


def test_a_frame_that_the_guard_drops_activates_nothing(vifd: Daemon, client: Client) -> None:
    endpoint, other = make(client), make(client)
    with (
        client.watch_endpoints(timeout_s=20) as watch,
        opened(vifd, client, endpoint) as fd,
        opened(vifd, client, other) as second,
    ):
        os.write(fd, bytes(10) + frames.probe(other.port.mac, 1))
        first_frame(second, other)
        next_state(watch, other, "ACTIVE")
        assert state_of(client, endpoint.endpoint_id) == "ATTACHED"


@pytest.mark.parametrize("kill", [False, True])
def test_a_vm_that_was_first_seen_while_vifd_was_away_is_active_after_its_start(own: Daemon, *, kill: bool) -> None:
    with Client(own.socket) as client:
        endpoint, seen = make(client), make(client)
        with opened(own, client, endpoint) as fd, opened(own, client, seen) as seen_fd:
            first_frame(seen_fd, seen)
            wait_for(lambda: state_of(client, seen.endpoint_id) == "ACTIVE")
            (own.kill if kill else own.stop)()
            first_frame(fd, endpoint)
            own.start()
            with client.watch_endpoints(timeout_s=20) as watch:
                next_state(watch, endpoint, "ACTIVE")
            assert state_of(client, seen.endpoint_id) == "ACTIVE"


def test_the_helper_alone_has_a_socket_to_send_from(vifd: Daemon) -> None:
    assert (packet_sockets(vifd.process.pid), packet_sockets(vifd.helper_pid)) == (0, 1)


def packet_sockets(pid: int) -> int:
    """Count a process' packet sockets (proc(5), /proc/PID/net/packet: the last column is the inode)."""
    lines = Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]
    known = {f"socket:[{line.split()[-1]}]" for line in lines}
    return sum(str(fd.readlink()) in known for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink())
