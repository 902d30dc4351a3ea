"""Requests as tests make them, and refusals as they expect them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import pytest

from tests.support.patience import patient
from vifclient import Client, VifError
from vifclient.messages import (
    BridgePreference,
    Endpoint,
    EndpointPreference,
    EndpointState,
    ReleaseEndpointRequest,
    RequestEndpointRequest,
    TapPreference,
    WatchEventKind,
)

TAP = EndpointPreference(tap=TapPreference())
BRIDGE = EndpointPreference(bridge=BridgePreference())
BATCH = 64
_TIMEOUT_S = patient(30)


def new_id() -> str:
    """Choose an endpoint's id."""
    return str(uuid.uuid4())


def asked(endpoint_id: str = "", *, network: str = "blue", acceptable: Any = (TAP,), **fields: Any) -> RequestEndpointRequest:
    """Make a request, of a tap if it doesn't say otherwise."""
    return RequestEndpointRequest(endpoint_id=endpoint_id or new_id(), network=network, acceptable=acceptable, **fields)


def make(client: Client, endpoint_id: str = "", **fields: Any) -> Endpoint:
    """Request an endpoint and give it."""
    return client.request_endpoint(asked(endpoint_id, **fields), timeout_s=_TIMEOUT_S).endpoint


def release_all(client: Client, endpoint_ids: Iterable[str] | None = None) -> None:
    """Release endpoints; without ids, all of them."""
    ids = [endpoint.endpoint_id for endpoint in client.list_endpoints()] if endpoint_ids is None else list(endpoint_ids)
    for start in range(0, len(ids), BATCH):
        requests = [ReleaseEndpointRequest(endpoint_id=one) for one in ids[start : start + BATCH]]
        client.batch_release_endpoints(requests, timeout_s=_TIMEOUT_S)


def state_of(client: Client, endpoint_id: str) -> str:
    """Give an endpoint's state, short; "" where there is none."""
    found = {endpoint.endpoint_id: endpoint for endpoint in client.list_endpoints()}.get(endpoint_id)
    return EndpointState.Name(found.state).removeprefix("ENDPOINT_STATE_") if found else ""


def event(message: Any) -> tuple[str, str, str]:
    """Give a watch's event as a test compares it: what happened, to which endpoint, in which state."""
    kind = WatchEventKind.Name(message.kind).removeprefix("WATCH_EVENT_KIND_")
    state = EndpointState.Name(message.endpoint.state).removeprefix("ENDPOINT_STATE_")
    return kind, message.endpoint.endpoint_id, "" if kind == "SYNCED" else state


@contextlib.contextmanager
def refusal(code: str, reason: str) -> Iterator[pytest.ExceptionInfo[VifError]]:
    """Expect that vifd refuses the block's call, with this status and reason and a sentence for people."""
    with pytest.raises(VifError) as caught:
        yield caught
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode[code], reason), error
    assert len(error.message.split()) >= 4, f"that is no sentence: {error.message!r}"
