"""The suite can fail: a vifd with one fault makes just the checks of that rule fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest

from tests.unit.sanity.broken import Broken, Proceed
from vif.v1 import endpoint_service_pb2 as pb
from vif.v1.endpoint_pb2 import ENDPOINT_STATE_READY
from vif.v1.host_service_pb2 import GetHostInfoResponse
from vifclient.sanity import runner
from vifclient.sanity.runner import Outcome
from vifclient.sanity.session import Session
from vifd.errors import IdInUse, InvalidRequest, UnknownEndpoint, Violation
from vifd.testing import FakeDaemon

NETWORKS = '[networks.default]\ndriver = "fake"\nkinds = ["tap", "bridge", "macvtap"]\nunavailable = ["macvtap"]\n'
SECONDS = 30.0
BY_CHANCE = "request.cut-off-may-be-repeated"  # whether a call was cut off before it came is nobody's to say


def failing(*interceptors: Broken) -> set[str]:
    """Run the whole suite; give the names of the checks that fail."""
    with FakeDaemon(NETWORKS, interceptors=interceptors) as daemon, Session(daemon.socket, timeout_s=SECONDS) as session:
        results = list(runner.run(session, runner.select([], ["lifetime.lease-ends", "lifetime.lease-is-renewed"])))
    return {result.check.name for result in results if result.outcome is Outcome.FAILED}


def test_a_vifd_that_keeps_the_contract_passes() -> None:
    assert failing() == set()


def each_id_once() -> Callable[..., Any]:
    seen: set[str] = set()

    async def answer(request: pb.RequestEndpointRequest, proceed: Proceed) -> Any:
        if request.endpoint_id in seen and not request.validate_only:
            raise IdInUse("this id was there before, choose another")
        if not request.validate_only:
            seen.add(request.endpoint_id)
        return await proceed(request)

    return answer


def first_spec_counts() -> Callable[..., Any]:
    first: dict[str, pb.RequestEndpointRequest] = {}

    async def answer(request: pb.RequestEndpointRequest, proceed: Proceed) -> Any:
        if not request.validate_only:
            first.setdefault(request.endpoint_id, request)
        return await proceed(first.get(request.endpoint_id, request))

    return answer


def one_at_a_time() -> Callable[..., Any]:
    at_work: set[str] = set()

    async def answer(request: pb.RequestEndpointRequest, proceed: Proceed) -> Any:
        if request.endpoint_id in at_work:
            raise IdInUse("this id is being made, choose another")
        at_work.add(request.endpoint_id)
        try:
            await asyncio.sleep(0.01)  # so that there is something to meet
            return await proceed(request)
        finally:
            at_work.discard(request.endpoint_id)

    return answer


async def validate_only_ignored(request: pb.RequestEndpointRequest, proceed: Proceed) -> Any:
    request.validate_only = False
    return await proceed(request)


async def wrong_code(request: pb.RequestEndpointRequest, proceed: Proceed) -> Any:
    if request.network == "vif-sanity-none":
        raise InvalidRequest([Violation("network", "there is none of this name")])
    return await proceed(request)


async def a_field_is_enough(request: pb.RequestEndpointRequest, proceed: Proceed) -> Any:
    if len(request.port.mac) == 2 and not request.network:
        raise InvalidRequest([Violation("network", "is missing, and perhaps more is wrong")])
    return await proceed(request)


async def chosen_alone(request: pb.RequestEndpointRequest, proceed: Proceed) -> Any:
    response = await proceed(request)
    del response.considered[1:]
    return response


async def own_mac_ignored(request: pb.RequestEndpointRequest, proceed: Proceed) -> Any:
    if request.port.mac.isupper():
        request.port.mac = ""
    return await proceed(request)


async def option_dropped(request: pb.RequestEndpointRequest, proceed: Proceed) -> Any:
    request.port.ClearField("tx_queue_length")
    return await proceed(request)


async def one_by_one(request: pb.BatchRequestEndpointsRequest, proceed: Proceed) -> Any:
    responses = []
    for one in request.requests:
        responses += (await proceed(pb.BatchRequestEndpointsRequest(requests=[one]))).responses
    return pb.BatchRequestEndpointsResponse(responses=responses)


def each_release_once() -> Callable[..., Any]:
    released: set[tuple[str, int]] = set()

    async def answer(request: pb.ReleaseEndpointRequest, proceed: Proceed) -> Any:
        life = (request.endpoint_id, request.generation)
        if life in released:
            raise UnknownEndpoint("there is no such endpoint any more")
        released.add(life)
        return await proceed(request)

    return answer


async def generation_ignored(request: pb.ReleaseEndpointRequest, proceed: Proceed) -> Any:
    request.generation = 0
    return await proceed(request)


async def released_late(request: pb.BatchReleaseEndpointsRequest, proceed: Proceed) -> Any:
    for one in request.requests[:2]:
        await proceed(pb.BatchReleaseEndpointsRequest(requests=[one]))
    return await proceed(request)


async def unknown_fields_ignored(request: Any, proceed: Proceed) -> Any:
    request.DiscardUnknownFields()
    return await proceed(request)


async def backwards(request: pb.ListEndpointsRequest, proceed: Proceed) -> Any:
    response = await proceed(request)
    endpoints = list(response.endpoints)[::-1]
    del response.endpoints[:]
    response.endpoints.extend(endpoints)
    return response


async def always_a_next_page(request: pb.ListEndpointsRequest, proceed: Proceed) -> Any:
    response = await proceed(request)
    if not response.next_page_token and len(response.endpoints) == request.page_size:
        again = pb.ListEndpointsRequest(page_size=1, filter=request.filter)
        response.next_page_token = (await proceed(again)).next_page_token
    return response


async def bad_token_begins_anew(request: pb.ListEndpointsRequest, proceed: Proceed) -> Any:
    if len(request.page_token) < 40:
        request.page_token = ""
    return await proceed(request)


async def network_filter_ignored(request: pb.ListEndpointsRequest, proceed: Proceed) -> Any:
    if request.filter.network == "vif-sanity-none":
        request.filter.network = ""
    return await proceed(request)


async def any_mask(request: pb.UpdateEndpointRequest, proceed: Proceed) -> Any:
    known = [path for path in request.update_mask.paths if path in ("link_up", "isolated", "addresses", "mtu_bytes")]
    request.update_mask.paths[:] = known or ["link_up"]
    return await proceed(request)


async def everything_is_named(request: pb.UpdateEndpointRequest, proceed: Proceed) -> Any:
    if list(request.update_mask.paths) == ["isolated"]:
        request.update_mask.paths[:] = ["isolated", "link_up"]
    return await proceed(request)


async def drift_where_none_is(request: pb.CheckEndpointRequest, proceed: Proceed) -> Any:
    response = await proceed(request)
    response.drifts.add(message="something differs")
    return response


async def offers_too_much(request: Any, proceed: Proceed) -> GetHostInfoResponse:
    response: GetHostInfoResponse = await proceed(request)
    offer = response.networks[0].offers[2]
    offer.available, offer.message = True, ""
    return response


async def removed_before_its_change(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    held: Any = None
    async for event in events:
        if event.kind == pb.WATCH_EVENT_KIND_CHANGED and event.endpoint.state > ENDPOINT_STATE_READY:
            held = event
            continue
        yield event
        if held is not None:
            yield held
            held = None


async def removed_with_the_state_before(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for event in events:
        if event.kind == pb.WATCH_EVENT_KIND_REMOVED:
            event.endpoint.state = ENDPOINT_STATE_READY
        yield event


async def current_as_added(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for event in events:
        if event.kind == pb.WATCH_EVENT_KIND_CURRENT:
            event.kind = pb.WATCH_EVENT_KIND_ADDED
        yield event


async def synced_with_an_endpoint(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for event in events:
        if event.kind == pb.WATCH_EVENT_KIND_SYNCED:
            event.endpoint.SetInParent()
        yield event


class Mutant(NamedTuple):
    rpc: str
    fails: set[str]
    unary: Callable[..., Any] | None = None
    stream: Callable[..., Any] | None = None


MUTANTS: dict[str, Mutant] = {
    "each id once": Mutant(
        "RequestEndpoint",
        {
            "batch-release.checks-all-first",
            "error.stale-generation",
            "race.identical-requests",
            "race.requests-and-releases",
            "release.stale-generation",
            "request.derived-mac",
            "request.each-life-a-larger-generation",
            "request.same-spec-same-endpoint",
            "watch.next-life-begins-anew",
        },
        each_id_once(),
    ),
    "the first spec counts": Mutant(
        "RequestEndpoint",
        {
            "error.id-in-use",
            "race.conflicting-requests",
            "request.another-spec-refused",
            "validate.refuses-what-a-request-would-be-refused",
        },
        first_spec_counts(),
    ),
    "one at a time": Mutant("RequestEndpoint", {"race.identical-requests", "race.requests-and-releases"}, one_at_a_time()),
    "validate_only ignored": Mutant(
        "RequestEndpoint",
        {"validate.changes-nothing", "validate.says-what-would-be", "watch.nothing-of-what-is-only-said"},
        validate_only_ignored,
    ),
    "wrong code": Mutant("RequestEndpoint", {"error.unknown-network"}, wrong_code),
    "one violation is enough": Mutant("RequestEndpoint", {"field.every-violation-at-once"}, a_field_is_enough),
    "only the chosen is considered": Mutant(
        "RequestEndpoint",
        {"request.callers-order-decides", "request.considered-is-complete", "request.unavailable-is-passed-over"},
        chosen_alone,
    ),
    "a MAC ignored": Mutant("RequestEndpoint", {"request.own-mac"}, own_mac_ignored),
    "an option dropped": Mutant("RequestEndpoint", {"field.tx-queue-length.100001", "option.tx-queue-length"}, option_dropped),
    "batches one by one": Mutant(
        "BatchRequestEndpoints",
        {
            "batch.65-requests",
            "batch.all-or-none",
            "batch.field-names-its-request",
            "batch.id-twice",
            "batch.validate-only-in-all-or-none",
            "unknown-field.batch",
        },
        one_by_one,
    ),
    "each release once": Mutant(
        "ReleaseEndpoint",
        {"race.identical-releases", "race.requests-and-releases", "release.idempotent", "request.each-life-a-larger-generation"},
        each_release_once(),
    ),
    "generation ignored": Mutant("ReleaseEndpoint", {"error.stale-generation", "release.stale-generation"}, generation_ignored),
    "releases not checked first": Mutant("BatchReleaseEndpoints", {"batch-release.checks-all-first"}, released_late),
    "unknown fields ignored": Mutant(
        "ListEndpoints", {"unknown-field.list", "unknown-field.list-filter"}, unknown_fields_ignored
    ),
    "the list backwards": Mutant(
        "ListEndpoints",
        {"list.by-id-in-pages", "list.filters", "list.goes-on-whatever-happened", "race.different-requests"},
        backwards,
    ),
    "a page after the last": Mutant("ListEndpoints", {"list.no-page-after-the-last"}, always_a_next_page),
    "a bad token begins anew": Mutant("ListEndpoints", {"list.bad-token-refused"}, bad_token_begins_anew),
    "a filter ignored": Mutant("ListEndpoints", {"list.filters"}, network_filter_ignored),
    "any mask": Mutant("UpdateEndpoint", {"update.mask"}, any_mask),
    "more changed than named": Mutant(
        "UpdateEndpoint", {"update.the-rest-stays", "update.what-the-mask-leaves-out-is-ignored"}, everything_is_named
    ),
    "a drift of nothing": Mutant("CheckEndpoint", {"check.a-new-endpoint-is-well"}, drift_where_none_is),
    "offers too much": Mutant("GetHostInfo", {"host.offers-agree-with-requests"}, offers_too_much),
    "REMOVED before its change": Mutant("WatchEndpoints", {"watch.next-life-begins-anew"}, stream=removed_before_its_change),
    "REMOVED with an old state": Mutant("WatchEndpoints", {"watch.added-changed-removed"}, stream=removed_with_the_state_before),
    "CURRENT as ADDED": Mutant(
        "WatchEndpoints", {"watch.current-then-synced", "watch.filters", "watch.update-is-a-change"}, stream=current_as_added
    ),
    "SYNCED with an endpoint": Mutant("WatchEndpoints", {"watch.synced-has-no-endpoint"}, stream=synced_with_an_endpoint),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_vifd_with_one_fault_fails_the_checks_of_that_rule(name: str) -> None:
    mutant = MUTANTS[name]
    failed = failing(Broken(mutant.rpc, unary=mutant.unary, stream=mutant.stream))
    assert failed - {BY_CHANCE} == mutant.fails
