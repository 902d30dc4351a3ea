"""What the host says that a kind can do, a request gets; what it doesn't say is refused, never dropped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vifclient.errors import VifError
from vifclient.messages import Endpoint, Feature, GuardSpec, LimitsSpec, PortSpec, RateLimit, Requirements, VlanSpec
from vifclient.sanity.check import CHECKS, Check, SkippedError, check, expect, refused
from vifclient.sanity.checks.host import considered_of, outcome_name
from vifclient.sanity.session import Session, or_skip, preference

_FEATURES = "What an endpoint of this kind can do here."
_WHERE = "host_service.proto: KindOffer"
_LIMITS = LimitsSpec(from_vm=RateLimit(rate_bps=10**8, rate_pps=50_000), to_vm=RateLimit(rate_bps=2 * 10**8))
_MTU_BYTES = 1280
_QUEUED = ("tap", "macvtap", "vhost_user", "vdpa")

_Shown = Callable[[Endpoint], object]


def _port(**fields: Any) -> tuple[dict[str, Any], _Shown]:
    """Ask for something of a port: the fields, and what of the answer has to be as they are."""
    (name,) = fields
    port = PortSpec(**fields)
    return {"port": port}, lambda endpoint: getattr(endpoint.port, name)


#: By feature: what asks for it, and what shows it.
_OPTIONS: dict[str, tuple[dict[str, Any], _Shown]] = {
    "GUARD": _port(guard=GuardSpec(enabled=True)),
    "LIMITS": _port(limits=_LIMITS),
    "VLAN": _port(vlan=VlanSpec(vid=7)),
    "ISOLATION": _port(isolated=True),
    "LINK_STATE": _port(link_up=False),
    "TX_QUEUE_LENGTH": _port(tx_queue_length=77),
    "MTU": _port(mtu_bytes=_MTU_BYTES),
}


def _is_honoured(feature: str, session: Session) -> None:
    fields, shown = _OPTIONS[feature]
    if not session.has(Feature.Value(f"FEATURE_{feature}")):
        with refused(f"{feature} on {session.kind}, which the host doesn't offer", "UNIMPLEMENTED", "UNSUPPORTED"):
            session.make(**fields)
        expect("endpoints that there are", session.listed(), [])
        return
    with or_skip("FAILED_PRECONDITION"):
        endpoint = session.make(**fields)
    port: PortSpec = fields["port"]
    expect(f"{feature} in the answer", shown(endpoint), shown(Endpoint(port=port)))
    expect(f"{feature} afterwards", shown(session.find(endpoint.endpoint_id) or Endpoint()), shown(Endpoint(port=port)))


for _feature in _OPTIONS:
    _name = f"option.{_feature.lower().replace('_', '-')}"
    CHECKS.append(Check(_name, _FEATURES, _WHERE, partial(_is_honoured, _feature)))


@check("option.addresses", _FEATURES, _WHERE)
def _addresses(session: Session) -> None:
    first = session.make()
    given = list(first.port.addresses)
    session.release(first.endpoint_id)
    wanted = given or ["198.51.100.7"]
    if not session.has(Feature.FEATURE_ADDRESSES):
        with refused(f"addresses on {session.kind}, which the host doesn't offer", "UNIMPLEMENTED", "UNSUPPORTED"):
            session.make(port=PortSpec(addresses=wanted))
        return
    with or_skip("FAILED_PRECONDITION"):
        endpoint = session.make(port=PortSpec(addresses=wanted))
    expect("port.addresses", list(endpoint.port.addresses), wanted)


@check("option.multi-queue", _FEATURES, _WHERE)
def _multi_queue(session: Session) -> None:
    if session.kind not in _QUEUED:
        raise SkippedError(f"kind {session.kind} has no queues")
    acceptable = [preference(session.kind, queues=2)]
    if not session.has(Feature.FEATURE_MULTI_QUEUE):
        with refused(f"two queues on {session.kind}, which the host doesn't offer", "UNIMPLEMENTED", "UNSUPPORTED"):
            session.make(acceptable=acceptable)
        return
    expect("queues", getattr(session.make(acceptable=acceptable), session.kind).queues, 2)


@check("option.live-migration", "Only kinds with which a running VM can move to another host.", "endpoint.proto: Requirements")
def _live_migration(session: Session) -> None:
    require = Requirements(live_migratable=True)
    if not session.has(Feature.FEATURE_LIVE_MIGRATION):
        with refused(f"live_migratable on {session.kind}", "FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as caught:
            session.make(require=require)
        outcomes = [outcome_name(one) for one in considered_of(caught.error)]
        expect("outcomes", outcomes, ["REQUIREMENT_NOT_MET"])
        return
    expect("the location's kind", session.make(require=require).WhichOneof("location"), session.kind)


@check("option.port-id", _FEATURES, _WHERE)
def _port_id(session: Session) -> None:
    if session.has(Feature.FEATURE_PORT_ID):
        raise SkippedError("a port of the network system would be needed, and nobody can tell which there are")
    with refused(f"port_id on {session.kind}, which the host doesn't offer", "UNIMPLEMENTED", "UNSUPPORTED"):
        session.make(port_id="7f4c9a2e")


@check("option.public-addresses", _FEATURES, _WHERE)
def _public_addresses(session: Session) -> None:
    if session.has(Feature.FEATURE_PUBLIC_ADDRESSES):
        raise SkippedError("a public address of the network's would be needed, and nobody can tell which there are")
    with refused(f"public_addresses on {session.kind}, which the host doesn't offer", "UNIMPLEMENTED", "UNSUPPORTED"):
        session.make(port=PortSpec(public_addresses=["203.0.113.5"]))


@check(
    "option.asks-for-what-is-so-anyway",
    "what the caller asked for, with every choice that was vifd's filled in",
    "endpoint.proto: Endpoint",
)
def _so_anyway(session: Session) -> None:
    try:
        port = session.make(port=PortSpec(isolated=False, link_up=True)).port
    except VifError as error:
        expect("a request for a port that isn't isolated, with link", error.code.name, "OK")
        return
    expect("port.isolated, port.link_up", (port.isolated, port.link_up), (False, True))
