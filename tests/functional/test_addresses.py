"""Addresses of endpoints: handed out of a pool or asked for, never to two, over every end of vifd; and what is refused."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.functional.conftest import BOB
from tests.support import kernel
from tests.support.asking import BRIDGE, TAP, asked, make, refusal, release_all
from tests.support.daemon import Daemon, running, wait_for
from tests.support.restarts import listed, restarted
from vifclient import Client, VifError
from vifclient.messages import Endpoint, PortSpec
from vifclient.retry import NO_RETRY

POOL = 80
POOLED = """
[networks.{name}]
driver = "bridge"
bridge = "br-blue"
addresses = ["10.91.0.1/24", "fd00:91::1/64"]
pool = ["10.91.0.10-10.91.0.89", "fd00:91::/64"]
dns = ["9.9.9.9"]
"""
BLUE = POOLED.format(name="blue")
NETWORKS = f"""
{BLUE}
{POOLED.format(name="twin")}
[networks.narrow]
driver = "bridge"
bridge = "br-narrow"
addresses = ["10.92.0.1/29"]
pool = ["10.92.0.0/30", "10.92.0.5"]

[networks.plain]
driver = "bridge"
bridge = "br-plain"
"""
MAC = "52:54:00:12:34:56"


def port(*addresses: str, **fields: Any) -> PortSpec:
    return PortSpec(addresses=addresses, **fields)


def addresses(endpoints: Iterable[Endpoint]) -> list[str]:
    """Every address of endpoints, as often as it is there."""
    return [address for endpoint in endpoints for address in endpoint.port.addresses]


def twice(endpoints: Iterable[Endpoint]) -> list[str]:
    """The addresses that more than one has."""
    return [address for address, count in Counter(addresses(endpoints)).items() if count > 1]


def test_an_endpoint_gets_an_address_of_each_family_and_is_told_the_rest(client: Client) -> None:
    first, second = make(client), make(client, acceptable=[BRIDGE])
    assert len({*addresses([first, second])}) == 4
    config = first.ip_config
    assert list(config.addresses) == [f"{first.port.addresses[0]}/24", f"{first.port.addresses[1]}/64"]
    assert (list(config.gateways), list(config.dns_servers)) == (["10.91.0.1", "fd00:91::1"], ["9.9.9.9"])
    assert client.get_endpoint(first.endpoint_id) == first
    assert not make(client, network="plain").HasField("ip_config")


def test_particular_addresses_can_be_asked_for(client: Client) -> None:
    one = make(client, port=port("10.91.0.200"))
    assert (list(one.port.addresses), list(one.ip_config.gateways)) == (["10.91.0.200"], ["10.91.0.1"])
    inside = make(client, port=port("fd00:91::abc", "10.91.0.50", "10.91.0.224/28"))
    assert list(inside.ip_config.addresses) == ["fd00:91::abc/64", "10.91.0.50/24"]


def test_two_at_once_never_get_the_same(vifd: Daemon, client: Client) -> None:
    def burst(_: int) -> list[Endpoint]:
        with Client(vifd.socket, retry=NO_RETRY) as own:
            made = [make(own) for _ in range(6)]
            return made + [answer.endpoint for answer in own.batch_request_endpoints([asked() for _ in range(4)])]

    with ThreadPoolExecutor(8) as callers:
        made = [endpoint for part in callers.map(burst, range(8)) for endpoint in part]
    assert len(made) == POOL
    assert twice(made) == []
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
        make(client, network="twin")


def test_one_address_wanted_by_many_at_once_is_one_callers(vifd: Daemon, client: Client) -> None:
    def want(_: int) -> str:
        with Client(vifd.socket, retry=NO_RETRY) as own:
            try:
                make(own, port=port("10.91.0.77"))
            except VifError as error:
                return error.reason
            return ""

    with ThreadPoolExecutor(8) as callers:
        assert sorted(callers.map(want, range(8))) == ["", *["ADDRESS_IN_USE"] * 7]


def test_a_pool_that_is_used_up_is_told_and_nothing_changes(vifd: Daemon, as_alice: Client) -> None:
    made = [make(as_alice, network="narrow") for _ in range(3)]
    assert sorted(addresses(made)) == ["10.92.0.2", "10.92.0.3", "10.92.0.5"]
    before = kernel.snapshot(vifd.netns)
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL") as caught:
        make(as_alice, network="narrow")
    assert "network narrow has no free address left in its pool (10.92.0.0/30, 10.92.0.5)" in caught.value.message
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
        as_alice.batch_request_endpoints([asked(), asked(network="narrow")])
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
        as_alice.request_endpoint(asked(network="narrow", validate_only=True))
    assert kernel.snapshot(vifd.netns) == before
    as_alice.release_endpoint(made[0].endpoint_id)
    assert addresses([make(as_alice, network="narrow")]) == addresses([made[0]])


def test_a_batch_that_the_pool_is_too_small_for_takes_none_of_it(vifd: Daemon, as_alice: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
        as_alice.batch_request_endpoints([asked(network="narrow") for _ in range(4)])
    assert (list(as_alice.list_endpoints()), kernel.snapshot(vifd.netns)) == ([], before)
    answers = as_alice.batch_request_endpoints([asked(network="narrow") for _ in range(3)])
    assert twice(answer.endpoint for answer in answers) == []


@pytest.mark.parametrize(
    ("network", "wanted", "sentence"),
    [
        ("blue", port("10.91.0.7"), "10.91.0.7 is another endpoint's on network blue"),
        ("blue", port("10.91.0.100", "10.91.0.8"), "10.91.0.8 is another endpoint's"),
        ("blue", port("10.91.0.4/30"), "10.91.0.4/30 overlaps what is another endpoint's"),
        ("blue", port("10.91.0.130"), "10.91.0.130 is another endpoint's"),
        ("blue", port("fd00:91::7"), "fd00:91::7 is another endpoint's"),
        ("twin", port("10.91.0.7"), "10.91.0.7 is another endpoint's on network twin"),
        ("blue", port(mac=MAC), f"MAC {MAC} is another endpoint's"),
        ("twin", port(mac=MAC.upper()), f"MAC {MAC} is another endpoint's"),
        ("blue", port("10.91.0.1"), "10.91.0.1 is network blue's own"),
        ("blue", port("10.91.0.0"), "10.91.0.0 is network blue's own"),
        ("blue", port("10.91.0.255"), "10.91.0.255 is network blue's own"),
        ("blue", port("fd00:91::1"), "fd00:91::1 is network blue's own"),
        ("blue", port("10.91.0.0/24"), "10.91.0.0/24 has 10.91.0.0, which is network blue's own"),
    ],
)
def test_what_another_has_is_refused_without_a_word_of_whose_it_is(
    vifd: Daemon, as_alice: Client, as_bob: Client, network: str, wanted: PortSpec, sentence: str
) -> None:
    make(as_alice, port=port("10.91.0.7", "10.91.0.8", "fd00:91::7", "10.91.0.128/28", mac=MAC))
    before = kernel.snapshot(vifd.netns)
    with refusal("FAILED_PRECONDITION", "ADDRESS_IN_USE") as caught:
        make(as_bob, network=network, port=wanted)
    assert sentence in caught.value.message
    with refusal("FAILED_PRECONDITION", "ADDRESS_IN_USE"):
        as_bob.batch_request_endpoints([asked(network=network), asked(network=network, port=wanted)])
    assert (list(as_bob.list_endpoints()), kernel.snapshot(vifd.netns)) == ([], before)
    assert make(as_bob, network="plain", port=PortSpec(mac=wanted.mac)).owner.uid == BOB


@pytest.mark.parametrize("address", ["10.92.0.9", "172.16.0.0/12", "fd00:92::1", "192.0.2.1", "::/0"])
def test_what_is_in_no_subnet_of_the_network_is_refused(vifd: Daemon, as_alice: Client, address: str) -> None:
    before = kernel.snapshot(vifd.netns)
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        make(as_alice, port=port("10.91.0.7", address))
    ((field, message),) = caught.value.violations
    assert (field, "10.91.0.0/24" in message) == ("port.addresses[1]", True)
    assert (list(as_alice.list_endpoints()), kernel.snapshot(vifd.netns)) == ([], before)


@pytest.mark.parametrize("validate_only", [False, True])
def test_what_is_in_no_subnet_is_named_with_its_request_of_a_batch(as_alice: Client, validate_only: bool) -> None:
    batch = [asked(port=port(*where), validate_only=validate_only) for where in ([], ["10.91.0.7", "192.0.2.1"], [])]
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        as_alice.batch_request_endpoints(batch)
    assert [field for field, _ in caught.value.violations] == ["requests[1].port.addresses[1]"]
    assert list(as_alice.list_endpoints()) == []


def test_two_that_want_the_same_in_one_batch_are_refused(as_alice: Client) -> None:
    with refusal("FAILED_PRECONDITION", "ADDRESS_IN_USE"):
        as_alice.batch_request_endpoints([asked(network="plain", port=port("192.0.2.7")) for _ in range(2)])
    assert list(as_alice.list_endpoints()) == []


def test_a_look_shows_the_address_that_comes_and_reserves_nothing(client: Client) -> None:
    requests = [asked(network="narrow") for _ in range(3)]
    looks = [asked(one.endpoint_id, network="narrow", validate_only=True) for one in requests]
    seen = [addresses(answer.endpoint for answer in client.batch_request_endpoints(looks)) for _ in range(2)]
    made = addresses(answer.endpoint for answer in client.batch_request_endpoints(requests))
    assert seen == [made, made]


def test_what_was_released_is_not_the_next_to_be_handed_out(client: Client) -> None:
    first = make(client, network="narrow")
    client.release_endpoint(first.endpoint_id)
    assert addresses([make(client, network="narrow")]) != addresses([first])


def test_a_start_keeps_every_address() -> None:
    with running(networks=NETWORKS) as vifd, Client(vifd.socket, retry=NO_RETRY) as client:
        before = {one.endpoint_id: one for one in (make(client, network=name) for name in ("blue", *["narrow"] * 3))}
        assert restarted(vifd) == before
        with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
            make(client, network="narrow")
        taken = addresses(before.values())[0]
        with refusal("FAILED_PRECONDITION", "ADDRESS_IN_USE"):
            make(client, port=port(taken))


def test_a_larger_pool_is_there_after_a_reload() -> None:
    with running(networks=NETWORKS) as vifd, Client(vifd.socket, retry=NO_RETRY) as client:
        for _ in range(3):
            make(client, network="narrow")
        vifd.write_config(NETWORKS.replace('"10.92.0.5"', '"10.92.0.5-10.92.0.6"'))
        assert vifd.process is not None
        vifd.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "the configuration is read again" in vifd.log())
        assert addresses([make(client, network="narrow")]) == ["10.92.0.6"]
        with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
            make(client, network="narrow")


class Burst(threading.Thread):
    """A caller that requests, alone and in batches, until vifd is gone, and remembers what it was promised."""

    def __init__(self, vifd: Daemon) -> None:
        super().__init__()
        self._vifd = vifd
        self.answered: dict[str, Endpoint] = {}

    def run(self) -> None:
        with Client(self._vifd.socket, retry=NO_RETRY) as client:
            try:
                while True:
                    answers = client.batch_request_endpoints([asked(acceptable=[kind]) for kind in (TAP, BRIDGE)])
                    made = [answer.endpoint for answer in answers] + [make(client, acceptable=[BRIDGE])]
                    self.answered |= {endpoint.endpoint_id: endpoint for endpoint in made}
                    del self.answered[made[0].endpoint_id]  # before it is certain that it is gone
                    client.release_endpoint(made[0].endpoint_id)
            except VifError:
                return


@pytest.mark.parametrize("calls", range(0, 50, 10))
def test_a_kill_in_the_middle_of_a_burst_leaves_no_address_to_two(calls: int) -> None:
    with running(networks=BLUE.replace("10.91.0.10-10.91.0.89", "10.91.0.0/24")) as vifd:
        bursts = [Burst(vifd) for _ in range(4)]
        for burst in bursts:
            burst.start()
        wait_for(lambda: sum(len(burst.answered) for burst in bursts) >= calls)
        vifd.kill()
        for burst in bursts:
            burst.join()
        vifd.start()
        found = listed(vifd)
        assert twice(found.values()) == []
        assert all(len(endpoint.port.addresses) == 2 for endpoint in found.values())
        promised = {one: endpoint.port for burst in bursts for one, endpoint in burst.answered.items()}
        assert {one: found[one].port for one in promised if one in found} == promised
        with Client(vifd.socket, retry=NO_RETRY) as client:  # nothing is lost either: all that isn't taken can be had
            made = [make(client, acceptable=[BRIDGE]) for _ in range(253 - len(found))]
            with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
                make(client)
            assert twice([*found.values(), *made]) == []
            release_all(client)
