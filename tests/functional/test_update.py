"""Live changes of a port: each field, back to vifd's choice, refused, failed, and cut off in the middle."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import frames, guests, kernel
from tests.support.asking import BRIDGE, make, refusal
from tests.support.daemon import Daemon, ip, is_alive, running, wait_for
from vifclient import Client, VifError
from vifclient.messages import Endpoint, GuardSpec, LimitsSpec, PortSpec, RateLimit, VlanSpec
from vifclient.retry import NO_RETRY

NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"
addresses = ["10.91.0.1/24"]
mtu = 2000
repair = "report"

[[policy]]
uid = 20001
guard = "optional"

[[policy]]
uid = 20002
"""
ADDRESS, OTHER_ADDRESS, PREFIX, FORGED_MAC = "10.91.0.50", "10.91.0.51", "10.91.0.128/28", "02:00:00:00:00:66"
GUARD, NO_GUARD = GuardSpec(enabled=True), GuardSpec(enabled=False)
LIMITS = LimitsSpec(from_vm=RateLimit(rate_bps=10**8, rate_pps=5000), to_vm=RateLimit(rate_bps=2 * 10**8))
KILLS = 8


@pytest.fixture
def endpoint(client: Client) -> Endpoint:
    return make(client, port=PortSpec(guard=GUARD))


def tap_of(vifd: Daemon, endpoint: Endpoint) -> Any:
    return ip(vifd.netns, "link", "show", endpoint.tap.ifname)[0]


def port_of(vifd: Daemon, endpoint: Endpoint) -> Any:
    return tap_of(vifd, endpoint)["linkinfo"]["info_slave_data"]


def qdiscs(vifd: Daemon, endpoint: Endpoint) -> set[str]:
    return {one["kind"] for one in kernel.qdiscs(vifd.netns, endpoint.tap.ifname)}


def is_as_recorded(client: Client, endpoint: Endpoint) -> bool:
    return not client.check_endpoint(endpoint.endpoint_id).drifts


def test_addresses_are_those_of_the_guard_and_go_again(vifd: Daemon, client: Client, endpoint: Endpoint) -> None:
    changed = client.update_endpoint(endpoint.endpoint_id, PortSpec(addresses=[ADDRESS, PREFIX]), ["addresses"])
    assert sorted(changed.port.addresses) == sorted([ADDRESS, PREFIX])
    assert guests.listed(vifd.netns, "ip4", changed.tap.ifname) == [ADDRESS]
    assert len(guests.listed(vifd.netns, "ip4_prefixes", changed.tap.ifname)) == 1
    other = client.update_endpoint(endpoint.endpoint_id, PortSpec(addresses=[OTHER_ADDRESS]), ["addresses"])
    assert guests.listed(vifd.netns, "ip4", changed.tap.ifname) == [OTHER_ADDRESS]
    assert guests.listed(vifd.netns, "ip4_prefixes", changed.tap.ifname) == []
    assert list(other.port.addresses) == [OTHER_ADDRESS]
    none = client.update_endpoint(endpoint.endpoint_id, PortSpec(), ["addresses"])
    assert list(none.port.addresses) == []
    assert guests.listed(vifd.netns, "listed", changed.tap.ifname) == []
    assert is_as_recorded(client, endpoint)


def test_the_guard_goes_and_comes(vifd: Daemon, client: Client, endpoint: Endpoint) -> None:
    assert guests.listed(vifd.netns, "ports", endpoint.tap.ifname) == [endpoint.tap.ifname]
    assert not client.update_endpoint(endpoint.endpoint_id, PortSpec(guard=NO_GUARD), ["guard"]).port.guard.enabled
    assert guests.listed(vifd.netns, "ports", endpoint.tap.ifname) == []
    assert (port_of(vifd, endpoint)["group_fwd_mask"], port_of(vifd, endpoint)["multicast_router"]) == ("0", 1)
    assert is_as_recorded(client, endpoint)
    assert client.update_endpoint(endpoint.endpoint_id, PortSpec(guard=GUARD), ["guard"]).port.guard.enabled
    assert guests.listed(vifd.netns, "ports", endpoint.tap.ifname) == [endpoint.tap.ifname]
    assert (port_of(vifd, endpoint)["group_fwd_mask"], port_of(vifd, endpoint)["multicast_router"]) == ("0xfffd", 0)
    assert is_as_recorded(client, endpoint)


def test_whom_a_vm_pretended_to_be_is_forgotten_when_the_guard_comes(vifd: Daemon, client: Client) -> None:
    endpoint = make(client, port=PortSpec(guard=NO_GUARD))
    with Client(vifd.socket, fd_socket_path=vifd.fd_socket) as holder, guests.guest(holder, endpoint) as guest:

        def learned_of(mac: str) -> set[str]:
            guest.send(frames.probe(mac, 1))
            return guests.learned(vifd.netns, endpoint.tap.ifname)

        wait_for(lambda: FORGED_MAC in learned_of(FORGED_MAC))
        client.update_endpoint(endpoint.endpoint_id, PortSpec(isolated=True), ["isolated"])
        assert FORGED_MAC in guests.learned(vifd.netns, endpoint.tap.ifname)
        client.update_endpoint(endpoint.endpoint_id, PortSpec(guard=GUARD), ["guard"])
        assert FORGED_MAC not in guests.learned(vifd.netns, endpoint.tap.ifname)
        assert FORGED_MAC not in learned_of(FORGED_MAC)
        wait_for(lambda: learned_of(endpoint.port.mac) == {endpoint.port.mac})


def test_limits_come_and_go(vifd: Daemon, client: Client, endpoint: Endpoint) -> None:
    changed = client.update_endpoint(endpoint.endpoint_id, PortSpec(limits=LIMITS), ["limits"])
    assert changed.port.limits == LIMITS
    assert {"tbf", "ingress"} <= qdiscs(vifd, endpoint)
    assert is_as_recorded(client, endpoint)
    assert not client.update_endpoint(endpoint.endpoint_id, PortSpec(), ["limits"]).port.limits.from_vm.rate_bps
    assert not {"tbf", "ingress"} & qdiscs(vifd, endpoint)
    assert [link for link in ip(vifd.netns, "link", "show") if link["ifname"].startswith("ifb")] == []
    assert is_as_recorded(client, endpoint)


def test_isolation_comes_and_goes(vifd: Daemon, client: Client, endpoint: Endpoint) -> None:
    assert client.update_endpoint(endpoint.endpoint_id, PortSpec(isolated=True), ["isolated"]).port.isolated
    assert port_of(vifd, endpoint)["isolated"]
    assert not client.update_endpoint(endpoint.endpoint_id, PortSpec(), ["isolated"]).port.isolated
    assert not port_of(vifd, endpoint)["isolated"]
    assert is_as_recorded(client, endpoint)


def test_the_link_goes_down_and_up(vifd: Daemon, client: Client, endpoint: Endpoint) -> None:
    client.update_endpoint(endpoint.endpoint_id, PortSpec(link_up=False), ["link_up"])
    assert "UP" not in tap_of(vifd, endpoint)["flags"]
    assert is_as_recorded(client, endpoint)
    client.update_endpoint(endpoint.endpoint_id, PortSpec(), ["link_up"])
    assert "UP" in tap_of(vifd, endpoint)["flags"]
    assert is_as_recorded(client, endpoint)


def test_the_mtu_changes_and_goes_back_to_the_networks(vifd: Daemon, client: Client, endpoint: Endpoint) -> None:
    assert client.update_endpoint(endpoint.endpoint_id, PortSpec(mtu_bytes=1400), ["mtu_bytes"]).port.mtu_bytes == 1400
    assert tap_of(vifd, endpoint)["mtu"] == 1400
    assert client.update_endpoint(endpoint.endpoint_id, PortSpec(), ["mtu_bytes"]).port.mtu_bytes == 2000
    assert tap_of(vifd, endpoint)["mtu"] == 2000
    assert is_as_recorded(client, endpoint)


def test_the_queue_length_changes_and_goes_back(vifd: Daemon, client: Client, endpoint: Endpoint) -> None:
    before = tap_of(vifd, endpoint)["txqlen"]
    client.update_endpoint(endpoint.endpoint_id, PortSpec(tx_queue_length=77), ["tx_queue_length"])
    assert tap_of(vifd, endpoint)["txqlen"] == 77
    client.update_endpoint(endpoint.endpoint_id, PortSpec(), ["tx_queue_length"])
    assert tap_of(vifd, endpoint)["txqlen"] == before
    assert is_as_recorded(client, endpoint)


def test_what_the_mask_does_not_name_stays(client: Client, endpoint: Endpoint) -> None:
    client.update_endpoint(endpoint.endpoint_id, PortSpec(addresses=[ADDRESS], limits=LIMITS), ["addresses", "limits"])
    changed = client.update_endpoint(endpoint.endpoint_id, PortSpec(isolated=True, mtu_bytes=1300), ["isolated"])
    assert (list(changed.port.addresses), changed.port.limits, changed.port.mtu_bytes) == ([ADDRESS], LIMITS, 2000)
    assert client.get_endpoint(endpoint.endpoint_id) == changed


@pytest.mark.parametrize(
    "port",
    [
        PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_bps=2**40 + 1))),
        PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_bps=10**6, burst_bytes=100))),
        PortSpec(addresses=["10.91.0.300"]),
        PortSpec(addresses=[ADDRESS, "10.91.0.50/33"]),
        PortSpec(mtu_bytes=20),
    ],
)
def test_a_value_that_no_request_may_have_is_refused(client: Client, endpoint: Endpoint, port: PortSpec) -> None:
    mask = [field.name for field, _ in port.ListFields()]
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        client.update_endpoint(endpoint.endpoint_id, port, mask)
    assert client.get_endpoint(endpoint.endpoint_id) == endpoint


def test_another_users_endpoint_is_not_there(as_alice: Client, as_bob: Client) -> None:
    mine = make(as_alice, port=PortSpec(guard=GUARD))
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        as_bob.update_endpoint(mine.endpoint_id, PortSpec(isolated=True), ["isolated"])
    assert as_alice.get_endpoint(mine.endpoint_id) == mine


def test_who_must_have_the_guard_cannot_switch_it_off(as_bob: Client) -> None:
    mine = make(as_bob)
    assert mine.port.guard.enabled
    with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
        as_bob.update_endpoint(mine.endpoint_id, PortSpec(guard=NO_GUARD), ["guard"])
    assert as_bob.update_endpoint(mine.endpoint_id, PortSpec(), ["guard"]).port.guard.enabled


def test_a_bridge_has_nothing_to_change(client: Client) -> None:
    endpoint = make(client, acceptable=[BRIDGE])
    with refusal("UNIMPLEMENTED", "UNSUPPORTED"):
        client.update_endpoint(endpoint.endpoint_id, PortSpec(isolated=True), ["isolated"])
    assert client.get_endpoint(endpoint.endpoint_id) == endpoint


def test_what_the_bridge_cannot_do_leaves_the_old_state(vifd: Daemon, client: Client, endpoint: Endpoint) -> None:
    before = kernel.snapshot(vifd.netns)
    for port, mask in (
        (PortSpec(mtu_bytes=9000, addresses=[ADDRESS], isolated=True), ["mtu_bytes", "addresses", "isolated"]),
        (PortSpec(vlan=VlanSpec(vid=5), addresses=[ADDRESS]), ["vlan", "addresses"]),
    ):
        with pytest.raises(VifError) as caught:
            client.update_endpoint(endpoint.endpoint_id, port, mask)
        assert caught.value.code.name in ("FAILED_PRECONDITION", "UNIMPLEMENTED")
        assert client.get_endpoint(endpoint.endpoint_id) == endpoint
        assert kernel.snapshot(vifd.netns) == before
        assert guests.listed(vifd.netns, "ip4", endpoint.tap.ifname) == []
    assert is_as_recorded(client, endpoint)
    make(client, port=PortSpec(guard=GUARD, addresses=[ADDRESS]))  # the address is nobody's still


def test_an_address_of_another_is_refused(client: Client, endpoint: Endpoint) -> None:
    make(client, port=PortSpec(guard=GUARD, addresses=[ADDRESS]))
    with refusal("FAILED_PRECONDITION", "ADDRESS_IN_USE"):
        client.update_endpoint(endpoint.endpoint_id, PortSpec(addresses=[ADDRESS], isolated=True), ["addresses", "isolated"])
    assert client.get_endpoint(endpoint.endpoint_id) == endpoint
    assert is_as_recorded(client, endpoint)


# --- cut off in the middle

ONE, OTHER = (
    PortSpec(addresses=[address], limits=LimitsSpec(from_vm=RateLimit(rate_bps=rate)), isolated=isolated, tx_queue_length=length)
    for address, rate, isolated, length in ((ADDRESS, 10**8, False, 100), (OTHER_ADDRESS, 2 * 10**8, True, 200))
)
MASK = ["addresses", "limits", "isolated", "tx_queue_length"]


@pytest.fixture
def mortal() -> Iterator[Daemon]:
    """A daemon that is killed; it tells of drifts, so that none is mended unseen."""
    with running(networks=NETWORKS) as daemon:
        yield daemon
        print(daemon.log()[-5000:])


def signature(port: PortSpec) -> tuple[Any, ...]:
    return tuple(port.addresses), port.limits.from_vm.rate_bps, port.isolated, port.tx_queue_length


def updates(vifd: Daemon, endpoint_id: str, done: list[int]) -> None:
    """Change a port to and fro until vifd is gone."""
    with Client(vifd.socket, retry=NO_RETRY) as client, contextlib.suppress(VifError):
        while True:
            for port in (ONE, OTHER):
                client.update_endpoint(endpoint_id, port, MASK)
                done[0] += 1


@pytest.mark.parametrize("victim", ["front", "helper"])
def test_a_change_that_is_cut_off_is_all_of_the_old_or_all_of_the_new(mortal: Daemon, victim: str) -> None:
    chance = random.Random(20_251_124)
    with Client(mortal.socket) as client:
        endpoint = make(client, port=PortSpec(guard=GUARD))
    seen = set()
    for _ in range(KILLS):
        done = [0]
        thread = threading.Thread(target=updates, args=(mortal, endpoint.endpoint_id, done))
        thread.start()
        goal = chance.randrange(1, 12)
        wait_for(lambda done=done, goal=goal: done[0] >= goal)
        threading.Event().wait(chance.uniform(0, 0.006))  # the moment is random
        assert mortal.process is not None
        helper = mortal.helper_pid
        os.kill(mortal.process.pid if victim == "front" else helper, signal.SIGKILL)
        mortal.wait_dead()
        thread.join()
        wait_for(lambda helper=helper: not is_alive(helper))
        mortal.start()
        with Client(mortal.socket) as client:
            now = client.get_endpoint(endpoint.endpoint_id)
            assert signature(now.port) in {signature(ONE), signature(OTHER)}
            assert list(client.check_endpoint(endpoint.endpoint_id).drifts) == []
            assert guests.listed(mortal.netns, "ip4", now.tap.ifname) == list(now.port.addresses)
        seen.add(signature(now.port))
    assert now.generation == endpoint.generation
