"""Endpoints and their records, made up."""

from __future__ import annotations

from typing import Any

from tests.support.messages import endpoint_id
from tests.support.worlds import BRIDGE, TAP
from vifd.drivers.bridge import BridgeDriver, BridgeOptions
from vifd.endpoints.journal import Entry
from vifd.kernel.ops import Made
from vifd.model import Endpoint, EndpointSpec, Owner, Port, Preference, State

_BLUE = BridgeDriver("blue", BridgeOptions("br-blue"))


def entry(number: int = 1, *, state: State = State.READY, ifindex: int = 11, kind: Preference = TAP[0], **fields: Any) -> Entry:
    """Give the record of an endpoint on network blue, with the plan that the bridge driver makes for it."""
    name = endpoint_id(number)
    planned = _BLUE.plan(name, EndpointSpec("blue", (kind,), Owner(1000)), kind)
    location = None if state is State.PENDING else _BLUE.locate(name, kind, Made(ifindex, 1500, "br-blue"))
    endpoint = Endpoint(
        **{
            "endpoint_id": name,
            "generation": number,
            "spec_hash": "hash",
            "network": "blue",
            "network_driver": "bridge",
            "state": state,
            "port": Port(mac=planned.port.mac, mtu_bytes=1500),
            "owner": Owner(1000),
            "create_time_ns": 1_700_000_000_000_000_000,
            "location": location,
        }
        | fields
    )
    return Entry(endpoint, planned.plan)


def bridge_entry(number: int = 1, **fields: Any) -> Entry:
    """Give the record of an endpoint that has no device."""
    return entry(number, kind=BRIDGE[0], **fields)
