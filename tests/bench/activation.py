"""How soon vifd knows that a VM runs: from its first frame to the event that says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from uuid import uuid4

from tests.bench.daemon import NETWORK, running_daemon
from tests.bench.guarded import connect
from tests.bench.measure import Row, Samples, make_row, timed
from tests.support import frames
from vifclient import Client, Watch
from vifclient.messages import EndpointPreference, EndpointState, RequestEndpointRequest, TapPreference

OPERATION = "first frame to ACTIVE"
_VNET_HDR = bytes(10)


def measure_activation(rounds: int, advance: Callable[[], None]) -> list[Row]:
    """Let one VM after the other send its first frame, and wait until a watch tells that it is active.

    Args:
        rounds: how many VMs.
        advance: is called after each.
    """
    samples: Samples = []
    with running_daemon() as daemon, Client(daemon.socket, fd_socket_path=daemon.fd_socket) as client:
        neighbour = client.request_endpoint(_request()).endpoint
        with client.acquire_fds(neighbour.endpoint_id) as neighbours:
            for _ in range(rounds):
                endpoint = client.request_endpoint(_request()).endpoint
                with client.acquire_fds(endpoint.endpoint_id) as queues, client.watch_endpoints() as watch:
                    os.set_blocking(queues.fds[0], False)
                    connect(neighbour, neighbours.fds[0], queues.fds[0])  # a bridge drops what comes before it forwards
                    _wait_for(watch, endpoint.endpoint_id, EndpointState.ENDPOINT_STATE_ATTACHED)
                    frame = _VNET_HDR + frames.probe(endpoint.port.mac, 1)
                    timed(samples, _send_first, frame, queues.fds[0], watch, endpoint.endpoint_id)
                client.release_endpoint(endpoint.endpoint_id)
                advance()
    return [make_row("vifd", OPERATION, samples)]


def _request() -> RequestEndpointRequest:
    acceptable = [EndpointPreference(tap=TapPreference())]
    return RequestEndpointRequest(endpoint_id=str(uuid4()), network=NETWORK, acceptable=acceptable)


def _send_first(frame: bytes, fd: int, watch: Watch, endpoint_id: str) -> None:
    os.write(fd, frame)
    _wait_for(watch, endpoint_id, EndpointState.ENDPOINT_STATE_ACTIVE)


def _wait_for(watch: Watch, endpoint_id: str, state: EndpointState.ValueType) -> None:
    for event in watch:
        if (event.endpoint.endpoint_id, event.endpoint.state) == (endpoint_id, state):
            return
    raise RuntimeError("vifd ended the watch")
