"""What 802.1Q devices are packed as, against pyroute2; whose one is; and what the kernel's refusals mean."""

from __future__ import annotations

import errno
from struct import pack
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vifd.kernel import names, netlink, vlans
from vifd.kernel.macvtap import Uplink
from vifd.kernel.netlink import Ifla, Link, Reply

UPLINK = Uplink("eth0", 3, 1500, "52:54:00:00:00:01", up=True)
NAME = names.vlan_name("eth0", 7)


def decoded(data: bytes) -> Any:
    message = ifinfmsg(data)
    message.decode()
    return message


def test_a_device_is_made_as_pyroute2_reads_it() -> None:
    message = decoded(vlans.create(NAME, UPLINK, 7))
    assert (message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_LINK")) == (NAME, 3)
    info = message.get_attr("IFLA_LINKINFO")
    assert (info.get_attr("IFLA_INFO_KIND"), info.get_attr("IFLA_INFO_DATA").get_attr("IFLA_VLAN_ID")) == ("vlan", 7)


@pytest.mark.parametrize(
    ("number", "kernels", "words"),
    [
        (errno.EOPNOTSUPP, "Unknown device type", "CONFIG_VLAN_8021Q"),
        (errno.EOPNOTSUPP, "8021q: VLANs not supported on device", "uplink eth0 carries no VLANs"),
        (errno.EEXIST, "8021q: VLAN device already exists", "somebody else's"),
        (errno.ENOMEM, "Cannot allocate memory", "Cannot allocate memory"),
    ],
)
def test_why_there_is_none_is_told(number: int, kernels: str, words: str) -> None:
    found = vlans.explain(UPLINK, 7, Reply(number, kernels))
    assert (found.errno, words in found.message) == (number, True)


def link(*, kind: str = "vlan", lower: int = 3, vid: int = 7, alias: str = "") -> Link:
    info = netlink.text(1, kind) + netlink.nested(2, netlink.attribute(1, pack("=H", vid)))
    attributes = netlink.text(Ifla.IFNAME, NAME) + netlink.number(Ifla.LINK, lower) + netlink.nested(Ifla.LINKINFO, info)
    attributes += netlink.text(Ifla.IFALIAS, alias) if alias else b""
    return Link(7, 0, netlink.parse_attributes(attributes))


@pytest.mark.parametrize(
    ("found", "own"),
    [
        (link(alias="vifd:vlan:eth0:7"), True),
        (link(), True),
        (link(alias="the administrator's"), False),
        (link(alias="vifd:vlan:eth1:7"), False),
        (link(kind="veth"), False),
        (link(lower=4), False),
        (link(vid=8), False),
        (None, False),
    ],
)
def test_only_vifds_device_of_the_uplinks_vlan_is_it(found: Link | None, *, own: bool) -> None:
    assert vlans.is_of(found, UPLINK, 7) is own


def message(kind: str = "vlan", name: str = NAME, alias: str | None = None) -> Any:
    attributes = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]})]
    attributes += [("IFLA_IFALIAS", alias)] if alias else []
    packed = ifinfmsg()
    packed["attrs"] = attributes
    packed.encode()
    return decoded(bytes(packed.data))


@pytest.mark.parametrize(
    ("found", "own"),
    [
        (message(alias="vifd:vlan:eth0:7"), True),
        (message(name="renamed", alias="vifd:vlan:eth0:7"), True),
        (message(), True),
        (message(name="eth0.7"), False),
        (message(alias="the administrator's"), False),
        (message(kind="veth", alias="vifd:vlan:eth0:7"), False),
    ],
)
def test_only_vifds_devices_may_be_swept_up(found: Any, *, own: bool) -> None:
    assert vlans.is_own(found) is own


def test_two_vlans_have_two_names_that_fit() -> None:
    found = {names.vlan_name(uplink, vid) for uplink in ("eth0", "eth1") for vid in (1, 4094)}
    assert len(found) == 4
    assert all(names.is_vlan_name(name) and len(name) <= 15 for name in found)
    assert not names.is_device_name(NAME)
