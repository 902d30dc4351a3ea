"""Limits of an endpoint, asked for of vifd, and measured from its guest and from the host."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.support import flows
from tests.support.asking import make, release_all
from tests.support.daemon import BLUE, Daemon, running, wait_for
from vifclient import Client
from vifclient.messages import Endpoint, GuardSpec, LimitsSpec, PortSpec, RateLimit

HOST, GUEST = "10.91.0.1", "10.91.0.10"
RATE_BPS, RATE_PPS = 20_000_000, 500
RATE = RateLimit(rate_bps=RATE_BPS)
FLOWS = [flows.tcp_bps, flows.udp_bps]


class Line(NamedTuple):
    """A guest that a limited endpoint connects with the host."""

    vifd: Daemon
    client: Client
    endpoint: Endpoint
    guest: str

    def limit(self, from_vm: RateLimit | None = None, to_vm: RateLimit | None = None) -> None:
        """Change the limits of the living endpoint."""
        limits = LimitsSpec(from_vm=from_vm, to_vm=to_vm) if from_vm or to_vm else None
        changed = self.client.update_endpoint(self.endpoint.endpoint_id, PortSpec(limits=limits), ["limits"]).port.limits
        assert (changed.from_vm, changed.to_vm) == (from_vm or RateLimit(), to_vm or RateLimit())


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    with contextlib.ExitStack() as stack:
        vifd = stack.enter_context(running(networks=BLUE))
        client = stack.enter_context(Client(vifd.socket, fd_socket_path=vifd.fd_socket))
        stack.callback(release_all, client)
        endpoint = make(client, port=PortSpec(guard=GuardSpec(enabled=True), addresses=[GUEST]))
        (fd,) = client.acquire_fds(endpoint.endpoint_id).detach()
        guest = stack.enter_context(flows.guest_behind(fd, endpoint.port.mac, f"{GUEST}/24"))
        with flows.udp_receiver(vifd.netns, HOST) as receiver:

            def arrives() -> bool:
                flows.send_datagrams(guest, HOST, 1)
                return flows.drain(receiver) > 0

            wait_for(arrives)
        yield Line(vifd, client, endpoint, guest)
        print(vifd.log()[-3000:])


@pytest.mark.parametrize("measure", FLOWS)
def test_what_the_guest_sends_has_the_rate(line: Line, measure: Callable[..., float]) -> None:
    line.limit(from_vm=RATE)
    assert measure(line.guest, line.vifd.netns, HOST) == pytest.approx(RATE_BPS, rel=0.1)


@pytest.mark.parametrize("measure", FLOWS)
def test_what_the_guest_receives_has_the_rate(line: Line, measure: Callable[..., float]) -> None:
    line.limit(to_vm=RATE)
    assert measure(line.vifd.netns, line.guest, GUEST) == pytest.approx(RATE_BPS, rel=0.1)


@pytest.mark.parametrize("is_from_vm", [True, False])
def test_packets_are_counted_in_each_direction(line: Line, is_from_vm: bool) -> None:
    limit = RateLimit(rate_pps=RATE_PPS)
    line.limit(**({"from_vm": limit} if is_from_vm else {"to_vm": limit}))
    ends = (line.guest, line.vifd.netns, HOST) if is_from_vm else (line.vifd.netns, line.guest, GUEST)
    assert flows.udp_bps(*ends) / (1442 * 8) == pytest.approx(RATE_PPS, rel=0.1)


def test_without_limits_the_same_flow_is_faster(line: Line) -> None:
    line.limit()
    assert flows.udp_bps(line.guest, line.vifd.netns, HOST) > RATE_BPS * 1.3


def police(line: Line) -> dict[str, Any]:
    """What tc shows of the police that limits what the guest sends."""
    command = ["tc", "-n", line.vifd.netns, "-s", "-j", "filter", "show", "dev", line.endpoint.tap.ifname, "ingress"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (action,) = [action for part in shown for action in part.get("options", {}).get("actions", [])]
    assert action["kind"] == "police"
    return dict(action)


@pytest.mark.kernel("police")
def test_a_police_lets_a_burst_through_and_then_the_rate(line: Line) -> None:
    sent, burst = 300, 64
    line.limit(from_vm=RateLimit(rate_pps=1))
    start_s = time.monotonic()
    with flows.udp_receiver(line.vifd.netns, HOST) as receiver:

        def all_have_come() -> Any:
            flows.send_datagrams(line.guest, HOST, 20)  # as many at once as the tap's queue has room for
            stats = police(line)["stats"]
            return stats if stats["packets"] >= sent else None

        stats = wait_for(all_have_come)
        allowed = burst + time.monotonic() - start_s + 1
        assert stats["packets"] - stats["drops"] <= allowed
        wait_for(lambda: receiver.recv(1 << 16))
        assert flows.drain(receiver) < allowed


@pytest.mark.kernel("police")
def test_a_police_has_the_rate_that_the_guest_may_send_with(line: Line) -> None:
    line.limit(from_vm=RateLimit(rate_bps=RATE_BPS, burst_bytes=250_000))
    command = ["tc", "-n", line.vifd.netns, "filter", "show", "dev", line.endpoint.tap.ifname, "ingress"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "rate 20Mbit" in shown
    assert police(line)["stats"]["drops"] == 0
