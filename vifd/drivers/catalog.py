"""The network drivers there are: the built-in ones written out, others through the entry-point group `vifd.network_drivers`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from ipaddress import IPv4Network, IPv6Network, ip_interface
from typing import Any

from msgspec.structs import replace

from vifd.config import Config, NetworkConfig
from vifd.dhcp.network import DhcpNetwork
from vifd.drivers.addressing import Addressing
from vifd.drivers.base import NetworkDriver
from vifd.drivers.bridge import BridgeDriver
from vifd.drivers.direct import DirectDriver
from vifd.drivers.fake import FakeDriver
from vifd.drivers.sriov import SriovDriver
from vifd.drivers.vdpa import VdpaDriver
from vifd.errors import ConfigError, StartError, Violation
from vifd.kernel.authority import Authority, BridgeGrant, FunctionGrant, Grant, UplinkGrant, VdpaGrant
from vifd.kernel.sriov.inventory import Inventory

GROUP = "vifd.network_drivers"
_BUILT_IN: tuple[type[NetworkDriver[Any]], ...] = (BridgeDriver, DirectDriver, SriovDriver, VdpaDriver, FakeDriver)

Catalog = Mapping[str, type[NetworkDriver[Any]]]


def load() -> Catalog:
    """Give every network driver by its name.

    Raises:
        StartError: one from another package can't be loaded, or takes a name that is taken.
    """
    catalog = {driver.name: driver for driver in _BUILT_IN}
    for entry in entry_points(group=GROUP):
        if entry.name in catalog:
            raise StartError(f"two packages have a network driver {entry.name!r}; the second is {entry.value}")
        catalog[entry.name] = _load(entry)
    return catalog


def _load(entry: EntryPoint) -> type[NetworkDriver[Any]]:
    try:
        driver = entry.load()
    except Exception as error:
        raise StartError(f"network driver {entry.name!r} ({entry.value}) can't be loaded: {error}") from error
    if not (isinstance(driver, type) and issubclass(driver, NetworkDriver)):
        raise StartError(f"network driver {entry.name!r} ({entry.value}) is no NetworkDriver")
    if inspect.isabstract(driver):
        missing = ", ".join(sorted(driver.__abstractmethods__))
        raise StartError(f"network driver {entry.name!r} ({entry.value}) lacks {missing}")
    return driver


def check_options(catalog: Catalog, name: str, options: Any) -> list[Violation]:
    """Let a driver check one network's keys."""
    return catalog[name].check_options(options)


def check_together(catalog: Catalog, config: Config) -> None:
    """Check that no two networks say different things of one bridge, and that no uplink and no VF is wanted by two.

    Raises:
        ConfigError: with every network that contradicts one before it.
    """
    grants = authority(catalog, config)
    bridges = {name: grant for name, grant in grants.items() if isinstance(grant, BridgeGrant)}
    problems = [*_check_bridges(catalog, config, bridges), *_check_uplinks(grants, bridges), *_check_nat(bridges)]
    problems += _check_pfs(catalog, config, grants, lambda name: name)
    problems += _check_managers(catalog, config, grants)
    problems += _twice_served(dhcp_networks(catalog, config))
    if problems:
        raise ConfigError(problems)


def find_contradictions(catalog: Catalog, config: Config, inventory: Inventory | None = None) -> list[Violation]:
    """Find what `check_together` can't see: PFs that two networks name differently, of which they say different things.

    Args:
        catalog: the drivers.
        config: checked.
        inventory: the PFs; None: this host's, as they are now.
    """
    known = inventory or Inventory()

    def address_of(name: str) -> str:
        pf = known.find_pf(name)
        return name if pf is None else pf.address

    return list(_check_pfs(catalog, config, authority(catalog, config), address_of))


def _check_bridges(catalog: Catalog, config: Config, grants: Mapping[str, BridgeGrant]) -> Iterator[Violation]:
    first: dict[str, tuple[str, BridgeGrant, Addressing]] = {}
    for name, grant in grants.items():
        network = config.networks[name]
        addressing = catalog[network.driver].addressing(network.options)
        other, *known = first.setdefault(grant.bridge, (name, grant, addressing))
        if known != [grant, addressing]:
            differs = "with another uplink, vlan, mtu, addresses, pool, dns or NAT; let both say the same"
            message = f"network {other} has bridge {grant.bridge} too, {differs}"
            yield Violation(f"networks.{name}.bridge", message)


def _check_uplinks(grants: Authority, bridges: Mapping[str, BridgeGrant]) -> Iterator[Violation]:
    """Find uplinks, or VLANs of them, that two bridges want, and uplinks that can't carry macvtaps for they are on one."""
    first: dict[tuple[str, int], str] = {}
    for name, bridged in bridges.items():
        other = first.setdefault((bridged.uplink, bridged.vlan), name) if bridged.uplink else name
        if bridges[other].bridge != bridged.bridge:
            what = f"VLAN {bridged.vlan} of {bridged.uplink}" if bridged.vlan else bridged.uplink
            message = f"{what} is put on the bridge of network {other}; let both have that bridge, or use another"
            yield Violation(f"networks.{name}.{'vlan' if bridged.vlan else 'uplink'}", message)
    used = {grant.uplink: name for name, grant in bridges.items() if grant.uplink and not grant.vlan}
    for name, grant in grants.items():
        if isinstance(grant, UplinkGrant) and grant.uplink in used:
            message = f"{grant.uplink} is put on the bridge of network {used[grant.uplink]}; use another"
            yield Violation(f"networks.{name}.uplink", message)


def _check_pfs(catalog: Catalog, config: Config, grants: Authority, address_of: Callable[[str], str]) -> Iterator[Violation]:
    """Find PFs of which two networks say different things, or may use the same VFs.

    Args:
        catalog: the drivers.
        config: the networks.
        grants: what they may use.
        address_of: says which PF a name means.
    """
    places = {name: catalog[one.driver].physical_network(one.options) for name, one in config.networks.items()}
    before: dict[str, FunctionGrant] = {}
    for name, grant in grants.items():
        if not isinstance(grant, FunctionGrant):
            continue
        for other, known in before.items():
            others = {address_of(pf) for pf in known.pfs}
            shared = ", ".join(_called(pf, address_of(pf)) for pf in grant.pfs if address_of(pf) in others)
            if shared and places[other] != places[name]:
                message = f"{shared} is on {places[other] or 'none'} for network {other}; let both say the same"
                yield Violation(f"networks.{name}.physical_network", message)
            if shared and grant.vfs and known.vfs and grant.vfs != known.vfs:
                message = f"network {other} wants {known.vfs} VFs on {shared}; let both say the same"
                yield Violation(f"networks.{name}.vfs", message)
            elif shared and _may_share_a_vf(grant, known):
                message = f"network {other} may use the same VFs of {shared}; list in each those that are its own"
                yield Violation(f"networks.{name}.vfs", message)
        before[name] = grant


def _called(name: str, address: str) -> str:
    return name if name == address else f"{name} ({address})"


def _check_managers(catalog: Catalog, config: Config, grants: Authority) -> Iterator[Violation]:
    """Find vDPA management devices that two networks have on different physical networks."""
    first: dict[str, tuple[str, str]] = {}
    for name, grant in grants.items():
        one = config.networks[name]
        place = catalog[one.driver].physical_network(one.options)
        for manager in grant.management_devices if isinstance(grant, VdpaGrant) else ():
            other, known = first.setdefault(manager, (name, place))
            if known != place:
                message = f"{manager} is on {known or 'none'} for network {other}; let both say the same"
                yield Violation(f"networks.{name}.physical_network", message)


def _may_share_a_vf(one: FunctionGrant, two: FunctionGrant) -> bool:
    if one.addresses and two.addresses:
        return not set(one.addresses).isdisjoint(two.addresses)
    if not one.addresses and not two.addresses:
        return True  # each may have all but a few
    listed, rest = (one, two) if one.addresses else (two, one)
    return not set(listed.addresses) <= set(rest.exclude)


def _twice_served(served: Mapping[str, DhcpNetwork]) -> Iterator[Violation]:
    """Find bridges that two networks serve by DHCP: each server would know the guests of one of them."""
    first: dict[str, str] = {}
    for name, network in served.items():
        other = first.setdefault(network.bridge, name)
        if other != name:
            yield Violation(f"networks.{name}.dhcp", f"network {other} serves bridge {network.bridge} already; let one do it")


def _check_nat(grants: Mapping[str, BridgeGrant]) -> Iterator[Violation]:
    """Find subnets with NAT that are behind two bridges, and ways out that are ports of a bridge."""
    subnets = {name: [ip_interface(address).network for address in grant.addresses] for name, grant in grants.items()}
    ports = {grant.uplink: grant.bridge for grant in grants.values() if grant.uplink and not grant.vlan}
    for name, grant in grants.items():
        if not grant.nat:
            continue
        if grant.nat_uplink in ports:
            message = f"{grant.nat_uplink} is put on bridge {ports[grant.nat_uplink]}; name the bridge"
            yield Violation(f"networks.{name}.nat_uplink", message)
        for other, other_grant in grants.items():
            overlap = [(one, two) for one in subnets[name] for two in subnets[other] if _overlap(one, two)]
            if overlap and other_grant.bridge != grant.bridge and (name > other or not other_grant.nat):
                one, two = overlap[0]
                message = f"{one} overlaps {two} of network {other}: the host can't route both"
                yield Violation(f"networks.{name}.addresses", message)


def _overlap(one: IPv4Network | IPv6Network, two: IPv4Network | IPv6Network) -> bool:
    return one[0] in two or two[0] in one


def create(catalog: Catalog, network: NetworkConfig) -> NetworkDriver[Any]:
    """Make the driver of one network."""
    return catalog[network.driver](network.name, network.options)


def authority(catalog: Catalog, config: Config) -> dict[str, Grant]:
    """Say what of the kernel the configured networks need. A bridge for representors is what the network says that it is of."""
    grants = {name: catalog[network.driver].grant(network.options) for name, network in config.networks.items()}
    bridges = {grant.bridge: grant for grant in grants.values() if isinstance(grant, BridgeGrant)}
    for name, grant in grants.items():
        if isinstance(grant, FunctionGrant) and grant.bridge is not None:
            grants[name] = replace(grant, bridge=bridges.get(grant.bridge.bridge, grant.bridge))
    return {name: grant for name, grant in grants.items() if grant is not None}


def dhcp_networks(catalog: Catalog, config: Config) -> dict[str, DhcpNetwork]:
    """Say which of the configured networks are served by DHCP, and how."""
    served = {name: catalog[network.driver].dhcp(network.options) for name, network in config.networks.items()}
    return {name: network for name, network in served.items() if network is not None}
