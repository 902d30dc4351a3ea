"""CollectGarbage: what a driver knows nothing of any more goes, and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.asking import asked, event, make, new_id, refusal, state_of
from tests.support.daemon import BLUE, Daemon, taps, wait_for
from vifclient import Client
from vifclient.messages import Owner

NETWORKS = f"""{BLUE}
[networks.red]
driver = "bridge"
bridge = "br-red"
"""


def left(client: Client) -> set[str]:
    return {endpoint.endpoint_id for endpoint in client.list_endpoints()}


def ifnames(vifd: Daemon) -> set[str]:
    return {tap["ifname"] for tap in taps(vifd.netns)}


def test_what_isnt_kept_is_released(vifd: Daemon, as_alice: Client) -> None:
    one, two, three = (make(as_alice) for _ in range(3))
    released = as_alice.collect_garbage([two.endpoint_id, new_id()])
    assert released == sorted([one.endpoint_id, three.endpoint_id])
    assert (left(as_alice), ifnames(vifd)) == ({two.endpoint_id}, {two.tap.ifname})
    assert as_alice.collect_garbage([two.endpoint_id]) == []
    assert f"its owner doesn't keep it endpoint_id={one.endpoint_id}" in vifd.log()


def test_only_the_callers_own_whatever_it_may_release(vifd: Daemon, client: Client, as_alice: Client, as_bob: Client) -> None:
    alices, bobs, roots = make(as_alice), make(as_bob), make(client)
    for_alice = make(client, owner=Owner(uid=alices.owner.uid))
    assert client.collect_garbage([], allow_empty=True) == [roots.endpoint_id]
    assert as_bob.collect_garbage([], allow_empty=True) == [bobs.endpoint_id]
    assert left(client) == {alices.endpoint_id, for_alice.endpoint_id}
    assert as_alice.collect_garbage([alices.endpoint_id]) == [for_alice.endpoint_id]
    assert ifnames(vifd) == {alices.tap.ifname}


def test_a_network_and_a_dry_run(vifd: Daemon, client: Client) -> None:
    blue, red = make(client), make(client, network="red")
    assert client.collect_garbage([], allow_empty=True, network="red", dry_run=True) == [red.endpoint_id]
    assert client.collect_garbage([], allow_empty=True, network="never-heard-of") == []
    assert left(client) == {blue.endpoint_id, red.endpoint_id}
    assert client.collect_garbage([], allow_empty=True, network="red") == [red.endpoint_id]
    assert ifnames(vifd) == {blue.tap.ifname}


@pytest.mark.parametrize("dry_run", [False, True])
def test_everything_has_to_be_meant(client: Client, dry_run: bool) -> None:
    endpoint = make(client)
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        client.collect_garbage([], dry_run=dry_run)
    assert "allow_empty" in caught.value.message
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        client.collect_garbage([endpoint.endpoint_id, "x"])
    assert left(client) == {endpoint.endpoint_id}


def test_what_is_being_made_stays(own: Daemon, own_client: Client) -> None:
    old, request = make(own_client), asked()
    with ThreadPoolExecutor(2) as pool:
        with own.helper_stopped():
            making = pool.submit(own_client.request_endpoint, request)
            wait_for(lambda: state_of(own_client, request.endpoint_id) == "PENDING")
            collecting = pool.submit(own_client.collect_garbage, [], allow_empty=True)
            wait_for(lambda: state_of(own_client, old.endpoint_id) == "RELEASING")
        assert collecting.result() == [old.endpoint_id]
        made = making.result().endpoint
    assert (left(own_client), ifnames(own)) == ({made.endpoint_id}, {made.tap.ifname})


def test_watchers_see_what_is_collected(vifd: Daemon, client: Client) -> None:
    endpoints = {make(client).endpoint_id for _ in range(5)}
    with client.watch_endpoints(timeout_s=60) as watch:
        while event(next(watch))[0] != "SYNCED":
            pass
        client.collect_garbage([], allow_empty=True)
        removed: set[str] = set()
        while removed != endpoints:
            what, endpoint_id, state = event(next(watch))
            assert state == "RELEASING"
            removed |= {endpoint_id} if what == "REMOVED" else set()
