"""Batches: several endpoints at once, all or none."""

from __future__ import annotations

from collections.abc import Sequence

from vif.v1.endpoint_service_pb2 import ReleaseEndpointRequest, RequestEndpointRequest
from vifclient.calls import BATCH
from vifclient.errors import InvalidArgument
from vifclient.messages import Endpoint, PortSpec
from vifclient.sanity.check import check, expect, refused
from vifclient.sanity.session import Session

_SERVICE = "endpoint_service.proto: "
_BATCH, _RELEASE = f"{_SERVICE}BatchRequestEndpoints", f"{_SERVICE}BatchReleaseEndpoints"
_SIZE = "1 to 64 requests with different ids."


def _releases(endpoints: Sequence[Endpoint | RequestEndpointRequest]) -> list[ReleaseEndpointRequest]:
    return [ReleaseEndpointRequest(endpoint_id=one.endpoint_id) for one in endpoints]


def _ids(endpoints: Sequence[Endpoint]) -> list[str]:
    return sorted(endpoint.endpoint_id for endpoint in endpoints)


@check("batch.answers-in-order", "An answer for each request, in its order.", f"{_SERVICE}BatchRequestEndpointsResponse")
def _in_order(session: Session) -> None:
    requests = [session.request() for _ in range(5)]
    endpoints = [answer.endpoint for answer in session.ask_batch(requests)]
    expect("ids of the answers", [one.endpoint_id for one in endpoints], [one.endpoint_id for one in requests])
    expect("the list", _ids(session.listed()), _ids(endpoints))


@check("batch.idempotent", "Idempotent as RequestEndpoint is, one by one", _BATCH)
def _idempotent(session: Session) -> None:
    requests = [session.request() for _ in range(3)]
    first = [answer.endpoint for answer in session.ask_batch(requests)]
    expect("endpoints of the second answer", [answer.endpoint for answer in session.ask_batch(requests)], first)
    more = [answer.endpoint for answer in session.ask_batch([requests[1], session.request(), requests[0]])]
    expect("those of them in another batch", [more[0], more[2]], [first[1], first[0]])


@check("batch.all-or-none", "Makes up to 64 endpoints, all or none: the interfaces of one VM.", _BATCH)
def _all_or_none(session: Session) -> None:
    with refused("a batch with an unknown network", "NOT_FOUND", "UNKNOWN_NETWORK"):
        session.ask_batch([session.request(), session.request(network="vif-sanity-none"), session.request()])
    expect("endpoints of a batch that failed", session.listed(), [])
    taken = session.make()
    with refused("a batch with an id of another spec", "ALREADY_EXISTS", "ID_IN_USE"):
        session.ask_batch([session.request(), session.request(taken.endpoint_id, labels={"another": "spec"})])
    expect("endpoints after a batch that failed", session.listed(), [taken])


@check(
    "batch.those-that-exist-stay",
    "endpoints that exist already with the same spec stay, whatever becomes of the others",
    _BATCH,
)
def _existing_stay(session: Session) -> None:
    request = session.request()
    endpoint = session.ask(request).endpoint
    with refused("a batch with an unknown network", "NOT_FOUND", "UNKNOWN_NETWORK"):
        session.ask_batch([request, session.request(network="vif-sanity-none")])
    expect("endpoints after a batch that failed", session.listed(), [endpoint])


@check("batch.field-names-its-request", "a field's name starts with `requests[N].`", _BATCH)
def _field_names(session: Session) -> None:
    wrong = session.request(port=PortSpec(mac="zz"))
    with refused("a batch whose second MAC is wrong", "INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        session.ask_batch([session.request(), wrong])
    error = caught.error
    fields = [field for field, _ in error.violations] if isinstance(error, InvalidArgument) else []
    expect("fields that the BadRequest names", fields, ["requests[1].port.mac"])
    expect("endpoints of a batch that failed", session.listed(), [])


@check("batch.64-requests", _SIZE, f"{_SERVICE}BatchRequestEndpointsRequest")
def _largest(session: Session) -> None:
    requests = [session.request() for _ in range(BATCH)]
    made = [answer.endpoint for answer in session.ask_batch(requests)]
    expect("endpoints of the batch", len({one.endpoint_id for one in made}), BATCH)
    session.release_batch(_releases(made))
    expect("endpoints after the batch of releases", session.listed(), [])


@check("batch.65-requests", _SIZE, f"{_SERVICE}BatchRequestEndpointsRequest")
def _too_large(session: Session) -> None:
    for count in (0, BATCH + 1):
        requests = [session.request() for _ in range(count)]
        with refused(f"a batch of {count} requests", "INVALID_ARGUMENT", "INVALID_FIELD"):
            session.ask_batch(requests)
    expect("endpoints of a batch that failed", session.listed(), [])


@check("batch.id-twice", _SIZE, f"{_SERVICE}BatchRequestEndpointsRequest")
def _id_twice(session: Session) -> None:
    request = session.request()
    with refused("a batch with an id twice", "INVALID_ARGUMENT", "INVALID_FIELD"):
        session.ask_batch([request, session.request(), request])
    expect("endpoints of a batch that failed", session.listed(), [])


@check(
    "batch.validate-only-in-all-or-none",
    "`validate_only` must be the same in all.",
    f"{_SERVICE}BatchRequestEndpointsRequest",
)
def _validate_only(session: Session) -> None:
    with refused("a batch with validate_only in one", "INVALID_ARGUMENT", "INVALID_FIELD"):
        session.ask_batch([session.request(), session.request(validate_only=True)])
    session.ask_batch([session.request(validate_only=True) for _ in range(2)])
    expect("endpoints of a batch that only says", session.listed(), [])


@check("batch-release.takes-all-down", "Takes up to 64 endpoints down.", _RELEASE)
def _takes_all(session: Session) -> None:
    gone, kept = [session.make() for _ in range(3)], session.make()
    session.release_batch(_releases([*gone, session.request()]))
    expect("the list", session.listed(), [kept])


@check("batch-release.checks-all-first", "All requests are checked before anything is taken down", _RELEASE)
def _checks_first(session: Session) -> None:
    old = session.make()
    session.release(old.endpoint_id)
    endpoints = [session.make(), session.make(), session.make(old.endpoint_id)]
    releases = [ReleaseEndpointRequest(endpoint_id=one.endpoint_id, generation=one.generation) for one in endpoints]
    releases[2].generation = old.generation
    with refused("a batch with a generation that is over", "FAILED_PRECONDITION", "STALE_GENERATION"):
        session.release_batch(releases)
    expect("the list", _ids(session.listed()), _ids(endpoints))


@check("batch-release.size", _SIZE, f"{_SERVICE}BatchReleaseEndpointsRequest")
def _release_size(session: Session) -> None:
    one = session.request()
    for releases in ([], [ReleaseEndpointRequest(endpoint_id=session.new_id()) for _ in range(BATCH + 1)], _releases([one, one])):
        with refused(f"a batch of {len(releases)} releases", "INVALID_ARGUMENT", "INVALID_FIELD"):
            session.release_batch(releases)
