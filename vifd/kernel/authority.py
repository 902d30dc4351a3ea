"""What the configuration lets the helper touch, and the helper's own check of every plan against it.

The process that sends plans parses what strangers send, so nothing in a plan is believed: not a name, not a number, not an order.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from msgspec import Struct

from vifd.kernel import names, ops
from vifd.kernel.sriov.standing import find_problem
from vifd.model import Kind, Port, RateLimit

_HOST_MAC = re.compile(r"f[ea](:[0-9a-f]{2}){5}")
_NO_MAC = "00:00:00:00:00:00"
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_VIDS, _QUEUE_LENGTHS, _ADDRESSES = range(1, 4095), range(100_001), 66  # a pool may add one of each family
_RATES_BPS, _NUMBERS = range((1 << 40) + 1), range(1 << 32)
_MTU_BYTES = range(68, 65536)
_PRIORITIES, _BPS_A_MBPS = range(8), 1_000_000
_IDS = range((1 << 32) - 1)  # (uid_t)-1 means "nobody at all" to the kernel
_QUEUES = range(1, 257)  # MAX_TAP_QUEUES, drivers/net/tun.c
_VDPA_PLACES = range(4096)
_FunctionOperation = ops.ClaimFunction | ops.BindFunction | ops.ChangeFunction
_VdpaOperation = ops.CreateVdpa | ops.BindVdpa


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class BridgeGrant(Struct, frozen=True):
    """What one network lets the helper touch.

    Args:
        bridge: the bridge that is made if it is missing, and on which ports are put.
        uplink: the device that is put on it; empty: none.
        vlan: the VLAN of the uplink whose 802.1Q device is put there in its stead; 0: none.
        uplink_force: whether that may be the host's own way out.
        mtu_bytes: the MTU of a bridge that vifd makes.
        addresses: the host's addresses on a bridge that vifd makes, with prefix lengths.
        nat: whether its guests reach what is outside under an address of the host's.
        nat_uplink: the only device that they get out by; empty: any.
        public_pool: which public addresses its guests may have: ranges as first and last address.
    """

    bridge: str
    uplink: str = ""
    mtu_bytes: int = 1500
    addresses: tuple[str, ...] = ()
    uplink_force: bool = False
    nat: bool = False
    nat_uplink: str = ""
    public_pool: tuple[tuple[str, str], ...] = ()
    vlan: int = 0

    @property
    def uplink_port(self) -> str:
        """The device that is put on the bridge: the uplink, or that of its VLAN; empty: none."""
        return names.vlan_name(self.uplink, self.vlan) if self.vlan else self.uplink

    def allows_public(self, public: Address, private: Address) -> bool:
        """Tell whether a public address may lead to a guest's own."""
        subnets = [ipaddress.ip_interface(address).network for address in self.addresses]
        pool = [(ipaddress.ip_address(first), ipaddress.ip_address(last)) for first, last in self.public_pool]
        in_pool = any(f.version == public.version and int(f) <= int(public) <= int(n) for f, n in pool)
        return self.nat and in_pool and any(private in subnet for subnet in subnets)


class UplinkGrant(Struct, frozen=True):
    """What a direct network lets the helper touch.

    Args:
        uplink: the device that macvtaps are put on; it is set up, and nothing else of it is changed.
        mtu_bytes: what the network wants it to carry; 0: what it does.
    """

    uplink: str
    mtu_bytes: int = 0


class FunctionGrant(Struct, frozen=True):
    """What an SR-IOV network lets the helper touch: VFs, and what their PFs say of them.

    Args:
        pfs: the PFs, each by its netdev's name or its PCI address.
        vfs: how many VFs each PF is to have: made where there are none; 0: as many as there are.
        addresses: the only VFs that may be used, by address; empty: all that aren't excluded.
        exclude: VFs that are never used.
        mtu_bytes: what the network wants the PFs to carry; 0: what they do.
        vlan: the VLAN that all its ports are in; 0: any, or none.
        bridge: where the VFs' representors are put, of PFs whose switch is in mode switchdev; None: it uses no such PF.
    """

    pfs: tuple[str, ...]
    vfs: int = 0
    addresses: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    mtu_bytes: int = 0
    vlan: int = 0
    bridge: BridgeGrant | None = None


class VdpaGrant(Struct, frozen=True):
    """What a vDPA network lets the helper touch: the devices that it makes itself.

    Args:
        management_devices: on which they are made.
        queues: how many queue pairs each has at most.
        mtu_bytes: the largest MTU; 0: any.
    """

    management_devices: tuple[str, ...]
    queues: int = 1
    mtu_bytes: int = 0


Grant = BridgeGrant | UplinkGrant | FunctionGrant | VdpaGrant

#: By network.
Authority = Mapping[str, Grant]


class PlanRejectedError(Exception):
    """A plan asks for what no vifd would plan; its text says what."""


def check_plan(plan: ops.Plan, authority: Authority) -> None:
    """Check a plan before anything of it runs.

    Raises:
        PlanRejectedError: with the first thing that is wrong.
    """
    stages = [ops.STAGES.index(type(operation)) for operation in plan]
    _require(stages == sorted(set(stages)), "operations out of order, or twice")
    if any(isinstance(operation, _FunctionOperation) for operation in plan):
        _check_functions(plan, authority)
    elif any(isinstance(operation, _VdpaOperation) for operation in plan):
        _check_vdpa(plan, authority)
    else:
        _check_devices(plan, authority)


def _check_devices(plan: ops.Plan, authority: Authority) -> None:
    """Check a plan with a tap or a macvtap, or with neither."""
    made, bridged = "", False
    for operation in plan:
        match operation:
            case ops.EnsureBridge(network):
                _check_network(network, authority)
                bridged = True
            case ops.EnsureVlan(network, vid):
                uplink_grant(authority, network)
                _require(vid in _VIDS, f"VLAN {vid}")
            case ops.CreateTap():
                _check_tap(operation)
                made = operation.ifname
            case ops.CreateMacvtap():
                _require(not made, "two devices in one plan")
                _check_macvtap(operation, authority)
                made = operation.ifname
            case ops.EnsureNode() | ops.EnsureOwner():
                _require(made in ("", operation.ifname), f"{operation.ifname!r} is no device of this plan")
                kind = Kind.MACVTAP if isinstance(operation, ops.EnsureNode) else Kind.TAP
                check_identity(operation.endpoint_id, operation.ifname, kind)
                _check_owner(operation.owner_uid, operation.owner_gid)
            case ops.ConfigurePort(endpoint_id, ifname, network, port):
                _require(ifname == made, f"{ifname!r} is no device of this plan")
                _check_place(endpoint_id, ifname, _grant(authority, network), bridged=bridged)
                check_port(port)
                _check_publics(port, _grant(authority, network))
                _check_vlan(plan, port, _grant(authority, network), standing=port)
            case ops.ChangePort(endpoint_id, ifname, network, mac, before, port):
                _require(not made, "a device that this plan makes needs no change")
                _check_place(endpoint_id, ifname, _grant(authority, network), bridged=bridged)
                _check_mac(mac, _grant(authority, network))
                _check_publics(port, _grant(authority, network))
                _check_vlan(plan, port, _grant(authority, network), standing=before or port)
                for one in (port,) if before is None else (port, before):
                    check_port(one)
    networks = {o.network for o in plan if not isinstance(o, ops.CreateTap | ops.EnsureNode | ops.EnsureOwner)}
    _require(len(networks) <= 1, "two networks in one plan")


def check_identity(endpoint_id: str, ifname: str, kind: Kind = Kind.TAP) -> None:
    """Check that a device's name is the one of its endpoint.

    Raises:
        PlanRejectedError: it isn't.
    """
    _require(names.is_endpoint_id(endpoint_id), f"endpoint id {endpoint_id!r}")
    _require(ifname == names.device_name(kind, endpoint_id), f"{ifname!r} is not the name of {endpoint_id}'s {kind}")


def bridge_grant(authority: Authority, network: str) -> BridgeGrant:
    """Give what the configuration says of a network's bridge, or of that for its representors.

    Raises:
        PlanRejectedError: it has none.
    """
    grant = authority.get(network)
    if isinstance(grant, FunctionGrant):
        grant = grant.bridge
    if not isinstance(grant, BridgeGrant):
        raise PlanRejectedError(f"the configuration has no bridge for network {network!r}")
    return grant


def uplink_grant(authority: Authority, network: str) -> UplinkGrant:
    """Give what the configuration says of a direct network's uplink.

    Raises:
        PlanRejectedError: it is no direct network.
    """
    grant = authority.get(network)
    if not isinstance(grant, UplinkGrant):
        raise PlanRejectedError(f"the configuration has no uplink for network {network!r}")
    return grant


def function_grant(authority: Authority, network: str) -> FunctionGrant:
    """Give what the configuration says of an SR-IOV network's VFs.

    Raises:
        PlanRejectedError: it is no SR-IOV network.
    """
    grant = authority.get(network)
    if not isinstance(grant, FunctionGrant):
        raise PlanRejectedError(f"the configuration has no PF for network {network!r}")
    return grant


def vdpa_grant(authority: Authority, network: str) -> VdpaGrant:
    """Give what the configuration says of a vDPA network's devices.

    Raises:
        PlanRejectedError: it is no vDPA network.
    """
    grant = authority.get(network)
    if not isinstance(grant, VdpaGrant):
        raise PlanRejectedError(f"the configuration has no vDPA management device for network {network!r}")
    return grant


def check_function(endpoint_id: str, address: str) -> None:
    """Check that an endpoint and a VF can be ones at all; whose the VF is, its mark says, and which may be used, sysfs.

    Raises:
        PlanRejectedError: they can't.
    """
    _require(names.is_endpoint_id(endpoint_id), f"endpoint id {endpoint_id!r}")
    _require(names.is_pci_address(address), f"PCI address {address!r}")


def check_port(port: Port) -> None:
    """Check what a port is to be like.

    Raises:
        PlanRejectedError: with the first thing that is wrong.
    """
    _require(_MAC.fullmatch(port.mac) is not None and not int(port.mac[:2], 16) & 1, f"the VM's MAC {port.mac!r}")
    _require(port.mtu_bytes == 0 or port.mtu_bytes in _MTU_BYTES, f"MTU {port.mtu_bytes}")
    _require(port.tx_queue_length in _QUEUE_LENGTHS, f"a queue of {port.tx_queue_length}")
    _require(len(port.addresses) <= _ADDRESSES and all(map(_is_network, port.addresses)), "addresses")
    if port.vlan is not None:
        vids = [vid for vid in (port.vlan.vid, port.vlan.native_vid) if vid]
        _require(all(vid in _VIDS for vid in (*vids, *port.vlan.trunk_vids)), "a VLAN that is not 1 to 4094")
        _require(port.vlan.qos in _PRIORITIES, f"priority {port.vlan.qos}")
    for limit in () if port.limits is None else (port.limits.from_vm, port.limits.to_vm):
        known = limit.rate_bps in _RATES_BPS and limit.burst_bytes in _NUMBERS and limit.rate_pps in _NUMBERS
        _require(known and limit.min_rate_bps in _RATES_BPS, f"the limit {limit}")


def own_addresses(port: Port) -> list[Address]:
    """Give the single addresses of a port; what is no address is left out."""
    networks = [ipaddress.ip_network(text) for text in port.addresses if _is_network(text)]
    return [network.network_address for network in networks if network.num_addresses == 1]


def public_pairs(port: Port) -> dict[Address, Address]:
    """Give, by public address, the port's own first address of the same family, that it leads to."""
    own: dict[int, Address] = {}
    for address in own_addresses(port):
        own.setdefault(address.version, address)
    publics = [ipaddress.ip_address(text) for text in port.public_addresses if _is_network(text) and "/" not in text]
    return {public: own[public.version] for public in publics if public.version in own}


def _check_publics(port: Port, grant: BridgeGrant | UplinkGrant) -> None:
    """Check that public addresses are of the network's pool, and lead into it: no other address of the host's is to be had."""
    found = public_pairs(port)
    _require(len(found) == len(port.public_addresses), "a public address that leads to none of the port's own")
    allowed = isinstance(grant, BridgeGrant) and all(grant.allows_public(*pair) for pair in found.items())
    _require(not found or allowed, "a public address that the configuration doesn't allow")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _check_network(network: str, authority: Authority) -> None:
    bridge_grant(authority, network)


def _grant(authority: Authority, network: str) -> BridgeGrant | UplinkGrant:
    grant = authority.get(network)
    if grant is None or isinstance(grant, FunctionGrant | VdpaGrant):
        raise PlanRejectedError(f"the configuration has no bridge for network {network!r}")
    return grant


def _check_place(endpoint_id: str, ifname: str, grant: BridgeGrant | UplinkGrant, *, bridged: bool) -> None:
    """Check that a port's device is its endpoint's, and of the kind that its network has."""
    check_identity(endpoint_id, ifname, Kind.TAP if isinstance(grant, BridgeGrant) else Kind.MACVTAP)
    _require(bridged or isinstance(grant, UplinkGrant), "a port needs EnsureBridge in its plan")


def _check_vlan(plan: ops.Plan, port: Port, grant: BridgeGrant | UplinkGrant, *, standing: Port) -> None:
    """Check that a port is in a VLAN that its network can put it into.

    Args:
        plan: what the port is of.
        port: what it is to be like.
        grant: its network's.
        standing: what it is like when the plan begins: a macvtap stands in the VLAN that it was made in.
    """
    if isinstance(grant, BridgeGrant):
        _require(port.vlan is None or not grant.vlan, "a port in a VLAN, on a network that is one")
        return
    ensured = [operation.vid for operation in plan if isinstance(operation, ops.EnsureVlan)]
    wanted = [] if standing.vlan is None else [standing.vlan.vid]
    _require(ensured == wanted, f"VLANs {ensured} for a port in {wanted}")


def _check_functions(plan: ops.Plan, authority: Authority) -> None:
    """Check a plan with a VF: that is the plan's only device, but for a macvtap that stands on it, or its representor where the
    network has a bridge for those.
    """
    of_vf = [operation for operation in plan if isinstance(operation, _FunctionOperation)]
    others = [operation for operation in plan if operation not in of_vf]
    whose = {(operation.endpoint_id, operation.address, operation.network) for operation in of_vf}
    _require(len(whose) == 1, "two devices in one plan")
    grant = function_grant(authority, of_vf[0].network)
    check_function(of_vf[0].endpoint_id, of_vf[0].address)
    problem = find_problem(plan, of_vf, bridged=grant.bridge is not None)
    _require(not problem, problem)
    for other in others:
        if isinstance(other, ops.EnsureNode):
            _check_owner(other.owner_uid, other.owner_gid)
        elif isinstance(other, ops.ConfigurePort | ops.ChangePort):
            check_port(other.port)
    for operation in of_vf:
        match operation:
            case ops.ClaimFunction(_, _, _, port):
                _check_function_port(port, grant)
            case ops.BindFunction(_, _, _, _, uid, gid):
                _check_owner(uid, gid)
            case ops.ChangeFunction(_, _, _, before, port):
                _require(not isinstance(of_vf[0], ops.ClaimFunction), "a VF that this plan takes needs no change")
                for one in (port,) if before is None else (port, before):
                    _check_function_port(one, grant)


def _check_function_port(port: Port, grant: FunctionGrant) -> None:
    """Check that a VF can be like this: what its NIC can't keep to must not be taken for kept."""
    check_port(port)
    _require(_is_unicast(port.mac), f"MAC {port.mac!r}")
    # Without one it would be in all: it puts tags on by itself then.
    _require(not grant.vlan or (port.vlan is not None and port.vlan.vid == grant.vlan), "a VF outside its network's VLAN")
    if grant.bridge is not None:
        _require(port.vlan is None or not grant.bridge.vlan, "a port in a VLAN, on a bridge that is one")
        _require(not port.public_addresses, "a public address that the configuration doesn't allow")
        return
    _require(not (port.guard_enabled or port.isolated or port.addresses or port.public_addresses), "a guard at a VF")
    _require(not port.tx_queue_length, "a VF with a queue length")
    if port.vlan is not None:
        is_one = port.vlan.vid in _VIDS and not port.vlan.trunk_vids and not port.vlan.native_vid
        _require(is_one, "a VF that isn't in one VLAN")
    if port.limits is not None:
        limit = port.limits.from_vm
        kept = RateLimit(limit.rate_bps, min_rate_bps=limit.min_rate_bps)
        _require(port.limits.to_vm == RateLimit() and limit == kept, "a limit that no VF has")
        _require(not limit.rate_bps % _BPS_A_MBPS and not limit.min_rate_bps % _BPS_A_MBPS, "a rate that isn't whole Mbit/s")
        _require(not limit.rate_bps or limit.min_rate_bps <= limit.rate_bps, "a least rate above the most")


def _check_vdpa(plan: ops.Plan, authority: Authority) -> None:
    """Check a plan with a vDPA device: that is the plan's only one."""
    of_vdpa = [operation for operation in plan if isinstance(operation, _VdpaOperation)]
    whose = {(operation.endpoint_id, operation.name, operation.network) for operation in of_vdpa}
    _require(len(of_vdpa) == len(plan) and len(whose) == 1, "two devices in one plan")
    grant = vdpa_grant(authority, of_vdpa[0].network)
    check_identity(of_vdpa[0].endpoint_id, of_vdpa[0].name, Kind.VDPA)
    for operation in of_vdpa:
        match operation:
            case ops.CreateVdpa(_, _, _, place, port, queues):
                manager, number = names.parse_place(place) or ("", -1)
                known = manager in grant.management_devices and number in _VDPA_PLACES
                _require(known, f"the configuration has no vDPA management device for {place!r}")
                _require(1 <= queues <= grant.queues, f"{queues} queue pairs")
                _check_vdpa_port(port, grant)
            case ops.BindVdpa(_, _, _, uid):
                _check_owner(uid, None)


def _check_vdpa_port(port: Port, grant: VdpaGrant) -> None:
    """Check that a vDPA device can be like this: what it can't keep to must not be taken for kept."""
    check_port(port)
    _require(_is_unicast(port.mac), f"MAC {port.mac!r}")
    _require(not grant.mtu_bytes or port.mtu_bytes <= grant.mtu_bytes, f"MTU {port.mtu_bytes}")
    guarded = port.guard_enabled or port.isolated or port.addresses or port.public_addresses or port.trusted
    others = port.tx_queue_length or port.vlan is not None or port.limits is not None or port.link_up is False
    _require(not guarded and not others, "a setting that no vDPA device has")


def _check_mac(mac: str, grant: BridgeGrant | UplinkGrant) -> None:
    if isinstance(grant, BridgeGrant):
        _require(_HOST_MAC.fullmatch(mac) is not None, f"host-side MAC {mac!r}")
    else:
        _require(_is_unicast(mac), f"MAC {mac!r}")


def _is_unicast(mac: str) -> bool:
    return _MAC.fullmatch(mac) is not None and not int(mac[:2], 16) & 1 and mac != _NO_MAC


def _check_macvtap(operation: ops.CreateMacvtap, authority: Authority) -> None:
    check_identity(operation.endpoint_id, operation.ifname, Kind.MACVTAP)
    uplink_grant(authority, operation.network)
    _require(_is_unicast(operation.mac), f"MAC {operation.mac!r}")


def _check_tap(operation: ops.CreateTap) -> None:
    check_identity(operation.endpoint_id, operation.ifname)
    _require(_HOST_MAC.fullmatch(operation.mac) is not None, f"host-side MAC {operation.mac!r}")
    _check_owner(operation.owner_uid, operation.owner_gid)
    _require(operation.queues in _QUEUES, f"{operation.queues} queues")


def _check_owner(uid: int, gid: int | None) -> None:
    _require(uid in _IDS, f"uid {uid}")
    _require(gid is None or gid in _IDS, f"gid {gid}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PlanRejectedError(message)
