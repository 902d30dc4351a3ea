"""`vifd --fake` from end to end: as the author of a hypervisor driver sees it, without root."""

import json
import socket
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from tests.support.daemon import BIN, Daemon, running
from tests.support.sockets import connect
from vif.v1 import endpoint_service_pb2 as pb
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


def test_it_keeps_every_rule_of_the_contract(vifd: Daemon) -> None:
    argv = [str(BIN / "vif-sanity"), "--socket", vifd.socket]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def refused(call: Any, message: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=SECONDS)
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = ErrorInfo()
    status.details[0].Unpack(info)
    return caught.value.code(), info.reason


@pytest.mark.parametrize("kind", list(Kind))
def test_it_keeps_the_contract_with_each_kind(vifd: Daemon, kind: Kind) -> None:
    argv = [str(BIN / "vif-sanity"), "--socket", vifd.socket, "--kind", kind.value, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    answer = json.loads(done.stdout)
    assert [one for one in answer["results"] if one["outcome"] == "failed"] == []
    assert (done.returncode, answer["kind"]) == (0, kind.value)


def test_the_host_says_what_it_can_do(channel: grpc.Channel) -> None:
    info = HostServiceStub(channel).GetHostInfo(GetHostInfoRequest(), timeout=SECONDS)
    (network,) = info.networks
    assert (info.version, network.name) == (__version__, "default")
    assert list(info.network_drivers) == ["bridge", "direct", "fake", "sriov", "vdpa"]
    assert len(network.offers) == len(Kind)
    assert info.boot_id


def test_who_goes_around_the_gate_is_nobody(vifd: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{vifd.socket}.d/grpc") as behind:
        code, reason = refused(EndpointServiceStub(behind).ListEndpoints, pb.ListEndpointsRequest())
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
