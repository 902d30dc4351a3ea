"""Which VLANs a port of a bridge is to be in, and the messages that bring it there, as pyroute2 reads them."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_SETLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vifd.kernel import netlink, ports
from vifd.kernel.bridge import BridgeVlans
from vifd.model import Vlan

AWARE = BridgeVlans("", 1)
PVID, UNTAGGED = 2, 4  # linux/if_bridge.h


@pytest.mark.parametrize(
    ("vlan", "bridge", "vids"),
    [
        (None, AWARE, {1: True}),
        (None, BridgeVlans("", 0), {}),
        (Vlan(7), AWARE, {7: True}),
        (Vlan(0, (7, 8)), AWARE, {7: False, 8: False}),
        (Vlan(0, (7, 8), 9), AWARE, {7: False, 8: False, 9: True}),
        (Vlan(0, (7, 8), 8), AWARE, {7: False, 8: True}),
        (None, BridgeVlans("it can't"), {}),
    ],
)
def test_what_a_port_is_to_be_in(vlan: Vlan | None, bridge: BridgeVlans, vids: dict[int, bool]) -> None:
    assert ports.vids_of(vlan, bridge) == vids


def read(message: bytes) -> tuple[int, int, int]:
    found: Any = ifinfmsg(message)
    found.decode()
    assert found["index"] == 5
    info = found.get_attr("IFLA_AF_SPEC").get_attr("IFLA_BRIDGE_VLAN_INFO")
    return found["header"]["type"], info["vid"], info["flags"]


@pytest.mark.parametrize(
    ("present", "wanted", "messages"),
    [
        ({7: True}, {7: True}, []),
        ({1: True}, {7: True}, [(RTM_SETLINK, 7, PVID | UNTAGGED), (RTM_DELLINK, 1, 0)]),
        ({7: True}, {7: False, 9: True}, [(RTM_SETLINK, 7, 0), (RTM_SETLINK, 9, PVID | UNTAGGED)]),
        ({7: None, 9: False}, {7: True}, [(RTM_SETLINK, 7, PVID | UNTAGGED), (RTM_DELLINK, 9, 0)]),
        ({}, {7: False}, [(RTM_SETLINK, 7, 0)]),
        ({7: True}, {}, [(RTM_DELLINK, 7, 0)]),
    ],
)
def test_what_is_wanted_comes_before_what_goes(
    present: dict[int, bool | None], wanted: dict[int, bool], messages: list[tuple[int, int, int]]
) -> None:
    assert [read(message) for message in ports.change_vids(5, present, wanted)] == messages


@pytest.mark.parametrize(
    ("flags", "untagged"), [(0, False), (PVID | UNTAGGED, True), (PVID, None), (UNTAGGED, None), (0x40, False)]
)
def test_flags_are_read_both_ways(flags: int, *, untagged: bool | None) -> None:
    assert netlink.is_untagged(flags) is untagged
