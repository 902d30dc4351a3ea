"""UpdateEndpoint: what the mask names, all of it or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from vif.v1.endpoint_service_pb2 import UpdateEndpointRequest
from vifclient.messages import Endpoint, Feature, PortSpec
from vifclient.sanity.check import SkippedError, check, expect, refused
from vifclient.sanity.session import Session, or_skip

_UPDATE, _REQUEST = "endpoint_service.proto: UpdateEndpoint", "endpoint_service.proto: UpdateEndpointRequest"
_MASK = 'Which fields of `port` count: "guard", "limits", "addresses"'

#: What a kind may be able to change while its VM runs, the harmless first; each is another than vifd's choice.
_CHANGES = {
    Feature.FEATURE_LINK_STATE: ("link_up", PortSpec(link_up=False)),
    Feature.FEATURE_ISOLATION: ("isolated", PortSpec(isolated=True)),
    Feature.FEATURE_TX_QUEUE_LENGTH: ("tx_queue_length", PortSpec(tx_queue_length=77)),
    Feature.FEATURE_MTU: ("mtu_bytes", PortSpec(mtu_bytes=1280)),
}


def changeable(session: Session, nth: int = 0) -> tuple[str, PortSpec]:
    """Give a field that can be changed here, and a port in which it is another than vifd's choice.

    Args:
        session: The session.
        nth: The first of them, or a later one.

    Raises:
        SkippedError: There is none.
    """
    known = [change for feature, change in _CHANGES.items() if session.has(feature)]
    if len(known) <= nth:
        raise SkippedError(f"{session.kind} on network {session.network.name} has too little that can be changed")
    return known[nth]


def update(session: Session, endpoint: Endpoint, port: PortSpec, mask: Sequence[str]) -> Endpoint:
    """Change an endpoint's port; skips the check where this daemon has no updates."""
    message = UpdateEndpointRequest(endpoint_id=endpoint.endpoint_id, port=port, update_mask=FieldMask(paths=mask))
    with or_skip("UNIMPLEMENTED"):
        changed: Endpoint = session.call("UpdateEndpoint", message).endpoint
    return changed


@check("update.changes-what-is-named", "Changes the port of an endpoint, also while its VM runs", _UPDATE)
def _changes(session: Session) -> None:
    path, port = changeable(session)
    endpoint = session.make()
    changed = update(session, endpoint, port, [path])
    expect(f"port.{path}", getattr(changed.port, path), getattr(port, path))
    expect("the endpoint afterwards", session.find(endpoint.endpoint_id), changed)
    expect("its generation", changed.generation, endpoint.generation)


@check("update.idempotent", "Idempotent.", _UPDATE)
def _idempotent(session: Session) -> None:
    path, port = changeable(session)
    endpoint = session.make()
    first = update(session, endpoint, port, [path])
    expect("the endpoint after the same update again", update(session, endpoint, port, [path]), first)


@check("update.the-rest-stays", "what isn't named stays", _REQUEST)
def _rest_stays(session: Session) -> None:
    path, port = changeable(session)
    other_path, other_port = changeable(session, 1)
    endpoint = session.make()
    update(session, endpoint, port, [path])
    both = PortSpec()
    both.CopyFrom(other_port)
    changed = update(session, endpoint, both, [other_path])
    expect(f"port.{path}, which the mask didn't name", getattr(changed.port, path), getattr(port, path))
    expect(f"port.{other_path}", getattr(changed.port, other_path), getattr(other_port, other_path))


@check("update.what-the-mask-leaves-out-is-ignored", "what isn't named stays", _REQUEST)
def _left_out(session: Session) -> None:
    path, port = changeable(session)
    other_path, other_port = changeable(session, 1)
    endpoint = session.make()
    both = PortSpec()
    both.CopyFrom(port)
    both.MergeFrom(other_port)
    changed = update(session, endpoint, both, [other_path])
    expect(f"port.{path}, which the mask didn't name", getattr(changed.port, path), getattr(endpoint.port, path))


@check("update.empty-goes-back", "A field that is named and empty goes back to vifd's choice", _REQUEST)
def _goes_back(session: Session) -> None:
    path, port = changeable(session)
    endpoint = session.make()
    update(session, endpoint, port, [path])
    back = update(session, endpoint, PortSpec(), [path])
    expect(f"port.{path}", getattr(back.port, path), getattr(endpoint.port, path))


@check("update.mask", _MASK, _REQUEST)
def _masks(session: Session) -> None:
    path, port = changeable(session)
    endpoint = session.make()
    for mask in ([], ["nonsense"], ["mac"], ["*"], [""], [f"port.{path}"], ["limits.from_vm"], [path, "mac"]):
        with refused(f"an update with the mask {mask}", "INVALID_ARGUMENT", "INVALID_FIELD"):
            update(session, endpoint, port, mask)
    expect("the endpoint afterwards", session.find(endpoint.endpoint_id), endpoint)


@check("update.malformed-value", "REQUIRED. The new values.", _REQUEST)
def _malformed(session: Session) -> None:
    endpoint = session.make()
    with refused("an update with an MTU of 20", "INVALID_ARGUMENT", "INVALID_FIELD"):
        update(session, endpoint, PortSpec(mtu_bytes=20), ["mtu_bytes"])
    expect("the endpoint afterwards", session.find(endpoint.endpoint_id), endpoint)


@check("update.all-or-nothing", "all that the mask names, or nothing", _UPDATE)
def _all_or_nothing(session: Session) -> None:
    path, port = changeable(session)
    if not session.has(Feature.FEATURE_ADDRESSES):
        raise SkippedError(
            f"{session.kind} on network {session.network.name} has no addresses, so no update that is refused late"
        )
    taken = list(session.make().port.addresses)
    if not taken:  # the network hands none out
        taken = ["198.51.100.8"]
        with or_skip("FAILED_PRECONDITION"):
            session.make(port=PortSpec(addresses=taken))
    endpoint = session.make()
    both = PortSpec(addresses=taken)
    both.MergeFrom(port)
    with refused("an update with an address of another endpoint's", "FAILED_PRECONDITION", "ADDRESS_IN_USE"):
        update(session, endpoint, both, [path, "addresses"])
    expect("the endpoint afterwards", session.find(endpoint.endpoint_id), endpoint)


@check("update.unknown-endpoint", "no such endpoint, or none that the caller may see", "error.proto: UNKNOWN_ENDPOINT")
def _unknown(session: Session) -> None:
    with refused("an update of an unknown endpoint", "NOT_FOUND", "UNKNOWN_ENDPOINT"):
        update(session, Endpoint(endpoint_id=session.new_id()), PortSpec(isolated=True), ["isolated"])
