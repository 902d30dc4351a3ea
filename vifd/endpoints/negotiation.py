"""Which of the acceptable kinds it will be, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import msgspec

from vifd.errors import NoAcceptableKind, Unsupported
from vifd.model import (
    Consideration,
    EndpointSpec,
    Feature,
    Kind,
    Limits,
    Offer,
    Outcome,
    Port,
    Preference,
    Vlan,
    VlanProtocol,
)

_NO_VLAN, _NO_LIMITS = Vlan(), Limits()


def choose(
    spec: EndpointSpec, offers: Sequence[Offer], forbidden: Mapping[Kind, str]
) -> tuple[Preference, tuple[Consideration, ...]]:
    """Choose the first preference that can be made as it is asked for.

    Args:
        spec: what is asked for.
        offers: what the network's driver can make now.
        forbidden: which kinds the operator's policy forbids, and why.

    Returns:
        The preference, and every preference with its outcome.

    Raises:
        Unsupported: an option of the caller's is all that stands in the way.
        NoAcceptableKind: none can be made.
    """
    by_kind = {offer.kind: offer for offer in offers}
    considered = [
        _consider(index, preference, spec, by_kind.get(preference.kind), forbidden)
        for index, preference in enumerate(spec.acceptable)
    ]
    chosen = next((c for c in considered if c.outcome is Outcome.CHOSEN), None)
    if chosen is None:
        _refuse(spec, considered)
    settled = [_not_needed(c) if c.outcome is Outcome.CHOSEN and c is not chosen else c for c in considered]
    return spec.acceptable[chosen.index], tuple(settled)


def settle_port(port: Port, offer: Offer) -> Port:
    """Fill in what a caller left open of a port, for the kind that was chosen: the guard is on wherever the kind can have it."""
    guard = Feature.GUARD in offer.features if port.guard_enabled is None else port.guard_enabled
    link_up = True if port.link_up is None else port.link_up
    trusted = False if port.trusted is None and Feature.TRUST in offer.features else port.trusted
    isolated = bool(port.isolated)
    return msgspec.structs.replace(port, guard_enabled=guard, isolated=isolated, link_up=link_up, trusted=trusted)


def needed_features(spec: EndpointSpec, preference: Preference) -> dict[Feature, str]:
    """Give what an endpoint must be able to do for a request, each with the option that asks for it."""
    own = {Feature.MULTI_QUEUE: "queues"} if getattr(preference, "queues", 1) > 1 else {}
    if spec.port_id:
        own[Feature.PORT_ID] = "port_id"
    return own | features_of(spec.port)


def features_of(port: Port) -> dict[Feature, str]:
    """Give what a port must be able to do, each with the option that asks for it."""
    vlan, limits = port.vlan or _NO_VLAN, port.limits or _NO_LIMITS
    tagged = vlan.qos != 0 or vlan.protocol is not VlanProtocol.DOT1Q
    asked = (
        (Feature.GUARD, "port.guard", port.guard_enabled),
        (Feature.ADDRESSES, "port.addresses", port.addresses),
        (Feature.LIMITS, "port.limits", port.limits is not None),
        (Feature.VLAN, "port.vlan", port.vlan is not None),
        (Feature.ISOLATION, "port.isolated", port.isolated),
        (Feature.LINK_STATE, "port.link_up = false", port.link_up is False),
        (Feature.MTU, "port.mtu_bytes", port.mtu_bytes),
        (Feature.TX_QUEUE_LENGTH, "port.tx_queue_length", port.tx_queue_length),
        (Feature.PUBLIC_ADDRESSES, "port.public_addresses", port.public_addresses),
        (Feature.VLAN_QOS, "port.vlan.qos and port.vlan.protocol", tagged),
        (Feature.MIN_RATE, "port.limits.from_vm.min_rate_bps", limits.from_vm.min_rate_bps),
        (Feature.TRUST, "port.trusted", port.trusted),
    )
    return {feature: option for feature, option, wanted in asked if wanted}


def _consider(
    index: int, preference: Preference, spec: EndpointSpec, offer: Offer | None, forbidden: Mapping[Kind, str]
) -> Consideration:
    kind = preference.kind

    def outcome(result: Outcome, message: str = "") -> Consideration:
        return Consideration(index, kind, result, message)

    if offer is None:
        return outcome(Outcome.KIND_NOT_OFFERED, f"network {spec.network} has no {kind} endpoints")
    if kind in forbidden:
        return outcome(Outcome.FORBIDDEN_BY_POLICY, forbidden[kind])
    missing = [option for feature, option in needed_features(spec, preference).items() if feature not in offer.features]
    if missing:
        return outcome(Outcome.OPTION_UNSUPPORTED, f"{kind} on network {spec.network} can't do {', '.join(missing)}")
    if spec.live_migratable and Feature.LIVE_MIGRATION not in offer.features:
        return outcome(Outcome.REQUIREMENT_NOT_MET, f"a VM can't move to another host with {kind} while it runs")
    if offer.unavailable:
        return outcome(Outcome.NOT_POSSIBLE_HERE, offer.unavailable)
    return outcome(Outcome.CHOSEN)


def _not_needed(consideration: Consideration) -> Consideration:
    return msgspec.structs.replace(consideration, outcome=Outcome.NOT_NEEDED, message="a preference before it was chosen")


def _refuse(spec: EndpointSpec, considered: Sequence[Consideration]) -> NoReturn:
    why = "; ".join(f"{c.kind}: {c.message}" for c in considered)
    if any(c.outcome is Outcome.OPTION_UNSUPPORTED for c in considered):
        raise Unsupported(f"{why}. Ask without it, or accept another kind", considered)
    raise NoAcceptableKind(f"none of the acceptable kinds can be made on network {spec.network}: {why}", considered)
