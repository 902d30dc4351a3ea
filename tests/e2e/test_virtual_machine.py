"""Real virtual machines on endpoints that an ordinary user asked for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.hypervisor import DriverError, Hypervisor
from tests.support.daemon import Daemon, ip, wait_for
from vifclient import Client, Watch
from vifclient.messages import Endpoint, EndpointState, WatchEventKind

# generous: the machines are emulated, and whoever runs this may have a slow and busy CPU
pytestmark = pytest.mark.timeout(300)

NETWORK = "blue"
HOST_ADDRESS = "10.91.0.1"
GUESTS = ("10.91.0.2", "10.91.0.3")


def next_state(watch: Watch, state: EndpointState.ValueType) -> Endpoint:
    """Wait until the watched endpoint is in a state."""
    for event in watch:
        if event.endpoint.state == state:
            return event.endpoint
    raise AssertionError("the watch ended")


def wait_until_gone(watch: Watch) -> None:
    for event in watch:
        if event.kind == WatchEventKind.WATCH_EVENT_KIND_REMOVED:
            return
    raise AssertionError("the watch ended")


def links(host: Daemon) -> dict[str, Any]:
    """Every device of vifd's namespace by name, read with ip."""
    return {link["ifname"]: link for link in ip(host.netns, "link", "show")}


def ping(host: Daemon, address: str) -> None:
    """Wait until an address answers three times in a row: a guest on a busy machine may miss the three seconds that ARP waits."""
    command = ["ip", "netns", "exec", host.netns, "ping", "-c", "3", "-i", "0.2", "-W", "10", address]
    wait_for(lambda: "3 received" in subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout, 60)


@pytest.mark.parametrize(("queues", "multi_queue"), [(1, False), (2, True)])
def test_life_of_an_endpoint(host: Daemon, client: Client, hypervisor: Hypervisor, queues: int, multi_queue: bool) -> None:
    before = links(host)
    with client.watch_endpoints(timeout_s=180) as watch:
        endpoint_id = hypervisor.request(NETWORK, queues=queues)
        tap = next_state(watch, EndpointState.ENDPOINT_STATE_READY).tap
        device = links(host)[tap.ifname]["linkinfo"]["info_data"]
        assert (device["multi_queue"], str(device["user"])) == (multi_queue, str(hypervisor.user.uid))
        with hypervisor.boot(endpoint_id, f"{GUESTS[0]}/24", cpus=queues) as guest:
            assert next_state(watch, EndpointState.ENDPOINT_STATE_ATTACHED).endpoint_id == endpoint_id
            ping(host, GUESTS[0])
            next_state(watch, EndpointState.ENDPOINT_STATE_ACTIVE)
            assert guest.console.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l") == (0, f"{queues}\n")
            assert guest.console.run("cat /sys/class/net/eth0/address") == (0, f"{client.get_endpoint(endpoint_id).port.mac}\n")
            guest.power_off()
            next_state(watch, EndpointState.ENDPOINT_STATE_READY)
        hypervisor.release(endpoint_id)
        wait_until_gone(watch)
    assert links(host).keys() == before.keys()


def test_an_endpoint_outlives_a_killed_machine_and_serves_the_next(host: Daemon, client: Client, hypervisor: Hypervisor) -> None:
    endpoint_id = hypervisor.request(NETWORK)
    with client.watch_endpoints(timeout_s=180) as watch:
        with hypervisor.boot(endpoint_id, f"{GUESTS[0]}/24") as guest:
            next_state(watch, EndpointState.ENDPOINT_STATE_ATTACHED)
            guest.process.kill()
            next_state(watch, EndpointState.ENDPOINT_STATE_READY)
        with hypervisor.boot(endpoint_id, f"{GUESTS[0]}/24"):
            next_state(watch, EndpointState.ENDPOINT_STATE_ATTACHED)
            ping(host, GUESTS[0])
    hypervisor.release(endpoint_id)


def test_two_machines_talk_to_each_other(host: Daemon, client: Client, hypervisor: Hypervisor) -> None:
    first, second = hypervisor.request(NETWORK), hypervisor.request(NETWORK)
    with hypervisor.boot(first, f"{GUESTS[0]}/24") as guest, hypervisor.boot(second, f"{GUESTS[1]}/24"):
        status, said = guest.console.run(f"ping -c 3 -W 10 {GUESTS[1]}", timeout_s=60)
        assert status == 0, said
        status, said = guest.console.run(f"ping -c 3 -W 10 {HOST_ADDRESS}", timeout_s=60)
        assert status == 0, said
    hypervisor.release(first)
    hypervisor.release(second)
    assert list(client.list_endpoints()) == []


def test_the_owner_opens_the_tap_by_its_name_and_nobody_else(
    host: Daemon, client: Client, hypervisor: Hypervisor, make_hypervisor: Callable[[int], Hypervisor]
) -> None:
    endpoint_id = hypervisor.request(NETWORK)
    with hypervisor.boot(endpoint_id, f"{GUESTS[0]}/24", by_name=True):
        running = {EndpointState.ENDPOINT_STATE_ATTACHED, EndpointState.ENDPOINT_STATE_ACTIVE}
        assert client.get_endpoint(endpoint_id).state in running
        ping(host, GUESTS[0])
    stranger = make_hypervisor(hypervisor.user.uid + 1)
    with pytest.raises(DriverError, match="Operation not permitted"):
        stranger.open_by_name(client.get_endpoint(endpoint_id).tap.ifname)
    hypervisor.release(endpoint_id)


def test_another_user_gets_nothing_of_it(
    client: Client, hypervisor: Hypervisor, make_hypervisor: Callable[[int], Hypervisor]
) -> None:
    endpoint_id = hypervisor.request(NETWORK)
    stranger = make_hypervisor(hypervisor.user.uid + 1)
    with pytest.raises(DriverError, match="NotFound"), stranger.boot(endpoint_id, f"{GUESTS[0]}/24"):
        pass
    with pytest.raises(DriverError, match="NotAllowed"):
        stranger.release(endpoint_id)
    assert client.get_endpoint(endpoint_id).state == EndpointState.ENDPOINT_STATE_READY
    hypervisor.release(endpoint_id)
