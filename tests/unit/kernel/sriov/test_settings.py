"""What a PF is told of a VF, against pyroute2's decoder, and what it says, from pyroute2's encoder."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vifd.kernel import netlink
from vifd.kernel.sriov.settings import NO_MAC, LinkState, Setting, VfSettings, read_vf, set_vf, wanted
from vifd.model import Limits, Port, RateLimit, Vlan, VlanProtocol

MAC = "52:54:00:12:34:56"
SETTINGS = VfSettings(MAC, 7, 3, VlanProtocol.DOT1Q, True, True, 10, 1000, LinkState.DOWN)


def told(setting: Setting, settings: VfSettings = SETTINGS) -> Any:
    message = ifinfmsg(set_vf(4, 2, setting, settings))
    message.decode()
    assert message["index"] == 4
    (info,) = message.get_attr("IFLA_VFINFO_LIST").get_attrs("IFLA_VF_INFO")
    ((name, value),) = [(name, value) for name, value in info["attrs"]]
    return name, value


@pytest.mark.parametrize(
    ("setting", "name", "fields"),
    [
        (Setting.MAC, "IFLA_VF_MAC", {"vf": 2, "mac": MAC}),
        (Setting.VLAN, "IFLA_VF_VLAN", {"vf": 2, "vlan": 7, "qos": 3}),
        (Setting.SPOOF_CHECK, "IFLA_VF_SPOOFCHK", {"vf": 2, "spoofchk": 1}),
        (Setting.TRUST, "IFLA_VF_TRUST", {"vf": 2, "trust": 1}),
        (Setting.RATE, "IFLA_VF_RATE", {"vf": 2, "min_tx_rate": 10, "max_tx_rate": 1000}),
        (Setting.LINK_STATE, "IFLA_VF_LINK_STATE", {"vf": 2, "link_state": 2}),
    ],
)
def test_a_setting_is_told_as_pyroute2_reads_it(setting: Setting, name: str, fields: dict[str, Any]) -> None:
    found, value = told(setting)
    assert (found, {key: value[key] for key in fields}) == (name, fields)


def test_a_vlan_of_802_1ad_says_so() -> None:
    name, value = told(Setting.VLAN, VfSettings(vid=7, qos=3, protocol=VlanProtocol.DOT1AD))
    (vlan,) = value.get_attrs("IFLA_VF_VLAN_INFO")
    assert (name, vlan["vf"], vlan["vlan"], vlan["qos"], vlan["proto"]) == ("IFLA_VF_VLAN_LIST", 2, 7, 3, 0x88A8)


def answer(*vfs: list[Any]) -> netlink.Link:
    message = ifinfmsg()
    message["index"] = 4
    message["attrs"] = [("IFLA_VFINFO_LIST", {"attrs": [("IFLA_VF_INFO", {"attrs": vf}) for vf in vfs]})]
    message["header"]["type"] = netlink.RTM_NEWLINK
    message.encode()
    return netlink.parse_link(bytes(message.data))


def vf(index: int, **changed: Any) -> list[Any]:
    fields = {"mac": MAC, "vlan": 7, "qos": 3, "proto": 0x8100, "spoofchk": 1, "trust": 1, "state": 2} | changed
    vlan = {"vf": index, "vlan": fields["vlan"], "qos": fields["qos"]}
    return [
        ("IFLA_VF_MAC", {"vf": index, "mac": fields["mac"]}),
        ("IFLA_VF_VLAN", vlan),
        ("IFLA_VF_RATE", {"vf": index, "min_tx_rate": 10, "max_tx_rate": 1000}),
        ("IFLA_VF_SPOOFCHK", {"vf": index, "spoofchk": fields["spoofchk"]}),
        ("IFLA_VF_LINK_STATE", {"vf": index, "link_state": fields["state"]}),
        ("IFLA_VF_TRUST", {"vf": index, "trust": fields["trust"]}),
        ("IFLA_VF_VLAN_LIST", {"attrs": [("IFLA_VF_VLAN_INFO", vlan | {"proto": fields["proto"]})]}),
    ]


def test_each_vf_is_read() -> None:
    link = answer(vf(0, mac="52:54:00:00:00:01"), vf(2), vf(3, vlan=8))
    assert read_vf(link, 2) == SETTINGS
    assert read_vf(link, 3) == VfSettings(MAC, 8, 3, VlanProtocol.DOT1Q, True, True, 10, 1000, LinkState.DOWN)


def test_a_vf_that_the_pf_hasnt_is_not_read() -> None:
    assert (read_vf(answer(vf(0)), 2), read_vf(netlink.Link(4, 0, {}), 0)) == (None, None)


def test_what_a_driver_doesnt_say_is_unknown() -> None:
    found = read_vf(answer(vf(2, spoofchk=0xFFFFFFFF, trust=0xFFFFFFFF, proto=0x88A8, state=0)), 2)
    assert found is not None
    assert (found.spoof_check, found.trusted, found.protocol, found.link_state) == (
        None,
        None,
        VlanProtocol.DOT1AD,
        LinkState.AUTO,
    )


def test_a_vf_with_a_mac_alone_is_as_new() -> None:
    found = read_vf(answer([("IFLA_VF_MAC", {"vf": 0, "mac": NO_MAC})]), 0)
    assert found == VfSettings(spoof_check=None, trusted=None)
    assert VfSettings(trusted=None).differences(VfSettings()) == []


def test_what_a_port_means_for_its_vf() -> None:
    limits = Limits(from_vm=RateLimit(rate_bps=1_000_000_000, min_rate_bps=10_000_000))
    port = Port(mac=MAC, vlan=Vlan(7, qos=3), limits=limits, link_up=False, trusted=True)
    assert wanted(port) == SETTINGS
    assert wanted(Port(mac=MAC)) == VfSettings(MAC)


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        (VfSettings(MAC, vid=7), Setting.VLAN),
        (VfSettings(MAC, qos=1), Setting.VLAN),
        (VfSettings(), Setting.MAC),
        (VfSettings(MAC, spoof_check=False), Setting.SPOOF_CHECK),
        (VfSettings(MAC, spoof_check=None), Setting.SPOOF_CHECK),
        (VfSettings(MAC, trusted=True), Setting.TRUST),
        (VfSettings(MAC, max_rate_mbps=1), Setting.RATE),
        (VfSettings(MAC, min_rate_mbps=1), Setting.RATE),
        (VfSettings(MAC, link_state=LinkState.UP), Setting.LINK_STATE),
    ],
)
def test_each_setting_makes_a_difference(changed: VfSettings, setting: Setting) -> None:
    assert VfSettings(MAC).differences(changed) == [setting]
