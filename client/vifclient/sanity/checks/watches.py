"""WatchEndpoints: first what is there, then every change in its order."""

from __future__ import annotations

from vif.v1.endpoint_pb2 import EndpointState
from vif.v1.endpoint_service_pb2 import EndpointFilter
from vifclient.messages import Endpoint
from vifclient.sanity.check import check, expect, expect_true, refused
from vifclient.sanity.checks.updates import changeable, update
from vifclient.sanity.session import Session, newer

_WATCH = "endpoint_service.proto: WatchEndpoints"
_KINDS = "endpoint_service.proto: WatchEventKind"


@check("watch.current-then-synced", "first each one that is there, then SYNCED, then each change in order", _WATCH)
def _current(session: Session) -> None:
    made = sorted((session.make() for _ in range(3)), key=lambda one: one.endpoint_id)
    with session.watch() as watch:
        current = sorted(watch.until_synced(), key=lambda one: one.endpoint_id)
    expect("endpoints before SYNCED", current, made)


@check("watch.synced-has-no-endpoint", "Unset for SYNCED.", "endpoint_service.proto: WatchEndpointsResponse")
def _synced(session: Session) -> None:
    with session.watch() as watch:
        expect("the first event where nothing is there", watch.next(), ("SYNCED", None))


@check("watch.added-changed-removed", "then each change in order", _WATCH)
def _life(session: Session) -> None:
    with session.watch() as watch:
        watch.until_synced()
        endpoint = session.make()
        session.release(endpoint.endpoint_id)
        events = watch.until("REMOVED", endpoint.endpoint_id)
    kinds = [kind for kind, _ in events]
    expect("kinds of the events of one life", kinds, ["ADDED", *["CHANGED"] * (len(kinds) - 2), "REMOVED"])
    expect("generations", {one.generation for _, one in events}, {endpoint.generation})
    states = [one.state for _, one in events]
    expect("states, which never go back", states, sorted(states))
    expect("the last state", EndpointState.Name(states[-1]), "ENDPOINT_STATE_RELEASING")
    ready = EndpointState.ENDPOINT_STATE_READY
    expect_true("states", [EndpointState.Name(state) for state in states], condition=ready in states, expected="READY once")


@check("watch.tells-what-get-gives", "The endpoint after it.", "endpoint_service.proto: WatchEndpointsResponse")
def _same_as_get(session: Session) -> None:
    with session.watch() as watch:
        watch.until_synced()
        endpoint = session.make()
        told: Endpoint | None = None
        while told is None or told.state != endpoint.state:
            _, told = watch.next()
    expect("the endpoint of the event in which it is READY", told, endpoint)


@check("watch.an-order-for-all", "then each change in order", _WATCH)
def _two_watchers(session: Session) -> None:
    with session.watch() as one, session.watch() as other:
        one.until_synced()
        other.until_synced()
        first, second = session.make(), session.make()
        session.release(first.endpoint_id)
        session.release(second.endpoint_id)
        seen = [_brief(watch.until("REMOVED", second.endpoint_id)) for watch in (one, other)]
    expect("events of the second watcher", seen[1], seen[0])
    added = [endpoint_id for kind, endpoint_id in seen[0] if kind == "ADDED"]
    expect("the order in which they were made", added, [first.endpoint_id, second.endpoint_id])


def _brief(events: list[tuple[str, Endpoint]]) -> list[tuple[str, str]]:
    return [(kind, endpoint.endpoint_id) for kind, endpoint in events]


@check("watch.next-life-begins-anew", "It was made.", _KINDS)
def _next_life(session: Session) -> None:
    with session.watch() as watch:
        watch.until_synced()
        first = session.make()
        session.release(first.endpoint_id)
        watch.until("REMOVED", first.endpoint_id)
        again = session.make(first.endpoint_id)
        kind, endpoint = watch.next()
    expect("the first event of the id's next life", kind, "ADDED")
    expect("its generation", endpoint.generation if endpoint else None, again.generation)


@check("watch.update-is-a-change", "Something of it changed: its state, its port, its drifts.", _KINDS)
def _update(session: Session) -> None:
    path, port = changeable(session)
    endpoint = session.make()
    with session.watch() as watch:
        watch.until_synced()
        changed = update(session, endpoint, port, [path])
        kind, told = watch.next()
    expect("the event of an update", kind, "CHANGED")
    expect("its endpoint", told, changed)


@check("watch.filters", "Which endpoints.", "endpoint_service.proto: WatchEndpointsRequest")
def _filters(session: Session) -> None:
    where = EndpointFilter(labels=session.labels | {"watched": "yes"})
    before = session.make(labels={"watched": "yes"})
    session.make(labels={"watched": "no"})
    with session.watch(where) as watch:
        expect("endpoints before SYNCED", [one.endpoint_id for one in watch.until_synced()], [before.endpoint_id])
        other = session.make(labels={"watched": "no"})
        session.release(other.endpoint_id)
        mine = session.make(labels={"watched": "yes"})
        kind, endpoint = watch.next()
    expect("the first event that passes the filter", (kind, endpoint and endpoint.endpoint_id), ("ADDED", mine.endpoint_id))


@check("watch.nothing-of-what-is-only-said", "changes nothing and takes no id", "endpoint_service.proto: RequestEndpointRequest")
def _validate_only(session: Session) -> None:
    with session.watch() as watch:
        watch.until_synced()
        session.make(validate_only=True)
        made = session.make()
        _, endpoint = watch.next()
    expect("the first endpoint that is told of", endpoint and endpoint.endpoint_id, made.endpoint_id)


@check("watch.malformed-filter-refused", "Errors: INVALID_ARGUMENT, RESOURCE_EXHAUSTED", _WATCH)
def _malformed(session: Session) -> None:
    wrong = {"a wrong network": EndpointFilter(network="../blue"), "a field of a newer contract": newer(session.filter)}
    for what, where in wrong.items():
        with session.watch(where) as watch, refused(f"a filter with {what}", "INVALID_ARGUMENT", "INVALID_FIELD"):
            watch.next()
