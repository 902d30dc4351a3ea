"""What a request says that a port is to be like, checked field by field and turned into vifd's words."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

from vifd import model
from vifd.server.checker import Checker, optional

_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_MTU_BYTES = range(68, 65536)
_VIDS = range(1, 4095)
_ADDRESSES, _PUBLIC_ADDRESSES, _TX_QUEUE_LENGTH = 64, 16, 100_000
_RATE_BPS, _RATE_PPS, _BURST_BYTES = 1 << 40, (1 << 32) - 1, (1 << 32) - 1
_QOS = range(8)

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def port(check: Checker, message: Any) -> model.Port:
    """Check what a port is to be like, and give it."""
    mac = message.mac.lower()
    check.require(not mac or _is_mac(mac), "mac", 'has to be a unicast address that isn\'t zero, like "52:54:00:12:34:56"')
    mtu = message.mtu_bytes
    check.require(mtu == 0 or mtu in _MTU_BYTES, "mtu_bytes", f"{mtu} is not 0, nor {_MTU_BYTES.start} to {_MTU_BYTES.stop - 1}")
    length = message.tx_queue_length
    check.require(length <= _TX_QUEUE_LENGTH, "tx_queue_length", f"{length} is more than {_TX_QUEUE_LENGTH}")
    return model.Port(
        mac=mac,
        mtu_bytes=mtu,
        addresses=_addresses(check, "addresses", message.addresses, _ADDRESSES, _Address.PREFIX),
        vlan=_vlan(check.at("vlan"), message.vlan) if message.HasField("vlan") else None,
        guard_enabled=message.guard.enabled if message.HasField("guard") else None,
        limits=_limits(check.at("limits"), message.limits, mtu) if message.HasField("limits") else None,
        isolated=optional(message, "isolated", unset=None),
        link_up=optional(message, "link_up", unset=None),
        tx_queue_length=length,
        public_addresses=_addresses(check, "public_addresses", message.public_addresses, _PUBLIC_ADDRESSES, _Address.SINGLE),
        trusted=optional(message, "trusted", unset=None),
    )


class _Address(Enum):
    """What may stand where an address is wanted."""

    SINGLE = 1
    PREFIX = 2


def _addresses(check: Checker, field: str, texts: Sequence[str], most: int, kind: _Address) -> tuple[str, ...]:
    """Give addresses in their canonical form: "10.0.0.7" for one, "10.0.0.0/24" for a prefix."""
    check.require(len(texts) <= most, field, f"has more than {most} addresses")
    known: list[tuple[int, int, int, _Network]] = []  # version, first and last address
    for i, text in enumerate(texts[:most]):
        where, network = f"{field}[{i}]", _as_network(text)
        what = "no IP address" if kind is _Address.SINGLE else "no IP address, with or without a prefix length"
        if network is None or (kind is _Address.SINGLE and network.num_addresses > 1):
            check.require(condition=False, field=where, message=f"{text[:64]!r} is {what}")
            continue
        check.require(_is_usable(network), where, f"{text[:64]!r} can't be a VM's: it is multicast, loopback or unspecified")
        version, first, last = network.version, int(network.network_address), int(network.broadcast_address)
        same = next((one for v, low, high, one in known if v == version and low <= last and first <= high), None)
        check.require(same is None, where, f"{text[:64]!r} is in {same} already")
        known.append((version, first, last, network))
    return tuple(str(n.network_address) if n.num_addresses == 1 else str(n) for *_, n in known)


def _vlan(check: Checker, message: Any) -> model.Vlan:
    vids: Sequence[int] = message.trunk_vids[: len(_VIDS) + 1]  # of more, one is there twice
    check.require(message.vid == 0 or message.vid in _VIDS, "vid", f"{message.vid} is not 1 to 4094")
    check.require(message.native_vid == 0 or message.native_vid in _VIDS, "native_vid", f"{message.native_vid} is not 1 to 4094")
    check.require(all(vid in _VIDS for vid in vids), "trunk_vids", "has a VLAN that is not 1 to 4094")
    check.require(len(set(vids)) == len(vids), "trunk_vids", "has a VLAN twice")
    check.require(bool(message.vid) != bool(vids), "", "needs either vid or trunk_vids")
    check.require(message.qos in _QOS, "qos", f"{message.qos} is more than {_QOS.stop - 1}")
    check.require(not (message.qos and vids), "qos", "needs vid: a trunk's tags are the VM's own")
    protocol = check.enum(message, "protocol", model.VlanProtocol.DOT1Q)
    other = protocol is not model.VlanProtocol.DOT1Q
    check.require(not (other and vids), "protocol", "needs vid: a trunk's tags are the VM's own")
    return model.Vlan(message.vid, tuple(vids), message.native_vid, message.qos, protocol)


def _limits(check: Checker, message: Any, mtu_bytes: int) -> model.Limits:
    check.require(message.HasField("from_vm") or message.HasField("to_vm"), "", "needs from_vm or to_vm")
    return model.Limits(_limit(check, "from_vm", message, mtu_bytes), _limit(check, "to_vm", message, mtu_bytes))


def _limit(check: Checker, direction: str, message: Any, mtu_bytes: int) -> model.RateLimit:
    limit, check = getattr(message, direction), check.at(direction)
    rate_bps, burst_bytes, rate_pps, least_bps = limit.rate_bps, limit.burst_bytes, limit.rate_pps, limit.min_rate_bps
    given = rate_bps or rate_pps or burst_bytes or least_bps
    check.require(given or not message.HasField(direction), "", "limits nothing: give rate_bps or rate_pps, or leave it out")
    check.require(rate_bps <= _RATE_BPS, "rate_bps", f"{rate_bps} is more than 2^40")
    most_bps = rate_bps or _RATE_BPS
    check.require(least_bps <= most_bps, "min_rate_bps", f"{least_bps} is more than {'rate_bps' if rate_bps else '2^40'}")
    check.require(not least_bps or direction == "from_vm", "min_rate_bps", "can be promised only to what comes from the VM")
    check.require(rate_pps <= _RATE_PPS, "rate_pps", f"{rate_pps} is more than 2^32 - 1")
    check.require(burst_bytes <= _BURST_BYTES, "burst_bytes", f"{burst_bytes} is more than 2^32 - 1")
    check.require(not burst_bytes or rate_bps, "burst_bytes", "needs rate_bps")
    least = mtu_bytes or _MTU_BYTES.start
    check.require(
        not burst_bytes or burst_bytes >= least, "burst_bytes", f"{burst_bytes} is less than the MTU: nothing could pass"
    )
    return model.RateLimit(rate_bps, burst_bytes, rate_pps, least_bps)


def _is_mac(text: str) -> bool:
    return _MAC.fullmatch(text) is not None and not int(text[:2], 16) & 1 and text.strip("0:") != ""


def _as_network(text: str) -> _Network | None:
    """Turn an address or a prefix into a network; None where it is neither. A zone names an interface of whoever says it."""
    try:
        return None if "%" in text else ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_usable(network: _Network) -> bool:
    address = network.network_address
    return not (address.is_multicast or address.is_loopback or (address.is_unspecified and network.num_addresses == 1))
