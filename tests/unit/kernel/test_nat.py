"""What the table of networks with NAT is made from, and what it has."""

import ipaddress

import pytest

from vifd.kernel import nat
from vifd.kernel.authority import BridgeGrant
from vifd.kernel.nft import natrules
from vifd.kernel.nft.nat import NatConfiguration, NatNetwork, elements_of
from vifd.kernel.nft.natrules import Element

BLUE = BridgeGrant("br-blue", addresses=("10.91.0.1/24", "fd00:91::1/64"), nat=True)


def name(ifname: str) -> bytes:
    return ifname.encode().ljust(16, b"\0")


def subnets(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def elements(of: str, *networks: NatNetwork, publics: dict[str, str] | None = None) -> set[Element]:
    translated = {ipaddress.ip_address(key): ipaddress.ip_address(value) for key, value in (publics or {}).items()}
    return {element for element in elements_of(NatConfiguration(networks), translated) if element.of == of}


def test_the_configuration_has_the_networks_with_nat_once_a_bridge() -> None:
    made = nat.configuration({"blue": BLUE, "also": BLUE}, {"blue": BLUE, "also": BLUE})
    assert made == NatConfiguration((NatNetwork("br-blue", subnets("10.91.0.0/24", "fd00:91::/64")),))


def test_networks_apart_are_closed_to_guests_but_not_bridges_that_lead_out() -> None:
    way = BridgeGrant("br-way", addresses=("192.0.2.1/24",))
    authority = {
        "blue": BridgeGrant("br-blue", addresses=("10.91.0.1/24",), nat=True, nat_uplink="br-way"),
        "way": way,
        "lan": BridgeGrant("br-lan", "eth0", addresses=("192.0.2.1/24",)),
        "plain": BridgeGrant("br-plain"),
        "apart": BridgeGrant("br-apart", addresses=("10.93.0.1/24",)),
    }
    assert nat.configuration({"blue": authority["blue"]}, authority).closed == ("br-apart",)


def test_a_network_gets_out_by_any_device_or_by_the_one_that_is_named() -> None:
    free, bound = NatNetwork("br-a", ()), NatNetwork("br-b", (), "eth0")
    assert elements(natrules.FREE, free, bound) == {Element(natrules.FREE, name("br-a"))}
    assert elements(natrules.WAYS, free, bound) == {Element(natrules.WAYS, name("br-b") + name("eth0"))}


def test_subnets_that_touch_are_one_range() -> None:
    made = elements(
        "subnets4", NatNetwork("br-a", subnets("10.0.1.0/24")), NatNetwork("br-b", subnets("10.0.0.0/24", "10.0.3.0/24"))
    )
    assert made == {
        Element("subnets4", bytes([10, 0, 0, 0])),
        Element("subnets4", bytes([10, 0, 2, 0]), is_end=True),
        Element("subnets4", bytes([10, 0, 3, 0])),
        Element("subnets4", bytes([10, 0, 4, 0]), is_end=True),
    }


def test_a_range_to_the_last_address_there_is_has_no_end() -> None:
    made = elements("subnets4", NatNetwork("br-a", subnets("255.255.255.0/24")))
    assert made == {Element("subnets4", bytes([255, 255, 255, 0]))}


def test_a_guest_with_two_public_addresses_leaves_under_the_first() -> None:
    publics = {"203.0.113.9": "10.0.0.5", "203.0.113.7": "10.0.0.5", "2001:db8::7": "fd00::5"}
    assert elements("privates4", publics=publics) == {Element("privates4", bytes([10, 0, 0, 5]), value=bytes([203, 0, 113, 7]))}
    assert len(elements("publics4", publics=publics)) == 2
    assert len(elements("publics6", publics=publics)) == 1


@pytest.mark.parametrize("networks", [0, 1, 50])
def test_the_number_of_rules_is_the_same_with_any_number_of_networks(networks: int) -> None:
    made = [NatNetwork(f"br-{i}", subnets(f"10.{i}.0.0/24")) for i in range(networks)]
    assert len(elements(natrules.BRIDGES, *made)) == networks
    assert sum(message.kind == 6 for message in natrules.messages(0)) == sum(
        len(chain.rules) for chain in natrules.CHAINS.values()
    )
