"""ReleaseEndpoint."""

from __future__ import annotations

from vifclient.sanity.check import check, expect, refused
from vifclient.sanity.session import Session

_RELEASE = "endpoint_service.proto: ReleaseEndpoint"


@check("release.forgets", "Takes an endpoint down and forgets it.", _RELEASE)
def _forgets(session: Session) -> None:
    endpoint = session.make()
    other = session.make()
    session.release(endpoint.endpoint_id)
    expect("the released endpoint", session.find(endpoint.endpoint_id), None)
    expect("the list", session.listed(), [other])


@check("release.idempotent", "Idempotent: OK also where there is none (any more).", _RELEASE)
def _idempotent(session: Session) -> None:
    endpoint = session.make()
    for _ in range(3):
        session.release(endpoint.endpoint_id)
    session.release(endpoint.endpoint_id, endpoint.generation)


@check("release.of-nothing", "Idempotent: OK also where there is none (any more).", _RELEASE)
def _of_nothing(session: Session) -> None:
    session.release(session.new_id())
    session.release(session.new_id(), 7)


@check("release.present-generation", "The life that is meant.", "endpoint_service.proto: ReleaseEndpointRequest")
def _present_generation(session: Session) -> None:
    endpoint = session.make()
    session.release(endpoint.endpoint_id, endpoint.generation)
    expect("the released endpoint", session.find(endpoint.endpoint_id), None)


@check(
    "release.stale-generation",
    "With a `generation`, a release that comes late can't hurt a later life of the id.",
    _RELEASE,
)
def _stale_generation(session: Session) -> None:
    old = session.make()
    session.release(old.endpoint_id)
    endpoint = session.make(old.endpoint_id)
    with refused("a release of a generation that is over", "FAILED_PRECONDITION", "STALE_GENERATION"):
        session.release(old.endpoint_id, old.generation)
    expect("the later life", session.find(endpoint.endpoint_id), endpoint)


@check("release.malformed-id", "REQUIRED. The endpoint.", "endpoint_service.proto: ReleaseEndpointRequest")
def _malformed_id(session: Session) -> None:
    for endpoint_id in ("", "../x", "6F9619FF-8B86-4D01-B42D-00CF4FC964FF"):
        with refused(f"a release of {endpoint_id!r}", "INVALID_ARGUMENT", "INVALID_FIELD"):
            session.release(endpoint_id)
