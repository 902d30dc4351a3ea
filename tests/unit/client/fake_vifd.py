# ruff: noqa: N802  (gRPC names a servicer's methods)
"""A vifd for the tests of its client: real gRPC and a real fd socket, over endpoints that are only remembered."""

import array
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from vif.v1 import endpoint_service_pb2 as pb
from vif.v1 import endpoint_service_pb2_grpc, host_service_pb2, host_service_pb2_grpc
from vif.v1.endpoint_pb2 import (
    ENDPOINT_KIND_BRIDGE,
    ENDPOINT_KIND_TAP,
    ENDPOINT_STATE_PENDING,
    ENDPOINT_STATE_READY,
    BridgePort,
    Endpoint,
    Owner,
    PortSpec,
    TapDevice,
)
from vif.v1.error_pb2 import (
    CONSIDERATION_OUTCOME_CHOSEN,
    CONSIDERATION_OUTCOME_KIND_NOT_OFFERED,
    Consideration,
    NegotiationFailure,
)
from vif.v1.fd_pb2 import AcquireFdsRequest, AcquireFdsResponse

KINDS = {"tap": ENDPOINT_KIND_TAP, "bridge": ENDPOINT_KIND_BRIDGE}
PAGE = 2


def make_status(code: grpc.StatusCode, message: str, reason: str = "", *details: Message) -> Any:
    info = [error_details_pb2.ErrorInfo(reason=reason, domain="vifd", metadata={"fake": "yes"})] if reason else []
    packed = []
    for detail in [*info, *details]:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=packed))


def retry_info(delay_s: float) -> Message:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(delay_s * 1e9))
    return info


class FakeVifd(endpoint_service_pb2_grpc.EndpointServiceServicer, host_service_pb2_grpc.HostServiceServicer):
    """Serves on `socket_path` and `fd_socket_path` until it is closed.

    `failures` are statuses that the next calls end with, one each, and `failures_of` those of an RPC's next calls; `calls` are
    the names of the RPCs that came.
    """

    def __init__(self, folder: Path) -> None:
        self.socket_path = str(folder / "v.sock")
        self.fd_socket_path = str(folder / "f.sock")
        self.endpoints: dict[str, Endpoint] = {}
        #: Networks beside the default one, as GetHostInfo tells of them.
        self.more_networks: list[host_service_pb2.Network] = []
        self.beyond_repair: set[int] = set()  # kinds of drifts
        self.failures: list[Any] = []
        self.failures_of: dict[str, list[Any]] = {}
        self.calls: list[str] = []
        self.requests: list[Any] = []
        self.deadlines_s: list[float] = []
        self.entered = threading.Event()
        self.watching = threading.Event()
        self.end_watch = threading.Event()
        self.hang = threading.Event()  # set: calls end; a test clears it to hold one
        self.hang.set()
        self._generation = 0
        self._server: grpc.Server | None = None
        self.start()
        self.fds = FakeFdSocket(self.fd_socket_path)

    def start(self) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        endpoint_service_pb2_grpc.add_EndpointServiceServicer_to_server(self, self._server)
        host_service_pb2_grpc.add_HostServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{quote(self.socket_path)}")
        self._server.start()

    def stop(self) -> None:
        self.hang.set()
        self.end_watch.set()
        if self._server:
            self._server.stop(None).wait()

    def close(self) -> None:
        self.stop()
        self.fds.close()

    def RequestEndpoint(self, request: pb.RequestEndpointRequest, context: grpc.ServicerContext) -> pb.RequestEndpointResponse:
        self._enter(request, context)
        return self._make(request, context)

    def BatchRequestEndpoints(
        self, request: pb.BatchRequestEndpointsRequest, context: grpc.ServicerContext
    ) -> pb.BatchRequestEndpointsResponse:
        self._enter(request, context)
        return pb.BatchRequestEndpointsResponse(responses=[self._make(one, context) for one in request.requests])

    def ReleaseEndpoint(self, request: pb.ReleaseEndpointRequest, context: grpc.ServicerContext) -> pb.ReleaseEndpointResponse:
        self._enter(request, context)
        self.endpoints.pop(request.endpoint_id, None)
        return pb.ReleaseEndpointResponse()

    def BatchReleaseEndpoints(
        self, request: pb.BatchReleaseEndpointsRequest, context: grpc.ServicerContext
    ) -> pb.BatchReleaseEndpointsResponse:
        self._enter(request, context)
        for one in request.requests:
            self.endpoints.pop(one.endpoint_id, None)
        return pb.BatchReleaseEndpointsResponse()

    def GetEndpoint(self, request: pb.GetEndpointRequest, context: grpc.ServicerContext) -> pb.GetEndpointResponse:
        self._enter(request, context)
        return pb.GetEndpointResponse(endpoint=self._get(request.endpoint_id, context))

    def UpdateEndpoint(self, request: pb.UpdateEndpointRequest, context: grpc.ServicerContext) -> pb.UpdateEndpointResponse:
        self._enter(request, context)
        endpoint = self._get(request.endpoint_id, context)
        port = endpoint.port
        for name in request.update_mask.paths:
            port.ClearField(name)
        request.update_mask.MergeMessage(request.port, port, True, True)
        return pb.UpdateEndpointResponse(endpoint=endpoint)

    def ActivateEndpoint(self, request: pb.ActivateEndpointRequest, context: grpc.ServicerContext) -> pb.ActivateEndpointResponse:
        self._enter(request, context)
        return pb.ActivateEndpointResponse(endpoint=self._get(request.endpoint_id, context))

    def CheckEndpoint(self, request: pb.CheckEndpointRequest, context: grpc.ServicerContext) -> pb.CheckEndpointResponse:
        self._enter(request, context)
        endpoint = self._get(request.endpoint_id, context)
        drifts = list(endpoint.drifts)
        if request.repair:
            del endpoint.drifts[:]
            endpoint.drifts.extend(drift for drift in drifts if drift.kind in self.beyond_repair)
        return pb.CheckEndpointResponse(drifts=drifts, endpoint=endpoint)

    def CollectGarbage(self, request: pb.CollectGarbageRequest, context: grpc.ServicerContext) -> pb.CollectGarbageResponse:
        self._enter(request, context)
        released = sorted(set(self.endpoints) - set(request.keep_endpoint_ids))
        for endpoint_id in released if not request.dry_run else ():
            del self.endpoints[endpoint_id]
        return pb.CollectGarbageResponse(released_endpoint_ids=released)

    def ListEndpoints(self, request: pb.ListEndpointsRequest, context: grpc.ServicerContext) -> pb.ListEndpointsResponse:
        self._enter(request, context)
        found = sorted(one.endpoint_id for one in self.endpoints.values() if _matches(one, request.filter))
        rest = [endpoint_id for endpoint_id in found if endpoint_id > request.page_token]
        page, more = rest[:PAGE], rest[PAGE:]
        return pb.ListEndpointsResponse(
            endpoints=[self.endpoints[endpoint_id] for endpoint_id in page], next_page_token=page[-1] if more else ""
        )

    def WatchEndpoints(
        self, request: pb.WatchEndpointsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchEndpointsResponse]:
        self._enter(request, context)
        context.add_callback(self.end_watch.set)
        for endpoint in list(self.endpoints.values()):
            yield pb.WatchEndpointsResponse(kind=pb.WATCH_EVENT_KIND_CURRENT, endpoint=endpoint)
        yield pb.WatchEndpointsResponse(kind=pb.WATCH_EVENT_KIND_SYNCED)
        self.watching.set()
        self.end_watch.wait()
        self._fail(context)

    def GetHostInfo(
        self, request: host_service_pb2.GetHostInfoRequest, context: grpc.ServicerContext
    ) -> host_service_pb2.GetHostInfoResponse:
        self._enter(request, context)
        offers = [
            host_service_pb2.KindOffer(kind=ENDPOINT_KIND_TAP, available=True, features=[host_service_pb2.FEATURE_FD_HANDOFF]),
            host_service_pb2.KindOffer(kind=ENDPOINT_KIND_BRIDGE, available=False, message="the fake has no bridge"),
        ]
        network = host_service_pb2.Network(
            name="default", network_driver="fake", mtu_bytes=1500, offers=offers, endpoint_count=len(self.endpoints)
        )
        return host_service_pb2.GetHostInfoResponse(
            version="0.0.fake",
            boot_id="b",
            network_drivers=["fake"],
            networks=[network, *self.more_networks],
            fd_socket_path=self.fd_socket_path,
            limits_mechanism=host_service_pb2.LIMITS_MECHANISM_POLICE,
        )

    def _enter(self, request: Message, context: grpc.ServicerContext) -> None:
        self.calls.append(type(request).__name__.removesuffix("Request"))
        self.requests.append(request)
        self.deadlines_s.append(context.time_remaining())
        self.entered.set()
        self.hang.wait()
        self._fail(context)
        if self.failures_of.get(self.calls[-1]):
            context.abort_with_status(self.failures_of[self.calls[-1]].pop(0))

    def _fail(self, context: grpc.ServicerContext) -> None:
        if self.failures:
            context.abort_with_status(self.failures.pop(0))

    def _get(self, endpoint_id: str, context: grpc.ServicerContext) -> Endpoint:
        if endpoint_id not in self.endpoints:
            context.abort_with_status(make_status(grpc.StatusCode.NOT_FOUND, f"no endpoint {endpoint_id}", "UNKNOWN_ENDPOINT"))
        return self.endpoints[endpoint_id]

    def _make(self, request: pb.RequestEndpointRequest, context: grpc.ServicerContext) -> pb.RequestEndpointResponse:
        if request.network != "default":
            context.abort_with_status(make_status(grpc.StatusCode.NOT_FOUND, f"no network {request.network}", "UNKNOWN_NETWORK"))
        index = next((i for i, one in enumerate(request.acceptable) if one.WhichOneof("kind") in KINDS), None)
        considered = [_consider(i, one, chosen=i == index) for i, one in enumerate(request.acceptable)]
        if index is None:
            failure = NegotiationFailure(considered=considered)
            message = "the network default can give none of the acceptable kinds"
            context.abort_with_status(make_status(grpc.StatusCode.FAILED_PRECONDITION, message, "NO_ACCEPTABLE_KIND", failure))
            raise AssertionError("abort raises")
        endpoint = self._endpoint(request, request.acceptable[index])
        if not request.validate_only:
            self.endpoints[endpoint.endpoint_id] = endpoint
        return pb.RequestEndpointResponse(
            endpoint=endpoint, considered=considered, plan=["create tap vdtfake"] if request.validate_only else []
        )

    def _endpoint(self, request: pb.RequestEndpointRequest, preference: pb.EndpointPreference) -> Endpoint:
        self._generation += 1
        endpoint = Endpoint(
            endpoint_id=request.endpoint_id,
            generation=0 if request.validate_only else self._generation,
            network=request.network,
            network_driver="fake",
            state=ENDPOINT_STATE_PENDING if request.validate_only else ENDPOINT_STATE_READY,
            port=_port(request.port),
            owner=Owner(uid=os.getuid()),
            instance=request.instance,
            labels=request.labels,
        )
        if request.HasField("lifetime"):
            endpoint.lifetime.CopyFrom(request.lifetime)
        endpoint.create_time.GetCurrentTime()
        if preference.HasField("tap"):
            queues = preference.tap.queues or 1
            endpoint.tap.CopyFrom(TapDevice(ifname="vdtfake", ifindex=7, queues=queues, multi_queue=queues > 1, vnet_hdr=True))
        else:
            endpoint.bridge.CopyFrom(BridgePort(bridge_name="br-fake", suggested_ifname="vdbfake"))
        return endpoint


def _matches(endpoint: Endpoint, wanted: pb.EndpointFilter) -> bool:
    return (
        wanted.network in {"", endpoint.network}
        and wanted.instance_uuid in {"", endpoint.instance.uuid}
        and wanted.labels.items() <= endpoint.labels.items()
    )


def _port(asked: PortSpec) -> PortSpec:
    port = PortSpec(mac="52:54:00:12:34:56", mtu_bytes=1500)
    port.MergeFrom(asked)
    return port


def _consider(index: int, preference: pb.EndpointPreference, *, chosen: bool) -> Consideration:
    kind = preference.WhichOneof("kind") or ""
    outcome = CONSIDERATION_OUTCOME_CHOSEN if chosen else CONSIDERATION_OUTCOME_KIND_NOT_OFFERED
    return Consideration(
        index=index, kind=KINDS.get(kind, 4), outcome=outcome, message="" if chosen else f"the driver fake makes no {kind}"
    )


class FakeFdSocket:
    """The fd socket: answers each request with what `answer` returns."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked: list[AcquireFdsRequest] = []
        self.answer: Callable[[AcquireFdsRequest], tuple[bytes, Sequence[int]] | None] = self.give
        self.release = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def give(self, request: AcquireFdsRequest) -> tuple[bytes, Sequence[int]]:
        fds = [os.open("/dev/null", os.O_RDWR) for _ in range(request.count or 2)]
        return AcquireFdsResponse(count=len(fds), vnet_hdr=True).SerializeToString(), fds

    def close(self) -> None:
        self.release.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._serve_one(connection)

    def _serve_one(self, connection: socket.socket) -> None:
        packet = connection.recv(65536)
        if not packet:  # somebody only looked whether we listen
            return
        request = AcquireFdsRequest.FromString(packet)
        self.asked.append(request)
        answer = self.answer(request)
        if answer is None:
            return
        packet, fds = answer
        connection.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
        for fd in fds:
            os.close(fd)
