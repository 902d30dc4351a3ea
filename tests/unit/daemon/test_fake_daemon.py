"""`vifd --fake` from end to end: as the author of a hypervisor driver sees it, without root."""

import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status

from tests.support.daemon import Daemon, running
from tests.support.sockets import connect
from vif.v1 import endpoint_service_pb2 as pb
from vif.v1.endpoint_pb2 import ENDPOINT_STATE_READY
from vif.v1.endpoint_service_pb2_grpc import EndpointServiceStub
from vif.v1.fd_pb2 import AcquireFdsRequest, AcquireFdsResponse
from vif.v1.host_service_pb2 import GetHostInfoRequest
from vif.v1.host_service_pb2_grpc import HostServiceStub
from vifd import __version__
from vifd.model import Kind

SECONDS = 20


@pytest.fixture(scope="module")
def vifd() -> Iterator[Daemon]:
    with running(fake=True) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def channel(vifd: Daemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{vifd.socket}") as one:
        yield one


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return EndpointServiceStub(channel)


def request(kind: str = "tap", **fields: Any) -> pb.RequestEndpointRequest:
    message = pb.RequestEndpointRequest(endpoint_id=str(uuid.uuid4()), network="default", **fields)
    getattr(message.acceptable.add(), kind).SetInParent()
    return message


def release(stub: Any, endpoint_id: str) -> None:
    stub.ReleaseEndpoint(pb.ReleaseEndpointRequest(endpoint_id=endpoint_id), timeout=SECONDS)


def refused(call: Any, message: Any) -> tuple[grpc.StatusCode, str, Any]:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=SECONDS)
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info, bad = ErrorInfo(), BadRequest()
    status.details[0].Unpack(info)
    if len(status.details) > 1:
        status.details[1].Unpack(bad)
    return caught.value.code(), info.reason, bad


@pytest.mark.parametrize("kind", list(Kind))
def test_an_endpoint_of_each_kind_is_made_shown_and_released(stub: Any, kind: Kind) -> None:
    made = stub.RequestEndpoint(request(kind.value), timeout=SECONDS).endpoint
    assert (made.WhichOneof("location"), made.state, made.owner.uid) == (kind.value, ENDPOINT_STATE_READY, os.getuid())
    assert stub.GetEndpoint(pb.GetEndpointRequest(endpoint_id=made.endpoint_id), timeout=SECONDS).endpoint == made
    release(stub, made.endpoint_id)
    assert stub.ListEndpoints(pb.ListEndpointsRequest(), timeout=SECONDS).endpoints == []


def test_the_same_request_again_has_the_same_answer(stub: Any) -> None:
    message = request()
    assert stub.RequestEndpoint(message, timeout=SECONDS) == stub.RequestEndpoint(message, timeout=SECONDS)
    release(stub, message.endpoint_id)


def test_endpoints_are_listed_page_by_page(stub: Any) -> None:
    wanted = [request() for _ in range(5)]
    stub.BatchRequestEndpoints(pb.BatchRequestEndpointsRequest(requests=wanted), timeout=SECONDS)
    seen, token = [], ""
    for _ in range(3):
        page = stub.ListEndpoints(pb.ListEndpointsRequest(page_size=2, page_token=token), timeout=SECONDS)
        seen += [endpoint.endpoint_id for endpoint in page.endpoints]
        token = page.next_page_token
    assert (seen, token) == (sorted(message.endpoint_id for message in wanted), "")
    gone = [pb.ReleaseEndpointRequest(endpoint_id=message.endpoint_id) for message in wanted]
    stub.BatchReleaseEndpoints(pb.BatchReleaseEndpointsRequest(requests=gone), timeout=SECONDS)


def test_a_watcher_sees_what_happens(stub: Any) -> None:
    watch = stub.WatchEndpoints(pb.WatchEndpointsRequest(), timeout=SECONDS)
    assert next(watch).kind == pb.WATCH_EVENT_KIND_SYNCED
    message = request()
    stub.RequestEndpoint(message, timeout=SECONDS)
    release(stub, message.endpoint_id)
    kinds = [pb.WatchEventKind.Name(next(watch).kind).removeprefix("WATCH_EVENT_KIND_") for _ in range(4)]
    assert kinds == ["ADDED", "CHANGED", "CHANGED", "REMOVED"]
    watch.cancel()


def test_a_preview_makes_nothing(stub: Any) -> None:
    message = request(validate_only=True)
    assert stub.RequestEndpoint(message, timeout=SECONDS).endpoint.generation == 0
    assert stub.ListEndpoints(pb.ListEndpointsRequest(), timeout=SECONDS).endpoints == []


def test_the_host_says_what_it_can_do(channel: grpc.Channel) -> None:
    info = HostServiceStub(channel).GetHostInfo(GetHostInfoRequest(), timeout=SECONDS)
    (network,) = info.networks
    assert (info.version, list(info.network_drivers), network.name) == (__version__, ["bridge", "direct", "fake"], "default")
    assert len(network.offers) == len(Kind)
    assert info.boot_id


def test_a_mistake_is_told_with_its_field(stub: Any) -> None:
    code, reason, bad = refused(stub.RequestEndpoint, request(port_id="a b"))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in bad.field_violations] == ["port_id"]


def test_many_mistakes_with_large_characters_still_reach_a_client(stub: Any) -> None:
    message = request()
    for number in range(33):
        message.labels[f"{number}" + "\U0001f310" * 60] = "\n"
    code, reason, bad = refused(stub.RequestEndpoint, message)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert bad.field_violations


def test_an_unknown_network_is_told_so(stub: Any) -> None:
    message = request()
    message.network = "green"
    assert refused(stub.RequestEndpoint, message)[:2] == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_NETWORK")


def test_what_isnt_built_yet_says_so(stub: Any) -> None:
    code, reason, _ = refused(stub.CollectGarbage, pb.CollectGarbageRequest())
    assert (code, reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")


@pytest.mark.parametrize("service", ["", "vif.v1.EndpointService", "vif.v1.HostService"])
def test_every_service_is_healthy(channel: grpc.Channel, service: str) -> None:
    answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=SECONDS)
    assert answer.status == HealthCheckResponse.SERVING


def test_who_goes_around_the_gate_is_nobody(vifd: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{vifd.socket}.d/grpc") as behind:
        code, reason, _ = refused(EndpointServiceStub(behind).ListEndpoints, pb.ListEndpointsRequest())
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNKNOWN_CALLER")


def test_the_fd_socket_answers(vifd: Daemon) -> None:
    with connect(vifd.directory / "fd.sock", socket.SOCK_SEQPACKET) as client:
        client.send(AcquireFdsRequest(endpoint_id=str(uuid.uuid4())).SerializeToString())
        answer = AcquireFdsResponse.FromString(client.recv(4096))
    assert (answer.reason, answer.count) == ("UNKNOWN_ENDPOINT", 0)


def test_a_second_vifd_on_the_same_socket_is_refused(vifd: Daemon) -> None:
    done = subprocess.run(vifd.argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "another vifd (pid" in done.stderr


def test_it_ends_when_it_is_told_to_and_tells_its_watchers() -> None:
    with running(fake=True) as daemon, grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        watch = EndpointServiceStub(channel).WatchEndpoints(pb.WatchEndpointsRequest(), timeout=SECONDS)
        assert next(watch).kind == pb.WATCH_EVENT_KIND_SYNCED
        assert daemon.stop() == 0
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
