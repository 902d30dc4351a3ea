"""Calls at once: identical, conflicting, and against each other."""

from __future__ import annotations

from functools import partial

import grpc

from vif.v1.endpoint_service_pb2 import RequestEndpointRequest
from vifclient.errors import VifError
from vifclient.messages import Endpoint
from vifclient.sanity.check import FailedError, check, describe, expect, expect_same, expect_true
from vifclient.sanity.session import AT_ONCE, Session

_REQUEST, _RELEASE = "endpoint_service.proto: RequestEndpoint", "endpoint_service.proto: ReleaseEndpoint"
_TURNS = 10


@check(
    "race.identical-requests",
    "the same request again returns the endpoint that the first made, also when both run at once",
    _REQUEST,
)
def _identical(session: Session) -> None:
    request = session.request()
    with session.watch() as watch:
        watch.until_synced()
        endpoints = [answer.endpoint for answer in session.at_once([partial(session.ask, request)] * AT_ONCE)]
        expect_same("endpoints of 16 identical requests at once", endpoints)
        expect("the list", session.listed(), [endpoints[0]])
        session.release(request.endpoint_id)
        events = [kind for kind, _ in watch.until("REMOVED", request.endpoint_id)]
    expect("times that an endpoint was added", events.count("ADDED"), 1)


@check("race.conflicting-requests", "the id has another spec: choose another id", _REQUEST)
def _conflicting(session: Session) -> None:
    endpoint_id = session.new_id()
    requests = [session.request(endpoint_id, labels={"spec": str(number % 2)}) for number in range(AT_ONCE)]
    answers = session.at_once([partial(_ask_or_conflict, session, request) for request in requests])
    made = [endpoint for endpoint in answers if endpoint is not None]
    expect_true("requests that were answered", len(made), condition=bool(made), expected="those of one spec")
    expect_same("endpoints of conflicting requests at once", made)
    expect("the list", session.listed(), made[:1])
    wrong = [one for one, request in zip(answers, requests, strict=True) if one and one.labels["spec"] != request.labels["spec"]]
    expect("answers with another spec than the request's", wrong, [])


def _ask_or_conflict(session: Session, request: RequestEndpointRequest) -> Endpoint | None:
    try:
        return session.ask(request).endpoint
    except VifError as error:
        if (error.code.name, error.reason) == ("ALREADY_EXISTS", "ID_IN_USE"):
            return None
        raise FailedError(f"a conflicting request: expected ALREADY_EXISTS, got {describe(error)}") from error


@check("race.different-requests", "Makes an endpoint", _REQUEST)
def _different(session: Session) -> None:
    requests = [session.request() for _ in range(AT_ONCE)]
    endpoints = [answer.endpoint for answer in session.at_once([partial(session.ask, request) for request in requests])]
    expect("ids of the answers", [one.endpoint_id for one in endpoints], [one.endpoint_id for one in requests])
    expect("the list", session.listed(), sorted(endpoints, key=lambda one: one.endpoint_id))


@check("race.identical-releases", "Idempotent: OK also where there is none (any more).", _RELEASE)
def _releases(session: Session) -> None:
    endpoint = session.make()
    session.at_once([partial(session.release, endpoint.endpoint_id)] * AT_ONCE)
    expect("the released endpoint", session.find(endpoint.endpoint_id), None)


@check("race.requests-and-releases", "after a release, the next life has a larger number", "endpoint.proto: Endpoint")
def _requests_and_releases(session: Session) -> None:
    request = session.request()

    def turns(worker: int) -> list[int]:
        lives = []
        for turn in range(_TURNS):
            if (worker + turn) % 2:
                lives.append(_try(session, request))
            else:
                session.release(request.endpoint_id)
        return lives

    seen = [life for lives in session.at_once([partial(turns, worker) for worker in range(AT_ONCE // 2)]) for life in lives]
    endpoint, listed = session.find(request.endpoint_id), session.listed()
    expect("the list, beside what GetEndpoint gives", listed, [] if endpoint is None else [endpoint])
    session.release(request.endpoint_id)
    expect("the released endpoint", session.find(request.endpoint_id), None)
    generation = session.ask(request).endpoint.generation
    expect_true("the next generation", generation, condition=generation > max(seen), expected=f"more than {max(seen)}")


def _try(session: Session, request: RequestEndpointRequest) -> int:
    """Make an endpoint, and give its generation; 0 if the daemon wants the call to be repeated."""
    try:
        return session.ask(request).endpoint.generation
    except VifError as error:
        if error.code is grpc.StatusCode.UNAVAILABLE:
            return 0
        raise FailedError(f"a request beside releases of its id: expected an endpoint, got {describe(error)}") from error


@check(
    "race.overlapping-batches", "Idempotent as RequestEndpoint is, one by one", "endpoint_service.proto: BatchRequestEndpoints"
)
def _batches(session: Session) -> None:
    requests = [session.request() for _ in range(10)]
    answers = session.at_once([partial(session.ask_batch, requests[start : start + 6]) for start in range(5)])
    lives = {(one.endpoint.endpoint_id, one.endpoint.generation) for answer in answers for one in answer}
    expect("lives of ten endpoints of overlapping batches at once", len(lives), len(requests))
    expect("endpoints of the list", len(session.listed()), len(requests))
