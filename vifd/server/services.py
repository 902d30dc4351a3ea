"""The servicers: each method converts, calls one use case, and converts back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from vif.v1 import endpoint_pb2, host_service_pb2
from vif.v1 import endpoint_service_pb2 as pb
from vif.v1.endpoint_service_pb2_grpc import EndpointServiceServicer
from vif.v1.host_service_pb2_grpc import HostServiceServicer
from vifd import __version__
from vifd.endpoints.activation import Activation
from vifd.endpoints.changes import Changes
from vifd.endpoints.engine import Answer, Engine
from vifd.endpoints.garbage import Garbage
from vifd.endpoints.mending import Mender
from vifd.endpoints.registry import Change
from vifd.endpoints.views import Views
from vifd.errors import InvalidRequest
from vifd.kernel.ops import describe
from vifd.model import Caller, Endpoint, LimitsMechanism
from vifd.server import requests, words
from vifd.server.middleware import FindCaller, stream, unary

_EVENTS: dict[Change, Any] = {change: pb.WatchEventKind.Value(f"WATCH_EVENT_KIND_{change.name}") for change in Change}


class UseCases(NamedTuple):
    """What the service calls: who makes and takes down, who shows, who changes, who checks, who activates, who collects."""

    engine: Engine
    views: Views
    changes: Changes
    mender: Mender
    activation: Activation
    garbage: Garbage


class EndpointService(EndpointServiceServicer):
    """vif.v1.EndpointService.

    Args:
        use_cases: what there is to do.
        find_caller: tells who is behind a `context.peer()`.
        netns_path: the namespace that holds the devices; empty: the one vifd was started in.
    """

    def __init__(self, use_cases: UseCases, find_caller: FindCaller, netns_path: str) -> None:
        self._engine, self._views, self._changes, self._mender, self._activation, self._garbage = use_cases
        self.find_caller, self._netns_path = find_caller, netns_path

    @unary
    async def RequestEndpoint(self, message: pb.RequestEndpointRequest, caller: Caller) -> pb.RequestEndpointResponse:
        request = requests.endpoint_request(message, caller)
        (answer,) = await self._engine.request(caller, [request])
        return self._answer(answer)

    @unary
    async def BatchRequestEndpoints(
        self, message: pb.BatchRequestEndpointsRequest, caller: Caller
    ) -> pb.BatchRequestEndpointsResponse:
        wanted = requests.batch_request(message, caller)
        try:
            answers = await self._engine.request(caller, wanted)
        except InvalidRequest as error:
            raise requests.of_batch(error, wanted) from error
        return pb.BatchRequestEndpointsResponse(responses=[self._answer(answer) for answer in answers])

    @unary
    async def ReleaseEndpoint(self, message: pb.ReleaseEndpointRequest, caller: Caller) -> pb.ReleaseEndpointResponse:
        await self._engine.release(caller, [requests.release(message)])
        return pb.ReleaseEndpointResponse()

    @unary
    async def BatchReleaseEndpoints(
        self, message: pb.BatchReleaseEndpointsRequest, caller: Caller
    ) -> pb.BatchReleaseEndpointsResponse:
        await self._engine.release(caller, requests.batch_release(message))
        return pb.BatchReleaseEndpointsResponse()

    @unary
    async def GetEndpoint(self, message: pb.GetEndpointRequest, caller: Caller) -> pb.GetEndpointResponse:
        endpoint = self._views.get(caller, requests.endpoint_id(message))
        return pb.GetEndpointResponse(endpoint=self._endpoint(endpoint))

    @unary
    async def ListEndpoints(self, message: pb.ListEndpointsRequest, caller: Caller) -> pb.ListEndpointsResponse:
        wanted, (after, count) = requests.wanted(message), requests.page(message)
        page, more = self._views.page(caller, wanted, after=after, count=count)
        token = requests.page_token(message, page[-1].endpoint_id) if more else ""
        return pb.ListEndpointsResponse(endpoints=[self._endpoint(e) for e in page], next_page_token=token)

    @stream
    async def WatchEndpoints(self, message: pb.WatchEndpointsRequest, caller: Caller) -> AsyncIterator[pb.WatchEndpointsResponse]:
        async for change, endpoint in self._views.watch(caller, requests.wanted(message)):
            seen = self._endpoint(endpoint) if endpoint is not None else None
            yield pb.WatchEndpointsResponse(kind=_EVENTS[change], endpoint=seen)

    @unary
    async def UpdateEndpoint(self, message: pb.UpdateEndpointRequest, caller: Caller) -> pb.UpdateEndpointResponse:
        endpoint = await self._changes.update(caller, requests.change(message))
        return pb.UpdateEndpointResponse(endpoint=self._endpoint(endpoint))

    @unary
    async def ActivateEndpoint(self, message: pb.ActivateEndpointRequest, caller: Caller) -> pb.ActivateEndpointResponse:
        endpoint = await self._activation.activate(caller, requests.endpoint_id(message))
        return pb.ActivateEndpointResponse(endpoint=self._endpoint(endpoint))

    @unary
    async def CheckEndpoint(self, message: pb.CheckEndpointRequest, caller: Caller) -> pb.CheckEndpointResponse:
        drifts, endpoint = await self._mender.check(caller, requests.endpoint_id(message), repair=message.repair)
        return pb.CheckEndpointResponse(drifts=[words.drift(d) for d in drifts], endpoint=self._endpoint(endpoint))

    @unary
    async def CollectGarbage(self, message: pb.CollectGarbageRequest, caller: Caller) -> pb.CollectGarbageResponse:
        released = await self._garbage.collect(caller, requests.collection(message))
        return pb.CollectGarbageResponse(released_endpoint_ids=released)

    def _endpoint(self, endpoint: Endpoint) -> endpoint_pb2.Endpoint:
        return words.endpoint(endpoint, self._netns_path)

    def _answer(self, answer: Answer) -> pb.RequestEndpointResponse:
        return pb.RequestEndpointResponse(
            endpoint=self._endpoint(answer.endpoint),
            considered=[words.consideration(c) for c in answer.endpoint.considered],
            plan=describe(answer.plan),
        )


class HostFacts(NamedTuple):
    """What of a host doesn't change while vifd runs.

    Args:
        boot_id: of the running kernel.
        drivers: the network drivers that can be configured.
        fd_socket: where open queues can be had.
        limits_mechanism: how limits are kept; None: there is no kernel behind this vifd.
    """

    boot_id: str
    drivers: list[str]
    fd_socket: str
    limits_mechanism: LimitsMechanism | None


class HostService(HostServiceServicer):
    """vif.v1.HostService.

    Args:
        views: shows.
        find_caller: tells who is behind a `context.peer()`.
        facts: what doesn't change while vifd runs.
    """

    def __init__(self, views: Views, find_caller: FindCaller, facts: HostFacts) -> None:
        self._views, self.find_caller, self._facts = views, find_caller, facts

    @unary
    async def GetHostInfo(
        self, message: host_service_pb2.GetHostInfoRequest, caller: Caller
    ) -> host_service_pb2.GetHostInfoResponse:
        requests.nothing(message)
        return host_service_pb2.GetHostInfoResponse(
            version=__version__,
            boot_id=self._facts.boot_id,
            network_drivers=self._facts.drivers,
            networks=[words.network(network) for network in self._views.networks(caller)],
            fd_socket_path=self._facts.fd_socket,
            limits_mechanism=words.limits_mechanism(self._facts.limits_mechanism),
        )
