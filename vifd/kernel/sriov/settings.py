"""What a PF is told of a VF, as values and as attributes of rtnetlink (linux/if_link.h, IFLA_VF_*; net/core/rtnetlink.c,
do_setvfinfo).
"""

from __future__ import annotations

import socket
from enum import StrEnum
from struct import pack, unpack_from

from msgspec import Struct

from vifd.kernel import netlink
from vifd.kernel.netlink import Ifla, Link
from vifd.model import Limits, Port, Vlan, VlanProtocol

NO_MAC = "00:00:00:00:00:00"
BPS_A_MBPS = 1_000_000
_INFO, _VLAN_INFO = 1, 1  # IFLA_VF_INFO, IFLA_VF_VLAN_INFO
_MAC, _VLAN, _SPOOF_CHECK, _LINK_STATE, _RATE, _TRUST, _VLAN_LIST = 1, 2, 4, 5, 6, 9, 12
_UNKNOWN = 0xFFFFFFFF  # what the kernel says of a switch that the driver knows nothing of
_PROTOCOLS = {VlanProtocol.DOT1Q: 0x8100, VlanProtocol.DOT1AD: 0x88A8}  # linux/if_ether.h


class LinkState(StrEnum):
    """What a VF is told of its link."""

    AUTO = "auto"
    UP = "up"
    DOWN = "down"


_LINK_STATES = list(LinkState)  # in the order of IFLA_VF_LINK_STATE_*


class Setting(StrEnum):
    """What can be set of a VF by itself, in the order in which it is: what keeps it apart from others first."""

    VLAN = "VLAN"
    MAC = "MAC"
    SPOOF_CHECK = "spoof check"
    TRUST = "trust"
    RATE = "rate"
    LINK_STATE = "link state"


class VfSettings(Struct, frozen=True):
    """All that a PF has been told of a VF; the values are those of one that nobody has told it anything of.

    Args:
        mac: all zeroes: the VF chooses.
        vid: the VLAN that the PF's switch puts its frames into; 0: none.
        qos: the priority in that tag.
        protocol: what kind of tag that is.
        spoof_check: whether it sends only with its own MAC; None: the driver doesn't say.
        trusted: whether it may change its MAC and see others' frames; None: the driver doesn't say.
        min_rate_mbps: what it may always send, in Mbit/s; 0: no promise.
        max_rate_mbps: what it may send at most, in Mbit/s; 0: no limit.
        link_state: what it is told of its link.
    """

    mac: str = NO_MAC
    vid: int = 0
    qos: int = 0
    protocol: VlanProtocol = VlanProtocol.DOT1Q
    spoof_check: bool | None = True
    trusted: bool | None = False
    min_rate_mbps: int = 0
    max_rate_mbps: int = 0
    link_state: LinkState = LinkState.AUTO

    def value_of(self, setting: Setting) -> tuple[object, ...]:
        """Give one setting; what a driver doesn't say is what it is by nature, not trusted."""
        match setting:
            case Setting.VLAN:
                return (self.vid, self.qos, *([self.protocol] if self.vid else []))
            case Setting.MAC:
                return (self.mac,)
            case Setting.SPOOF_CHECK:
                return (self.spoof_check,)
            case Setting.TRUST:
                return (bool(self.trusted),)
            case Setting.RATE:
                return (self.min_rate_mbps, self.max_rate_mbps)
            case Setting.LINK_STATE:
                return (self.link_state,)

    def in_words(self, setting: Setting) -> str:
        """Give one setting as words for people."""
        switch = {True: "on", False: "off", None: "unknown"}
        match setting:
            case Setting.VLAN:
                return f"{self.vid}, priority {self.qos}, {self.protocol}" if self.vid else "none"
            case Setting.MAC:
                return self.mac
            case Setting.SPOOF_CHECK:
                return switch[self.spoof_check]
            case Setting.TRUST:
                return switch[bool(self.trusted)]
            case Setting.RATE:
                return f"{self.min_rate_mbps} to {self.max_rate_mbps or 'any'} Mbit/s"
            case Setting.LINK_STATE:
                return self.link_state

    def differences(self, other: VfSettings) -> list[Setting]:
        """Give the settings in which two differ."""
        return [setting for setting in Setting if self.value_of(setting) != other.value_of(setting)]


def wanted(port: Port) -> VfSettings:
    """Give what a port means for its VF. Its rates are whole Mbit/s (`authority`)."""
    vlan, from_vm = port.vlan or Vlan(), (port.limits or Limits()).from_vm
    return VfSettings(
        mac=port.mac,
        vid=vlan.vid,
        qos=vlan.qos,
        protocol=vlan.protocol,
        spoof_check=True,
        trusted=bool(port.trusted),
        min_rate_mbps=from_vm.min_rate_bps // BPS_A_MBPS,
        max_rate_mbps=from_vm.rate_bps // BPS_A_MBPS,
        link_state=LinkState.DOWN if port.link_up is False else LinkState.AUTO,
    )


def set_vf(pf_ifindex: int, vf_index: int, setting: Setting, settings: VfSettings) -> bytes:
    """Pack the message that tells a PF one setting of a VF."""
    info = netlink.nested(_INFO, _pack(vf_index, setting, settings))
    return netlink.set_link(pf_ifindex, netlink.nested(Ifla.VFINFO_LIST, info))


def read_vf(pf: Link, vf_index: int) -> VfSettings | None:
    """Give what a PF says of a VF; None: it knows no such VF.

    Args:
        pf: as it answers to `netlink.get_link(vfs=True)`.
        vf_index: which VF.
    """
    for kind, payload in netlink.parse_list(pf.attributes.get(Ifla.VFINFO_LIST, b"")):
        info = netlink.parse_attributes(payload)
        if kind == _INFO and unpack_from("=I", info.get(_MAC, b"\xff" * 4))[0] == vf_index:
            return _parse(info)
    return None


def _pack(index: int, setting: Setting, settings: VfSettings) -> bytes:
    match setting:
        case Setting.VLAN if settings.protocol is not VlanProtocol.DOT1Q:
            vlan = pack("=III", index, settings.vid, settings.qos)
            tagged = vlan + pack("=HH", socket.htons(_PROTOCOLS[settings.protocol]), 0)
            return netlink.nested(_VLAN_LIST, netlink.attribute(_VLAN_INFO, tagged))
        case Setting.VLAN:
            return netlink.attribute(_VLAN, pack("=III", index, settings.vid, settings.qos))
        case Setting.MAC:
            return netlink.attribute(_MAC, pack("=I32s", index, bytes.fromhex(settings.mac.replace(":", ""))))
        case Setting.SPOOF_CHECK:
            return netlink.attribute(_SPOOF_CHECK, pack("=II", index, bool(settings.spoof_check)))
        case Setting.TRUST:
            return netlink.attribute(_TRUST, pack("=II", index, bool(settings.trusted)))
        case Setting.RATE:
            return netlink.attribute(_RATE, pack("=III", index, settings.min_rate_mbps, settings.max_rate_mbps))
        case Setting.LINK_STATE:
            return netlink.attribute(_LINK_STATE, pack("=II", index, _LINK_STATES.index(settings.link_state)))


def _parse(info: dict[int, bytes]) -> VfSettings:
    def numbers(kind: int, count: int) -> tuple[int, ...]:
        return unpack_from(f"={count}I", info.get(kind, b"").ljust(4 * (count + 1), b"\0"), 4)

    vid, qos = numbers(_VLAN, 2)
    min_rate, max_rate = numbers(_RATE, 2)
    (state,) = numbers(_LINK_STATE, 1)
    return VfSettings(
        mac=info[_MAC][4:10].hex(":"),
        vid=vid,
        qos=qos,
        protocol=_parse_protocol(info.get(_VLAN_LIST, b"")),
        spoof_check=_parse_switch(info.get(_SPOOF_CHECK)),
        trusted=_parse_switch(info.get(_TRUST)),
        min_rate_mbps=min_rate,
        max_rate_mbps=max_rate,
        link_state=_LINK_STATES[state] if state < len(_LINK_STATES) else LinkState.AUTO,
    )


def _parse_protocol(vlans: bytes) -> VlanProtocol:
    vlan = netlink.parse_attributes(vlans).get(_VLAN_INFO, b"")
    number = socket.ntohs(unpack_from("=H", vlan.ljust(16, b"\0"), 12)[0])
    return next((protocol for protocol, known in _PROTOCOLS.items() if known == number), VlanProtocol.DOT1Q)


def _parse_switch(payload: bytes | None) -> bool | None:
    value = unpack_from("=I", payload, 4)[0] if payload is not None and len(payload) >= 8 else _UNKNOWN
    return None if value == _UNKNOWN else bool(value)
