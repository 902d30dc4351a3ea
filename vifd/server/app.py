"""The gRPC server: services, reflection and health on a socket that only the gate reaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vif.v1 import endpoint_service_pb2, host_service_pb2
from vif.v1.endpoint_service_pb2_grpc import add_EndpointServiceServicer_to_server
from vif.v1.host_service_pb2_grpc import add_HostServiceServicer_to_server
from vifd.server.services import EndpointService, HostService

_SERVICES = (
    endpoint_service_pb2.DESCRIPTOR.services_by_name["EndpointService"].full_name,
    host_service_pb2.DESCRIPTOR.services_by_name["HostService"].full_name,
)
#: Calls of one connection. grpc refuses more of them by what it still has of calls that are answered already: 64 in flight, of
#: which each gives way to the next, may be twice as many.
_CALLS_A_CONNECTION = 128
#: Twice what one user may have open, with as many connections as the gate lets in: so no user can shut the others out.
#: A call that waits takes some 25 KiB.
_CALLS_AT_ONCE = 2 * 128 * _CALLS_A_CONNECTION
_OPTIONS = (
    ("grpc.max_receive_message_length", 2 << 20),  # 64 requests with all their labels are 0.7 MiB
    ("grpc.max_concurrent_streams", _CALLS_A_CONNECTION),
    ("grpc.max_metadata_size", 16 << 10),
    # Else grpc cancels calls at random, whosoever, once a thousand have come that Python hasn't taken yet.
    ("grpc.server.max_pending_requests", _CALLS_AT_ONCE),
    ("grpc.server.max_pending_requests_hard_limit", _CALLS_AT_ONCE),
)


class Server:
    """Serves until it is told to stop.

    Args:
        path: where grpc listens; in a directory that only this user can enter.
        endpoints: the service of endpoints.
        host: the service of the host.
        interceptors: what every call goes through first.
    """

    def __init__(
        self,
        path: Path,
        endpoints: EndpointService,
        host: HostService,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self._server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS, maximum_concurrent_rpcs=_CALLS_AT_ONCE)
        self._health = health.aio.HealthServicer()
        add_EndpointServiceServicer_to_server(endpoints, self._server)
        add_HostServiceServicer_to_server(host, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._server.add_insecure_port(f"unix:{path}")

    async def start(self) -> None:
        """Begin to serve."""
        for name in ("", *_SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def say_that_it_ends(self) -> None:
        """Let health checks know that it is about to stop; calls are answered still."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and answer those in flight. One that comes at this very moment is cancelled by grpc.

        Args:
            grace_s: how long they may take, in seconds.
        """
        await self._server.stop(grace_s)
