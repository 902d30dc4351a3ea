"""A network's keys of DHCP, and what can be wrong with them."""

from __future__ import annotations

import pytest

from tests.support.configs import BUILT_IN, parse, problems
from vifd.dhcp.network import DhcpNetwork
from vifd.drivers import catalog
from vifd.errors import ConfigError


def blue(*lines: str) -> str:
    return "\n".join(['[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"', *lines])


def test_each_key_is_read() -> None:
    lines = ['addresses = ["10.0.0.1/24"]', "dhcp = true", "mtu = 1400", 'dns = ["192.0.2.53"]', 'domain = "vms.example.org"']
    assert catalog.dhcp_networks(BUILT_IN, parse(blue(*lines))) == {
        "blue": DhcpNetwork("br-blue", ("10.0.0.1/24",), 1400, ("192.0.2.53",), "vms.example.org")
    }


def test_a_network_is_not_served_unless_it_says_so() -> None:
    assert catalog.dhcp_networks(BUILT_IN, parse(blue('addresses = ["10.0.0.1/24"]'))) == {}
    assert catalog.dhcp_networks(BUILT_IN, parse('[networks.blue]\ndriver = "fake"')) == {}


@pytest.mark.parametrize(
    ("key", "sentence", "lines"),
    [
        ("dhcp", 'needs "addresses"', ["dhcp = true"]),
        ("dhcp", "no room for guests", ["dhcp = true", 'addresses = ["10.0.0.1/31"]']),
        ("dhcp", "/64 to /126", ["dhcp = true", 'addresses = ["fd00::1/48"]']),
        ("dhcp", "/64 to /126", ["dhcp = true", 'addresses = ["fd00::1/127"]']),
        ("dhcp", "", ['dhcp = "yes"']),
        ("dns", "no address of a DNS server", ['dns = ["ns.example.org"]']),
        ("dns", "no address of a DNS server", ['dns = ["192.0.2.53,--user=root"]']),
        ("dns", "no address of a DNS server", ['dns = ["fe80::1%eth0"]']),
        ("domain", "no DNS domain", ['domain = "example.org/192.0.2.0"']),
        ("domain", "no DNS domain", ['domain = ".example"']),
        ("domain", "no DNS domain", ['domain = "Example.org"']),
        ("domain", "no DNS domain", [f'domain = "{"a." * 101}b"']),
        ("domain", "no DNS domain", ['domain = "example.org\\n"']),
    ],
)
def test_a_wrong_key_is_told(key: str, sentence: str, lines: list[str]) -> None:
    assert sentence in problems(blue(*lines))[f"networks.blue.{key}"]


def test_two_networks_that_serve_one_bridge_are_told() -> None:
    served = 'driver = "bridge"\nbridge = "br-blue"\naddresses = ["10.0.0.1/24"]\ndhcp = true\n'
    with pytest.raises(ConfigError) as caught:
        catalog.check_together(BUILT_IN, parse(f"[networks.blue]\n{served}[networks.red]\n{served}"))
    assert "network blue serves bridge br-blue already" in dict(caught.value.problems)["networks.red.dhcp"]
