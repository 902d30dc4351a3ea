"""Networks with NAT: guests get out under the host's address, and nobody gets in."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import kernel
from tests.support.asking import make, refusal
from tests.support.daemon import Daemon, running, wait_for
from tests.support.outside import HOST, HOST6, OUTSIDE, OUTSIDE6, UPLINK, Cabled, ask, cabled, guest, join, ping, talk
from vifclient import Client
from vifclient.messages import Endpoint, PortSpec
from vifclient.retry import NO_RETRY

READ_AGAIN = "the configuration is read again"
GATEWAYS = ("10.91.0.1", "fd00:91::1")


def network(name: str = "blue", **keys: Any) -> str:
    lines = [f'[networks.{name}]\ndriver = "bridge"\nbridge = "br-{name}"']
    values = {key: str(value).lower() if isinstance(value, bool) else repr(value) for key, value in keys.items()}
    return "\n".join([*lines, *(f"{key} = {value}".replace("'", '"') for key, value in values.items())]) + "\n"


BLUE = network(addresses=["10.91.0.1/24", "fd00:91::1/64"], nat=True)
RED = network("red", addresses=["10.92.0.1/24"], nat=True)


def filter_bridges(netns: str, *, on: bool) -> None:
    """Let br_netfilter show the host's tables what a bridge forwards, or not, where the kernel has it."""
    directory = Path("/proc/sys/net/bridge")

    def write() -> None:
        if directory.exists():
            for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
                (directory / name).write_text(str(int(on)))

    kernel.inside(netns, write)


@pytest.fixture
def site() -> Iterator[Cabled]:
    with cabled() as one:
        yield one


@contextlib.contextmanager
def vifd_on(site: Cabled, networks: str = BLUE) -> Iterator[Daemon]:
    with running(netns=site.host, networks=networks) as daemon:
        try:
            yield daemon
        finally:
            print(daemon.log(), listed(site.host))
        assert "Traceback" not in daemon.log()


@contextlib.contextmanager
def blue_guest(site: Cabled, number: int = 5) -> Iterator[str]:
    with guest(site.host, "br-blue", f"10.91.0.{number}/24", f"fd00:91::{number}/64", gateways=GATEWAYS) as netns:
        yield netns


@contextlib.contextmanager
def red_guest(site: Cabled) -> Iterator[str]:
    with guest(site.host, "br-red", "10.92.0.5/24", gateways=("10.92.0.1",)) as netns:
        yield netns


def listed(netns: str, *words: str) -> str:
    command = ["ip", "netns", "exec", netns, "nft", *(words or ("list", "ruleset"))]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def has_table(netns: str) -> bool:
    return "table inet vifd_nat" in listed(netns)


def setting(netns: str, name: str) -> str:
    return kernel.inside(netns, lambda: Path("/proc/sys/net", name).read_text().strip())


def test_a_guest_gets_out_under_the_hosts_address_and_hears_the_answer(site: Cabled) -> None:
    with vifd_on(site), blue_guest(site) as netns:
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)
        assert wait_for(lambda: ask(netns, site.outside, OUTSIDE6)) == (HOST6, OUTSIDE6)


def test_nobody_outside_gets_in(site: Cabled) -> None:
    kernel.run(site.outside, "route", "add", "10.91.0.0/24", "via", HOST)
    kernel.run(site.outside, "route", "add", "fd00:91::/64", "via", HOST6)
    with vifd_on(site), blue_guest(site) as netns:
        assert wait_for(lambda: ask(netns, site.outside, OUTSIDE6)) is not None  # the way is there
        assert ask(netns, site.outside, OUTSIDE) is not None
        assert ask(site.outside, netns, "10.91.0.5") is None
        assert ask(site.outside, netns, "fd00:91::5") is None


def test_guests_reach_the_host_and_each_other_as_they_are(site: Cabled) -> None:
    with vifd_on(site), blue_guest(site) as one, blue_guest(site, 6) as other:
        assert ask(one, site.host, GATEWAYS[0]) == ("10.91.0.5", GATEWAYS[0])
        assert ask(one, site.host, HOST) == ("10.91.0.5", HOST)
        assert ask(one, other, "10.91.0.6") == ("10.91.0.5", "10.91.0.6")
        assert ask(site.host, one, "10.91.0.5") == (GATEWAYS[0], "10.91.0.5")


def test_a_foreign_source_address_doesnt_leave(site: Cabled) -> None:
    with vifd_on(site), blue_guest(site) as netns:
        kernel.run(netns, "address", "add", "198.51.100.9/32", "dev", "lo")
        kernel.run(site.host, "route", "add", "198.51.100.9", "via", "10.91.0.5")
        kernel.run(site.outside, "route", "add", "198.51.100.9", "via", HOST)
        assert ask(netns, site.outside, OUTSIDE, by="198.51.100.9") is None
        assert ask(netns, site.outside, OUTSIDE, by="10.91.0.5") == (HOST, OUTSIDE)


def test_guests_of_two_networks_dont_reach_each_other(site: Cabled) -> None:
    with vifd_on(site, BLUE + RED), blue_guest(site) as blue, red_guest(site) as red:
        assert ask(blue, red, "10.92.0.5") is None
        assert ask(red, blue, "10.91.0.5") is None
        assert ask(red, site.outside, OUTSIDE) == (HOST, OUTSIDE)


def test_guests_dont_reach_a_network_without_nat(site: Cabled) -> None:
    apart = network("red", addresses=["10.92.0.1/24"])
    with vifd_on(site, BLUE + apart), blue_guest(site) as blue, red_guest(site) as red:
        assert ask(blue, red, "10.92.0.5") is None
        assert ask(red, blue, "10.91.0.5") is None


def test_guests_get_out_by_the_named_uplink_alone(site: Cabled) -> None:
    join(site.host, "up1", site.outside, "eth1")
    kernel.run(site.host, "address", "add", "198.51.100.1/24", "dev", "up1")
    kernel.run(site.outside, "address", "add", "198.51.100.2/24", "dev", "eth1")
    with vifd_on(site, network(addresses=["10.91.0.1/24"], nat=True, nat_uplink=UPLINK)) as daemon, blue_guest(site) as netns:
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)
        assert ask(netns, site.outside, "198.51.100.2") is None
        daemon.write_config(BLUE)
        reload(daemon)
        assert ask(netns, site.outside, "198.51.100.2") == ("198.51.100.1", "198.51.100.2")


def test_what_else_the_host_forwards_is_untouched(site: Cabled) -> None:
    with guest_behind(site) as netns, vifd_on(site):
        assert ask(netns, site.outside, OUTSIDE) == ("10.77.0.2", OUTSIDE)
        assert ask(site.outside, netns, "10.77.0.2") == (OUTSIDE, "10.77.0.2")


@contextlib.contextmanager
def guest_behind(site: Cabled) -> Iterator[str]:
    """Give a machine that the host routes for by itself."""
    kernel.run(site.host, "link", "add", "lan0", "type", "bridge")
    kernel.run(site.host, "link", "set", "lan0", "up")
    kernel.run(site.host, "address", "add", "10.77.0.1/24", "dev", "lan0")
    kernel.run(site.outside, "route", "add", "10.77.0.0/24", "via", HOST)
    with guest(site.host, "lan0", "10.77.0.2/24", gateways=("10.77.0.1",)) as netns:
        yield netns


def reload(daemon: Daemon) -> None:
    before = daemon.log().count(READ_AGAIN)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: daemon.log().count(READ_AGAIN) > before)


def test_a_reload_adds_nat_and_takes_it_away(site: Cabled) -> None:
    plain = network(addresses=["10.91.0.1/24"])
    with vifd_on(site, plain) as daemon, blue_guest(site) as netns:
        assert (has_table(site.host), setting(site.host, "ipv4/ip_forward")) == (False, "0")
        daemon.write_config(BLUE)
        reload(daemon)
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)
        daemon.write_config(plain)
        reload(daemon)
        assert not has_table(site.host)


def test_nat_stays_while_vifd_is_away_and_after_its_restart(site: Cabled) -> None:
    with vifd_on(site) as daemon, blue_guest(site) as netns:
        daemon.stop()
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)
        daemon.start()
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)
        assert listed(site.host).count("table inet vifd_nat") == 1


def test_ipv6_is_forwarded_only_where_a_network_has_it_and_the_uplink_goes_on_listening_to_routers(site: Cabled) -> None:
    with vifd_on(site, network(addresses=["10.91.0.1/24"], nat=True)) as daemon:
        assert (setting(site.host, "ipv4/ip_forward"), setting(site.host, "ipv6/conf/all/forwarding")) == ("1", "0")
        assert setting(site.host, f"ipv6/conf/{UPLINK}/accept_ra") == "1"
        daemon.write_config(BLUE)
        reload(daemon)
        assert setting(site.host, "ipv6/conf/all/forwarding") == "1"
        assert setting(site.host, f"ipv6/conf/{UPLINK}/accept_ra") == "2"
        assert setting(site.host, "ipv6/conf/br-blue/accept_ra") == "0"


def test_nat_is_put_back_when_another_program_flushes_the_ruleset(site: Cabled) -> None:
    with running(netns=site.host, networks=BLUE, daemon="own_nftables = false") as daemon, blue_guest(site) as netns:
        listed(site.host, "flush", "ruleset")
        wait_for(lambda: has_table(site.host))
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)
        assert "Traceback" not in daemon.log()


def test_an_earlier_vifds_table_with_other_sets_is_replaced(site: Cabled) -> None:
    listed(site.host, "add", "table", "inet", "vifd_nat")
    with vifd_on(site), blue_guest(site) as netns:
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)


def test_a_rule_of_nat_that_is_exchanged_for_another_is_put_back(site: Cabled) -> None:
    with running(netns=site.host, networks=BLUE, daemon="own_nftables = false") as daemon:
        before = listed(site.host, "-s", "list", "table", "inet", "vifd_nat")
        handle = re.findall(
            r"# handle (\d+)$", listed(site.host, "-a", "list", "chain", "inet", "vifd_nat", "forward"), re.MULTILINE
        )[-1]
        listed(site.host, "replace", "rule", "inet", "vifd_nat", "forward", "handle", handle, "accept")
        wait_for(lambda: listed(site.host, "-s", "list", "table", "inet", "vifd_nat") == before)
        assert "Traceback" not in daemon.log()


def test_nat_on_somebody_elses_bridge_is_refused_and_nothing_of_it_is_judged(site: Cabled) -> None:
    kernel.run(site.host, "link", "add", "br-blue", "type", "bridge")
    with vifd_on(site) as daemon:
        assert "nat = true takes a bridge that vifd makes, and br-blue is somebody else's" in daemon.log()
        assert not has_table(site.host)


PUBLIC, PUBLIC6, OTHER_PUBLIC = "192.0.2.50", "2001:db8::50", "192.0.2.51"
PUBLIC_BLUE = network(
    addresses=["10.91.0.1/24", "fd00:91::1/64"],
    pool=["10.91.0.5-10.91.0.250", "fd00:91::5-fd00:91::250"],
    nat=True,
    nat_uplink=UPLINK,
    public_pool=["192.0.2.50-192.0.2.59", PUBLIC6],
)


@contextlib.contextmanager
def asking(site: Cabled, networks: str = PUBLIC_BLUE) -> Iterator[tuple[Daemon, Client]]:
    with vifd_on(site, networks) as daemon, Client(daemon.socket, retry=NO_RETRY) as client:
        yield daemon, client


def made(client: Client, *publics: str) -> Endpoint:
    return make(client, port=PortSpec(public_addresses=publics))


def held(netns: str, ifname: str = UPLINK) -> set[str]:
    return {address["local"] for address in kernel.settings(netns, ifname)["addr_info"]} - {HOST, HOST6}


def publics_held(netns: str) -> set[str]:
    return {address for address in held(netns) if not address.startswith("fe80")}


def test_a_public_address_is_the_guests_both_ways(site: Cabled) -> None:
    with asking(site) as (_, client), blue_guest(site) as netns:
        endpoint = made(client, PUBLIC, PUBLIC6)
        assert list(endpoint.port.addresses) == ["10.91.0.5", "fd00:91::5"]
        assert list(endpoint.port.public_addresses) == [PUBLIC, PUBLIC6]
        assert publics_held(site.host) == {PUBLIC, PUBLIC6}
        assert ask(netns, site.outside, OUTSIDE) == (PUBLIC, OUTSIDE)
        assert ask(site.outside, netns, "10.91.0.5", to=PUBLIC) == (OUTSIDE, PUBLIC)
        assert wait_for(lambda: ask(netns, site.outside, OUTSIDE6)) == (PUBLIC6, OUTSIDE6)
        assert ask(site.outside, netns, "fd00:91::5", to=PUBLIC6) == (OUTSIDE6, PUBLIC6)
        client.release_endpoint(endpoint.endpoint_id)
        assert publics_held(site.host) == set()
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)


def test_a_public_address_is_reached_from_the_host_and_from_guests_of_every_network(site: Cabled) -> None:
    with asking(site, PUBLIC_BLUE + RED) as (_, client), blue_guest(site) as one, blue_guest(site, 6) as two:
        made(client, PUBLIC)
        with red_guest(site) as red:
            assert ask(red, one, "10.91.0.5", to=PUBLIC) == ("10.92.0.5", PUBLIC)
        came_from, answer_from = ask(two, one, "10.91.0.5", to=PUBLIC) or ("", "")
        assert (came_from in {HOST, "10.91.0.1"}, answer_from) == (True, PUBLIC)
        assert ask(site.host, one, "10.91.0.5", to=PUBLIC) is not None


@pytest.mark.parametrize("filtered", [False, True])
def test_a_public_address_is_reached_from_inside_its_network(site: Cabled, filtered: bool) -> None:
    filter_bridges(site.host, on=filtered)
    with asking(site) as (_, client), blue_guest(site) as one, blue_guest(site, 6) as sibling:
        made(client, PUBLIC, PUBLIC6)
        for private, public, gateway in (("10.91.0.5", PUBLIC, GATEWAYS[0]), ("fd00:91::5", PUBLIC6, GATEWAYS[1])):
            wait_for(lambda to=public: ping(sibling, to))
            assert ask(sibling, one, private, to=public) == (gateway, public)
            assert talk(sibling, one, private, to=public) == gateway
        made(client, OTHER_PUBLIC)
        assert talk(sibling, one, "10.91.0.5", to=PUBLIC) == OTHER_PUBLIC
        assert talk(one, sibling, "10.91.0.6", to=OTHER_PUBLIC) == PUBLIC


def test_a_guest_reaches_its_own_public_address(site: Cabled) -> None:
    filter_bridges(site.host, on=False)
    with asking(site) as (_, client), blue_guest(site) as one:
        made(client, PUBLIC, PUBLIC6)
        for private, public in (("10.91.0.5", PUBLIC), ("fd00:91::5", PUBLIC6)):
            wait_for(lambda to=public: ping(one, to))
            assert ask(one, one, private, to=public) == (public, public)
            assert talk(one, one, private, to=public) == public


def test_only_the_public_address_gets_in(site: Cabled) -> None:
    kernel.run(site.outside, "route", "add", "10.91.0.0/24", "via", HOST)
    with asking(site) as (_, client), blue_guest(site) as netns, blue_guest(site, 6) as other:
        made(client, PUBLIC)
        assert ask(site.outside, netns, "10.91.0.5", to=PUBLIC) is not None
        assert ask(site.outside, netns, "10.91.0.5") is None
        assert ask(site.outside, other, "10.91.0.6", to=PUBLIC) is None


def test_public_addresses_change_while_the_guest_runs(site: Cabled) -> None:
    with asking(site) as (_, client), blue_guest(site) as netns:
        endpoint = made(client, PUBLIC)
        client.update_endpoint(endpoint.endpoint_id, PortSpec(public_addresses=[OTHER_PUBLIC]), ["public_addresses"])
        assert publics_held(site.host) == {OTHER_PUBLIC}
        assert ask(netns, site.outside, OUTSIDE) == (OTHER_PUBLIC, OUTSIDE)
        client.update_endpoint(endpoint.endpoint_id, PortSpec(), ["public_addresses"])
        assert publics_held(site.host) == set()
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)


@pytest.mark.parametrize(
    ("public", "code", "reason"),
    [
        ("192.0.2.60", "PERMISSION_DENIED", "NOT_ALLOWED"),
        (HOST, "PERMISSION_DENIED", "NOT_ALLOWED"),
        ("192.0.2.59", "FAILED_PRECONDITION", "HOST_NOT_READY"),
        (PUBLIC, "FAILED_PRECONDITION", "ADDRESS_IN_USE"),
    ],
)
def test_a_public_address_that_cant_be_had_is_refused_and_nothing_changes(
    site: Cabled, public: str, code: str, reason: str
) -> None:
    kernel.run(site.host, "address", "add", "192.0.2.59/24", "dev", UPLINK)
    with asking(site) as (_, client):
        endpoint = made(client, PUBLIC)
        other = made(client)
        before, rules = kernel.snapshot(site.host), listed(site.host)
        with refusal(code, reason) as caught:
            made(client, public)
        assert public in caught.value.message
        with refusal(code, reason):
            client.update_endpoint(other.endpoint_id, PortSpec(public_addresses=[OTHER_PUBLIC, public]), ["public_addresses"])
        assert (kernel.snapshot(site.host), listed(site.host)) == (before, rules)
        assert {one.endpoint_id for one in client.list_endpoints()} == {endpoint.endpoint_id, other.endpoint_id}


def test_without_a_pool_nobody_gets_a_public_address(site: Cabled) -> None:
    with asking(site, BLUE) as (_, client), refusal("UNIMPLEMENTED", "UNSUPPORTED"):
        made(client, PUBLIC)


def test_public_addresses_survive_restarts_and_a_crash(site: Cabled) -> None:
    with asking(site) as (daemon, client), blue_guest(site) as netns:
        made(client, PUBLIC)
        for end in (daemon.stop, daemon.kill):
            end()
            assert ask(site.outside, netns, "10.91.0.5", to=PUBLIC) == (OUTSIDE, PUBLIC)
            daemon.start()
            assert ask(site.outside, netns, "10.91.0.5", to=PUBLIC) == (OUTSIDE, PUBLIC)


def test_a_public_address_that_somebody_took_away_is_found_and_mended(site: Cabled) -> None:
    with asking(site, f'{PUBLIC_BLUE}repair = "report"\n') as (_, client):
        endpoint = made(client, PUBLIC)
        kernel.run(site.host, "address", "delete", f"{PUBLIC}/32", "dev", UPLINK)
        found = client.check_endpoint(endpoint.endpoint_id)
        assert [PUBLIC in drift.message for drift in found.drifts] == [True]
        client.check_endpoint(endpoint.endpoint_id, repair=True)
        assert publics_held(site.host) == {PUBLIC}
        assert list(client.check_endpoint(endpoint.endpoint_id).drifts) == []


def test_a_reload_that_allows_a_public_address_no_more_takes_it_away(site: Cabled) -> None:
    with asking(site) as (daemon, client), blue_guest(site) as netns:
        made(client, PUBLIC)
        daemon.write_config(PUBLIC_BLUE.replace("192.0.2.50-", "192.0.2.51-"))
        reload(daemon)
        assert publics_held(site.host) == set()
        assert ask(netns, site.outside, OUTSIDE) == (HOST, OUTSIDE)
