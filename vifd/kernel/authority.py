"""What the configuration lets the helper touch, and the helper's own check of every plan against it.

The process that sends plans parses what strangers send, so nothing in a plan is believed: not a name, not a number, not an order.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from msgspec import Struct

from vifd.kernel import names, ops
from vifd.model import Kind, Port

_HOST_MAC = re.compile(r"f[ea](:[0-9a-f]{2}){5}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_VIDS, _QUEUE_LENGTHS, _ADDRESSES = range(1, 4095), range(100_001), 66  # a pool may add one of each family
_RATES_BPS, _NUMBERS = range((1 << 40) + 1), range(1 << 32)
_MTU_BYTES = range(68, 65536)
_IDS = range((1 << 32) - 1)  # (uid_t)-1 means "nobody at all" to the kernel
_QUEUES = range(1, 257)  # MAX_TAP_QUEUES, drivers/net/tun.c


class BridgeGrant(Struct, frozen=True):
    """What one network lets the helper touch.

    Args:
        bridge: the bridge that is made if it is missing, and on which ports are put.
        uplink: the device that is put on it; empty: none.
        mtu_bytes: the MTU of a bridge that vifd makes.
        addresses: the host's addresses on a bridge that vifd makes, with prefix lengths.
    """

    bridge: str
    uplink: str = ""
    mtu_bytes: int = 1500
    addresses: tuple[str, ...] = ()


#: By network.
Authority = Mapping[str, BridgeGrant]


class PlanRejectedError(Exception):
    """A plan asks for what no vifd would plan; its text says what."""


def check_plan(plan: ops.Plan, authority: Authority) -> None:
    """Check a plan before anything of it runs.

    Raises:
        PlanRejectedError: with the first thing that is wrong.
    """
    stages = [ops.STAGES.index(type(operation)) for operation in plan]
    _require(stages == sorted(set(stages)), "operations out of order, or twice")
    made, bridged = "", False
    for operation in plan:
        match operation:
            case ops.EnsureBridge(network):
                _check_network(network, authority)
                bridged = True
            case ops.CreateTap():
                _check_tap(operation)
                made = operation.ifname
            case ops.ConfigurePort(endpoint_id, ifname, network, port):
                _require(ifname == made, f"{ifname!r} is no device of this plan")
                check_identity(endpoint_id, ifname)
                _require(bridged, "a port needs EnsureBridge in its plan")
                _check_network(network, authority)
                check_port(port)
            case ops.ChangePort(endpoint_id, ifname, network, mac, before, port):
                _require(not made, "a device that this plan makes needs no change")
                check_identity(endpoint_id, ifname)
                _require(bridged, "a port needs EnsureBridge in its plan")
                _check_network(network, authority)
                _require(_HOST_MAC.fullmatch(mac) is not None, f"host-side MAC {mac!r}")
                for one in (port,) if before is None else (port, before):
                    check_port(one)
    _require(len({o.network for o in plan if not isinstance(o, ops.CreateTap)}) <= 1, "two networks in one plan")


def check_identity(endpoint_id: str, ifname: str) -> None:
    """Check that a device's name is the one of its endpoint.

    Raises:
        PlanRejectedError: it isn't.
    """
    _require(names.is_endpoint_id(endpoint_id), f"endpoint id {endpoint_id!r}")
    _require(ifname == names.device_name(Kind.TAP, endpoint_id), f"{ifname!r} is not the name of {endpoint_id}'s tap")


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
    for limit in () if port.limits is None else (port.limits.from_vm, port.limits.to_vm):
        known = limit.rate_bps in _RATES_BPS and limit.burst_bytes in _NUMBERS and limit.rate_pps in _NUMBERS
        _require(known, f"the limit {limit}")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _check_network(network: str, authority: Authority) -> None:
    _require(network in authority, f"the configuration has no bridge for network {network!r}")


def _check_tap(operation: ops.CreateTap) -> None:
    check_identity(operation.endpoint_id, operation.ifname)
    _require(_HOST_MAC.fullmatch(operation.mac) is not None, f"host-side MAC {operation.mac!r}")
    _require(operation.owner_uid in _IDS, f"uid {operation.owner_uid}")
    _require(operation.owner_gid is None or operation.owner_gid in _IDS, f"gid {operation.owner_gid}")
    _require(operation.queues in _QUEUES, f"{operation.queues} queues")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PlanRejectedError(message)
