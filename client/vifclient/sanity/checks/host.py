"""What the host says of itself, and whether requests agree with it."""

from __future__ import annotations

import uuid

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from vif.v1.error_pb2 import Consideration, ConsiderationOutcome
from vif.v1.host_service_pb2 import GetHostInfoRequest
from vifclient import Client
from vifclient.errors import RequestError, VifError
from vifclient.messages import Feature
from vifclient.retry import NO_RETRY
from vifclient.sanity.check import FailedError, SkippedError, check, expect, expect_true, refused
from vifclient.sanity.session import KINDS, Session, kind_name, newer, preference

_HOST = "host_service.proto: "
_SERVICES = ("vif.v1.EndpointService", "vif.v1.HostService")


@check("host.says-what-it-is", "Says what vifd and its networks can do here, now.", f"{_HOST}GetHostInfo")
def _says_what_it_is(session: Session) -> None:
    info = session.host
    expect_true("version", info.version, condition=bool(info.version), expected="a version")
    expect_true("boot_id", info.boot_id, condition=bool(info.boot_id), expected="the kernel's boot id")
    names = [network.name for network in info.networks]
    expect("the networks, by name", names, sorted(set(names)))
    for network in info.networks:
        known = network.network_driver in info.network_drivers
        expect_true(f"driver of {network.name}", network.network_driver, condition=known, expected="one of network_drivers")


@check(
    "host.offers-are-complete",
    "The kinds that its driver knows, and whether each can be made now.",
    f"{_HOST}Network",
)
def _offers_are_complete(session: Session) -> None:
    for network in session.host.networks:
        kinds = [kind_name(offer.kind) for offer in network.offers]
        expect(f"kinds of {network.name}, each once", sorted(kinds), sorted(set(kinds)))
        for offer in network.offers:
            what = f"{network.name}, {kind_name(offer.kind)}"
            expect_true(what, kind_name(offer.kind), condition=kind_name(offer.kind) in KINDS, expected="a kind")
            said = offer.available or offer.message
            expect_true(f"{what}, which is not available: message", offer.message, condition=bool(said), expected="why not")


@check("host.offers-agree-with-requests", "Whether it can be made.", f"{_HOST}KindOffer")
def _offers_agree(session: Session) -> None:
    offers = {kind_name(offer.kind): offer for offer in session.network.offers}
    for kind in KINDS:
        outcome = _outcome(session, kind)
        if kind not in offers:
            expect(f"{kind}, which the host doesn't offer", outcome, "KIND_NOT_OFFERED")
        elif offers[kind].available:
            possible = outcome not in ("KIND_NOT_OFFERED", "NOT_POSSIBLE_HERE")
            expect_true(f"{kind}, which the host offers", outcome, condition=possible, expected="CHOSEN, or the caller's own bar")
        else:
            barred = outcome in ("NOT_POSSIBLE_HERE", "FORBIDDEN_BY_POLICY", "OPTION_UNSUPPORTED")
            expect_true(f"{kind}, which can't be made now", outcome, condition=barred, expected="NOT_POSSIBLE_HERE")


def _outcome(session: Session, kind: str) -> str:
    """Give what becomes of a preference that stands alone."""
    request = session.request(acceptable=[preference(kind)], validate_only=True)
    try:
        considered = list(session.ask(request).considered)
    except VifError as error:
        considered = considered_of(error)
    if len(considered) != 1:
        raise FailedError(f"a request for {kind} alone: expected one consideration, got {len(considered)}")
    return outcome_name(considered[0])


def considered_of(error: VifError) -> list[Consideration]:
    """Give the preferences that a refusal tells of."""
    return [one for detail in error.details for one in getattr(detail, "considered", ())]


def outcome_name(one: Consideration) -> str:
    """Name what became of a preference, "CHOSEN"."""
    return ConsiderationOutcome.Name(one.outcome).removeprefix("CONSIDERATION_OUTCOME_")


@check("host.counts-endpoints", "How many endpoints it has.", f"{_HOST}Network")
def _counts(session: Session) -> None:
    session.make()
    session.make()
    counts = {one.name: one.endpoint_count for one in session.call("GetHostInfo", GetHostInfoRequest()).networks}
    count = counts.get(session.network.name, 0)
    expect_true("endpoint_count after two requests", count, condition=count >= 2, expected="2 or more")


@check(
    "host.unknown-field-refused",
    "a field, enum value or option that this vifd does not know or cannot honour makes the call fail",
    "endpoint.proto: vif.v1",
)
def _unknown_field(session: Session) -> None:
    with refused("GetHostInfo with a field of a newer contract", "INVALID_ARGUMENT", "INVALID_FIELD"):
        session.call("GetHostInfo", newer(GetHostInfoRequest()))


@check("server.reflection", "Makes, shows and takes down endpoints.", "endpoint_service.proto: EndpointService")
def _reflection(session: Session) -> None:
    ask = iter([ServerReflectionRequest(list_services="")])
    (answer,) = ServerReflectionStub(session.channel).ServerReflectionInfo(ask, timeout=session.timeout_s)
    served = [one.name for one in answer.list_services_response.service]
    for name in (*_SERVICES, "grpc.health.v1.Health"):
        expect_true("services by reflection", ", ".join(served), condition=name in served, expected=f"{name} among them")


@check("server.health", "Tells what this host can do.", f"{_HOST}HostService")
def _health(session: Session) -> None:
    stub = HealthStub(session.channel)
    for name in ("", *_SERVICES):
        answer = stub.Check(HealthCheckRequest(service=name), timeout=session.timeout_s)
        status = HealthCheckResponse.ServingStatus.Name(answer.status)
        expect(f"health of {name or 'the server'}", status, "SERVING")


@check("fd.queues", "Where to get open queues", f"{_HOST}GetHostInfoResponse")
def _queues(session: Session) -> None:
    if not session.has(Feature.FEATURE_FD_HANDOFF):
        raise SkippedError(f"{session.kind} on network {session.network.name} has no queues to hand over (FEATURE_FD_HANDOFF)")
    endpoint = session.make()
    with _client(session) as client, client.acquire_fds(endpoint.endpoint_id) as queues:
        expect("open queues of an endpoint with one", len(queues), 1)


@check("fd.unknown-endpoint", "no such endpoint, or none that the caller may see", "error.proto: UNKNOWN_ENDPOINT")
def _queues_of_nothing(session: Session) -> None:
    if not session.host.fd_socket_path:
        raise SkippedError("this daemon has no fd socket")
    with _client(session) as client, refused("queues of an unknown endpoint", "NOT_FOUND", "UNKNOWN_ENDPOINT"):
        client.acquire_fds(str(uuid.uuid4())).close()


@check("fd.too-many", "How many queues, 1 to the endpoint's", "fd.proto: AcquireFdsRequest")
def _too_many_queues(session: Session) -> None:
    if not session.has(Feature.FEATURE_FD_HANDOFF):
        raise SkippedError(f"{session.kind} on network {session.network.name} has no queues to hand over (FEATURE_FD_HANDOFF)")
    endpoint = session.make()
    with _client(session) as client:
        try:
            client.acquire_fds(endpoint.endpoint_id, 2).close()
        except RequestError:
            return
    raise FailedError("two queues of an endpoint with one: expected a refusal, but they were handed over")


def _client(session: Session) -> Client:
    return Client(session.socket_path, fd_socket_path=session.host.fd_socket_path, timeout_s=session.timeout_s, retry=NO_RETRY)
