"""Bad input: each gets its status with a sentence that says what to do, and the kernel stays exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.functional.conftest import ALICE, BOB
from tests.support import kernel
from tests.support.asking import asked, make, refusal
from tests.support.daemon import Daemon, ip, taps
from vifclient import Client
from vifclient.messages import (
    Owner,
    PortSpec,
    ReleaseEndpointRequest,
)

NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"

[networks.foreign]
driver = "bridge"
bridge = "br-foreign"
"""
TOO_LARGE_ID = (1 << 32) - 1
LONG = "x" * (64 << 10)


@pytest.fixture(autouse=True)
def _kernel_unchanged(vifd: Daemon, client: Client) -> Iterator[None]:
    """What a test makes on purpose, it releases; all else is as before."""
    before = kernel.snapshot(vifd.netns)
    yield
    assert list(client.list_endpoints()) == []
    assert kernel.snapshot(vifd.netns) == before


@pytest.mark.parametrize("endpoint_id", ["", "../x", "%d", "6F9619FF-8B86-4D01-B42D-00CF4FC964FF", LONG])
def test_every_call_refuses_a_malformed_id(as_alice: Client, endpoint_id: str) -> None:
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.get_endpoint(endpoint_id)
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.release_endpoint(endpoint_id)
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.batch_release_endpoints([ReleaseEndpointRequest(endpoint_id=endpoint_id)])


def test_a_filter_is_checked_as_well(as_alice: Client) -> None:
    for fields in ({"network": "../"}, {"instance_uuid": "a\0"}, {"labels": {"a": LONG}}):
        with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
            list(as_alice.list_endpoints(**fields))
        with refusal("INVALID_ARGUMENT", "INVALID_FIELD"), as_alice.watch_endpoints(**fields) as watch:
            next(watch)


def test_an_owner_that_is_not_the_callers_to_name_is_refused(as_alice: Client) -> None:
    for owner in (Owner(uid=BOB), Owner(uid=0), Owner(uid=ALICE, gid=0), Owner(gid=BOB)):
        with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
            make(as_alice, owner=owner)


def test_another_users_endpoint_is_neither_seen_nor_touched(vifd: Daemon, as_alice: Client, as_bob: Client) -> None:
    request = asked()
    endpoint = as_alice.request_endpoint(request).endpoint
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        as_bob.get_endpoint(endpoint.endpoint_id)
    assert list(as_bob.list_endpoints()) == []
    with as_bob.watch_endpoints() as watch:
        assert next(watch).endpoint.endpoint_id == ""
    with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
        as_bob.release_endpoint(endpoint.endpoint_id)
    with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
        as_bob.batch_release_endpoints([ReleaseEndpointRequest(endpoint_id=endpoint.endpoint_id)])
    with refusal("ALREADY_EXISTS", "ID_IN_USE"):
        as_bob.request_endpoint(request)
    assert as_alice.get_endpoint(endpoint.endpoint_id) == endpoint
    assert len(taps(vifd.netns)) == 1
    as_alice.release_endpoint(endpoint.endpoint_id)


def test_an_mtu_that_the_bridge_cannot_carry_is_refused(vifd: Daemon, as_alice: Client) -> None:
    with refusal("FAILED_PRECONDITION", "HOST_NOT_READY"):
        make(as_alice, port=PortSpec(mtu_bytes=1501))
    (bridge,) = ip(vifd.netns, "link", "show", "br-blue")
    assert bridge["mtu"] == 1500
