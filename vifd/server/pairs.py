"""Pairs in a batch of requests: a PCI function, and what stands in for it while its VM moves."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vifd.kernel.names import derived_mac
from vifd.model import EndpointRequest, Kind
from vifd.server.checker import Checker

_FIELD = "partner_endpoint_id"


def settle(check: Checker, requests: Sequence[EndpointRequest]) -> list[EndpointRequest]:
    """Check that the parts of each pair fit, and give the requests with one MAC a pair."""
    by_id = {request.endpoint_id: request for request in requests}
    settled = []
    for i, request in enumerate(requests):
        partner = by_id.get(request.spec.partner_endpoint_id)
        if request.spec.partner_endpoint_id:
            _check(check.at(f"requests[{i}]"), request, partner)
        settled.append(request if partner is None else _with_mac(request, partner))
    return settled


def _check(check: Checker, request: EndpointRequest, partner: EndpointRequest | None) -> None:
    check.require(partner is not None, _FIELD, "is no other request of this batch")
    if partner is None:
        return
    spec, other = request.spec, partner.spec
    mutual = partner is not request and other.partner_endpoint_id == request.endpoint_id
    check.require(mutual, _FIELD, "doesn't name this one as its partner")
    check.require(spec.port.mac == other.port.mac, "port.mac", "isn't its partner's: let both say the same, or neither any")
    check.require(spec.owner == other.owner, "owner", "isn't its partner's")
    parts = [{one.kind for one in part.acceptable} for part in (spec, other)]
    fits = {Kind.PCI} in parts and any(Kind.PCI not in kinds for kinds in parts)
    check.require(fits, "acceptable", "one part of a pair accepts only pci, and the other anything else")


def _with_mac(request: EndpointRequest, partner: EndpointRequest) -> EndpointRequest:
    if request.spec.port.mac:
        return request
    mac = derived_mac(min(request.endpoint_id, partner.endpoint_id))
    port = msgspec.structs.replace(request.spec.port, mac=mac)
    return msgspec.structs.replace(request, spec=msgspec.structs.replace(request.spec, port=port))
