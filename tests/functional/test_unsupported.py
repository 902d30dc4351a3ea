"""What this vifd doesn't do (yet): it says so, and nothing is ignored."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import kernel
from tests.support.asking import BRIDGE, TAP, asked, make, refusal
from tests.support.daemon import Daemon
from vifclient import Client
from vifclient.messages import (
    GuardSpec,
    Lifetime,
    LimitsSpec,
    PortSpec,
    RateLimit,
    UntilReleased,
    VlanSpec,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "a guard of a port that the hypervisor makes": {"acceptable": [BRIDGE], "port": PortSpec(guard=GuardSpec(enabled=True))},
    "limits of it": {"acceptable": [BRIDGE], "port": PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_bps=1_000_000)))},
    "its VLAN": {"acceptable": [BRIDGE], "port": PortSpec(vlan=VlanSpec(vid=7))},
    "its isolation": {"acceptable": [BRIDGE], "port": PortSpec(isolated=True)},
    "its link": {"acceptable": [BRIDGE], "port": PortSpec(link_up=False)},
    "its addresses": {"acceptable": [BRIDGE], "port": PortSpec(addresses=["10.91.0.7"])},
    "its queue": {"acceptable": [BRIDGE], "port": PortSpec(tx_queue_length=5)},
    "public addresses": {"port": PortSpec(public_addresses=["203.0.113.5"])},
    "port id": {"port_id": "7f4c9a2e"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_cannot_be_honoured_is_refused(vifd: Daemon, client: Client, option: str) -> None:
    before = kernel.snapshot(vifd.netns)
    with refusal("UNIMPLEMENTED", "UNSUPPORTED"):
        client.request_endpoint(asked(**OPTIONS[option]))
    assert list(client.list_endpoints()) == []
    assert kernel.snapshot(vifd.netns) == before


@pytest.mark.kernel_without("bridge-vlan-filtering")
@pytest.mark.parametrize("vlan", [VlanSpec(vid=7), VlanSpec(trunk_vids=[7, 8], native_vid=9)])
def test_a_vlan_that_this_kernel_cannot_keep_apart_is_refused_by_name(vifd: Daemon, client: Client, vlan: VlanSpec) -> None:
    before = kernel.snapshot(vifd.netns)
    with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
        client.request_endpoint(asked(port=PortSpec(vlan=vlan)))
    assert "CONFIG_BRIDGE_VLAN_FILTERING" in caught.value.message
    assert kernel.snapshot(vifd.netns) == before


@pytest.mark.parametrize(
    "fields",
    [
        {"port": PortSpec(guard=GuardSpec(enabled=False), isolated=False, link_up=True)},
        {"lifetime": Lifetime(until_released=UntilReleased())},
        {"lifetime": Lifetime()},
    ],
)
def test_an_option_that_asks_for_what_is_so_anyway_is_fine(client: Client, fields: dict[str, Any]) -> None:
    assert make(client, acceptable=[TAP], **fields).HasField("tap")
