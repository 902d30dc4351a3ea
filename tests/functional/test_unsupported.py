"""What this vifd doesn't do (yet): it says so, and nothing is ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import kernel
from tests.support.asking import TAP, asked, make, refusal
from tests.support.daemon import Daemon
from vifclient import Client
from vifclient.messages import (
    GuardSpec,
    LeaseLifetime,
    Lifetime,
    LimitsSpec,
    PortSpec,
    ProcessLifetime,
    RateLimit,
    UntilReleased,
    VlanSpec,
)

CALLS: dict[str, Callable[[Client, str], object]] = {
    "UpdateEndpoint": lambda client, one: client.update_endpoint(one, PortSpec(mtu_bytes=1400), ["mtu_bytes"]),
    "ActivateEndpoint": lambda client, one: client.activate_endpoint(one),
    "CheckEndpoint": lambda client, one: client.check_endpoint(one, repair=True),
    "CollectGarbage": lambda client, _: client.collect_garbage([], allow_empty=True),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "guard": {"port": PortSpec(guard=GuardSpec(enabled=True))},
    "limits": {"port": PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_bps=1_000_000)))},
    "empty limits": {"port": PortSpec(limits=LimitsSpec())},
    "access VLAN": {"port": PortSpec(vlan=VlanSpec(vid=7))},
    "trunk": {"port": PortSpec(vlan=VlanSpec(trunk_vids=[7, 8], native_vid=9))},
    "isolated": {"port": PortSpec(isolated=True)},
    "link down": {"port": PortSpec(link_up=False)},
    "addresses": {"port": PortSpec(addresses=["10.91.0.7/24", "fe80::1"])},
    "process lifetime": {"lifetime": Lifetime(process=ProcessLifetime())},
    "lease": {"lifetime": Lifetime(lease=LeaseLifetime(ttl=Duration(seconds=60)))},
    "port id": {"port_id": "7f4c9a2e"},
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_is_not_built_says_so_and_changes_nothing(vifd: Daemon, client: Client, call: str) -> None:
    endpoint = make(client)
    before = kernel.snapshot(vifd.netns)
    with refusal("UNIMPLEMENTED", "UNSUPPORTED"):
        CALLS[call](client, endpoint.endpoint_id)
    assert kernel.snapshot(vifd.netns) == before
    assert list(client.list_endpoints()) == [endpoint]


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_cannot_be_honoured_is_refused(vifd: Daemon, client: Client, option: str) -> None:
    before = kernel.snapshot(vifd.netns)
    with refusal("UNIMPLEMENTED", "UNSUPPORTED"):
        client.request_endpoint(asked(**OPTIONS[option]))
    assert list(client.list_endpoints()) == []
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
