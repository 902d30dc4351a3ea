from collections.abc import Collection

import pytest

from vifd.endpoints.negotiation import choose, needed_features, settle_port
from vifd.errors import NoAcceptableKind, Unsupported
from vifd.model import (
    BridgePreference,
    EndpointSpec,
    Feature,
    Kind,
    Limits,
    Offer,
    Outcome,
    OvsPortPreference,
    Owner,
    PciPreference,
    Port,
    Preference,
    RateLimit,
    TapPreference,
    VdpaPreference,
    Vlan,
    VlanProtocol,
)

TAP, BRIDGE, PCI, VDPA = TapPreference(), BridgePreference(), PciPreference(), VdpaPreference()
ALL = frozenset(Feature)


def offer(kind: Kind, features: Collection[Feature] = (), unavailable: str = "") -> Offer:
    return Offer(kind, frozenset(features), unavailable)


def spec(*acceptable: Preference, **fields: object) -> EndpointSpec:
    return EndpointSpec("blue", acceptable, Owner(1), **fields)


def outcomes(wanted: EndpointSpec, *offers: Offer, forbidden: Collection[Kind] = ()) -> list[Outcome]:
    try:
        return [c.outcome for c in choose(wanted, offers, dict.fromkeys(forbidden, "no"))[1]]
    except (NoAcceptableKind, Unsupported) as error:
        return [c.outcome for c in error.considered]


def test_the_first_preference_that_can_be_made_is_chosen() -> None:
    preference, considered = choose(spec(VDPA, TAP, BRIDGE), [offer(Kind.BRIDGE), offer(Kind.TAP)], {})
    assert preference is TAP
    assert [(c.index, c.kind, c.outcome) for c in considered] == [
        (0, Kind.VDPA, Outcome.KIND_NOT_OFFERED),
        (1, Kind.TAP, Outcome.CHOSEN),
        (2, Kind.BRIDGE, Outcome.NOT_NEEDED),
    ]


def test_the_callers_order_decides_and_not_the_drivers() -> None:
    offers = [offer(Kind.TAP), offer(Kind.BRIDGE)]
    assert choose(spec(BRIDGE, TAP), offers, {})[0] is BRIDGE
    assert choose(spec(TAP, BRIDGE), offers, {})[0] is TAP


def test_what_comes_after_the_chosen_one_is_still_told_the_truth_of() -> None:
    assert outcomes(spec(TAP, VDPA, BRIDGE), offer(Kind.TAP), offer(Kind.BRIDGE)) == [
        Outcome.CHOSEN,
        Outcome.KIND_NOT_OFFERED,
        Outcome.NOT_NEEDED,
    ]


def test_a_kind_that_the_driver_doesnt_know_isnt_offered() -> None:
    assert outcomes(spec(VDPA), offer(Kind.TAP)) == [Outcome.KIND_NOT_OFFERED]


def test_a_kind_that_cant_be_made_now_isnt_possible_here() -> None:
    assert outcomes(spec(TAP), offer(Kind.TAP, unavailable="no module")) == [Outcome.NOT_POSSIBLE_HERE]


def test_a_kind_that_the_operator_forbids_is_forbidden() -> None:
    found = outcomes(spec(TAP, BRIDGE), offer(Kind.TAP), offer(Kind.BRIDGE), forbidden=[Kind.TAP])
    assert found == [Outcome.FORBIDDEN_BY_POLICY, Outcome.CHOSEN]


def test_an_option_that_cant_be_honoured_is_unsupported() -> None:
    assert outcomes(spec(TapPreference(queues=2), BRIDGE), offer(Kind.TAP), offer(Kind.BRIDGE)) == [
        Outcome.OPTION_UNSUPPORTED,
        Outcome.CHOSEN,
    ]


def test_a_vm_that_has_to_move_takes_no_kind_that_cant() -> None:
    found = outcomes(spec(PCI, TAP, live_migratable=True), offer(Kind.PCI), offer(Kind.TAP, [Feature.LIVE_MIGRATION]))
    assert found == [Outcome.REQUIREMENT_NOT_MET, Outcome.CHOSEN]


@pytest.mark.parametrize(
    ("option", "feature"),
    [
        ({"guard_enabled": True}, Feature.GUARD),
        ({"addresses": ("10.0.0.1",)}, Feature.ADDRESSES),
        ({"limits": Limits()}, Feature.LIMITS),
        ({"vlan": Vlan(7)}, Feature.VLAN),
        ({"isolated": True}, Feature.ISOLATION),
        ({"link_up": False}, Feature.LINK_STATE),
        ({"mtu_bytes": 1400}, Feature.MTU),
        ({"trusted": True}, Feature.TRUST),
    ],
)
def test_each_option_of_a_port_needs_its_feature(option: dict[str, object], feature: Feature) -> None:
    wanted = spec(TAP, port=Port(**option))
    assert outcomes(wanted, offer(Kind.TAP, ALL - {feature})) == [Outcome.OPTION_UNSUPPORTED]
    assert outcomes(wanted, offer(Kind.TAP, {feature})) == [Outcome.CHOSEN]


@pytest.mark.parametrize(
    ("option", "feature", "beside"),
    [
        ({"vlan": Vlan(7, qos=1)}, Feature.VLAN_QOS, Feature.VLAN),
        ({"vlan": Vlan(7, protocol=VlanProtocol.DOT1AD)}, Feature.VLAN_QOS, Feature.VLAN),
        ({"limits": Limits(RateLimit(min_rate_bps=1))}, Feature.MIN_RATE, Feature.LIMITS),
    ],
)
def test_what_only_some_kinds_do_of_an_option_needs_a_feature_of_its_own(
    option: dict[str, object], feature: Feature, beside: Feature
) -> None:
    wanted = spec(TAP, port=Port(**option))
    assert outcomes(wanted, offer(Kind.TAP, ALL - {feature})) == [Outcome.OPTION_UNSUPPORTED]
    assert outcomes(wanted, offer(Kind.TAP, {feature, beside})) == [Outcome.CHOSEN]


@pytest.mark.parametrize(
    ("asked", "features", "settled"),
    [(None, {Feature.TRUST}, False), (True, {Feature.TRUST}, True), (None, set(), None), (False, set(), False)],
)
def test_a_port_is_not_trusted_unless_asked_for(asked: bool | None, features: set[Feature], settled: bool | None) -> None:
    assert settle_port(Port(trusted=asked), offer(Kind.PCI, features)).trusted is settled


def test_a_port_of_the_network_system_needs_its_feature() -> None:
    assert outcomes(spec(TAP, port_id="port-1"), offer(Kind.TAP, ALL - {Feature.PORT_ID})) == [Outcome.OPTION_UNSUPPORTED]


@pytest.mark.parametrize(
    "option",
    [{"guard_enabled": False}, {"isolated": False}, {"link_up": True}, {"mac": "52:54:00:00:00:01"}, {"trusted": False}],
)
def test_what_every_kind_does_anyway_needs_no_feature(option: dict[str, object]) -> None:
    assert needed_features(spec(TAP, port=Port(**option)), TAP) == {}


def test_one_queue_needs_no_feature() -> None:
    assert needed_features(spec(TAP), TapPreference(queues=1)) == {}
    assert needed_features(spec(OvsPortPreference()), OvsPortPreference()) == {}


def test_the_sentence_names_every_option_that_is_missing() -> None:
    wanted = spec(TapPreference(queues=4), port=Port(mtu_bytes=1400, isolated=True))
    with pytest.raises(Unsupported, match=r"tap on network blue can't do queues, port\.isolated, port\.mtu_bytes"):
        choose(wanted, [offer(Kind.TAP)], {})


def test_an_option_in_the_way_is_unsupported_for_it_can_be_left_out() -> None:
    with pytest.raises(Unsupported, match="Ask without it"):
        choose(spec(VDPA, TapPreference(queues=2)), [offer(Kind.TAP)], {})


@pytest.mark.parametrize(
    ("wanted", "offered", "forbidden"),
    [
        (spec(VDPA), offer(Kind.TAP), False),
        (spec(TAP), offer(Kind.TAP, unavailable="no module"), False),
        (spec(TAP), offer(Kind.TAP), True),
        (spec(TAP, live_migratable=True), offer(Kind.TAP), False),
    ],
)
def test_without_an_option_in_the_way_no_kind_is_acceptable(wanted: EndpointSpec, offered: Offer, forbidden: bool) -> None:
    with pytest.raises(NoAcceptableKind, match="none of the acceptable kinds") as caught:
        choose(wanted, [offered], {Kind.TAP: "no"} if forbidden else {})
    assert len(caught.value.considered) == 1


def test_a_refusal_considers_every_preference_in_order() -> None:
    with pytest.raises(NoAcceptableKind) as caught:
        choose(spec(VDPA, TAP, BRIDGE), [offer(Kind.TAP, unavailable="no module")], {})
    assert [(c.index, c.outcome, bool(c.message)) for c in caught.value.considered] == [
        (0, Outcome.KIND_NOT_OFFERED, True),
        (1, Outcome.NOT_POSSIBLE_HERE, True),
        (2, Outcome.KIND_NOT_OFFERED, True),
    ]


def test_nothing_that_a_driver_offers_is_chosen_unasked() -> None:
    assert outcomes(spec(VDPA), *(offer(kind) for kind in Kind if kind is not Kind.VDPA)) == [Outcome.KIND_NOT_OFFERED]
