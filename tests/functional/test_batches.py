"""Several endpoints at once, and releases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.support import kernel
from tests.support.asking import BATCH, asked, make, refusal, release_all, state_of
from tests.support.daemon import Daemon, taps, wait_for
from vifclient import Client
from vifclient.messages import EndpointPreference, PciPreference, ReleaseEndpointRequest, RequestEndpointRequest


def names(vifd: Daemon) -> set[str]:
    return {tap["ifname"] for tap in taps(vifd.netns)}


def releases(*requests: RequestEndpointRequest) -> list[ReleaseEndpointRequest]:
    return [ReleaseEndpointRequest(endpoint_id=request.endpoint_id) for request in requests]


def test_a_batch_makes_all_in_the_order_of_its_requests(vifd: Daemon, client: Client) -> None:
    requests = [asked() for _ in range(BATCH)]
    answers = client.batch_request_endpoints(requests)
    assert [answer.endpoint.endpoint_id for answer in answers] == [request.endpoint_id for request in requests]
    assert names(vifd) == {answer.endpoint.tap.ifname for answer in answers}
    assert all(tap["master"] == "br-blue" for tap in taps(vifd.netns))


def test_one_impossible_request_of_three_leaves_nothing(vifd: Daemon, client: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND"):
        client.batch_request_endpoints([asked(), asked(acceptable=[EndpointPreference(pci=PciPreference())]), asked()])
    assert list(client.list_endpoints()) == []
    assert kernel.snapshot(vifd.netns) == before


def test_one_request_of_three_that_the_kernel_refuses_leaves_nothing(vifd: Daemon, client: Client) -> None:
    occupied = asked()
    ifname = client.request_endpoint(occupied).endpoint.tap.ifname
    client.release_endpoint(occupied.endpoint_id)
    kernel.make_tap(vifd.netns, ifname)
    try:
        before = kernel.snapshot(vifd.netns)
        with refusal("INTERNAL", "KERNEL"):
            client.batch_request_endpoints([asked(), occupied, asked()])
        assert list(client.list_endpoints()) == []
        assert kernel.snapshot(vifd.netns) == before
    finally:
        kernel.run(vifd.netns, "link", "delete", ifname)


def test_a_batch_gives_those_that_exist_and_makes_the_others(vifd: Daemon, client: Client) -> None:
    requests = [asked() for _ in range(4)]
    first = [client.request_endpoint(request).endpoint for request in requests[:2]]
    answers = client.batch_request_endpoints(requests)
    assert [answer.endpoint for answer in answers[:2]] == first
    assert len(names(vifd)) == 4


def test_a_batch_that_fails_leaves_those_that_existed(vifd: Daemon, client: Client) -> None:
    existing = asked()
    endpoint = client.request_endpoint(existing).endpoint
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND"):
        client.batch_request_endpoints([existing, asked(), asked(acceptable=[EndpointPreference(pci=PciPreference())])])
    assert list(client.list_endpoints()) == [endpoint]
    assert names(vifd) == {endpoint.tap.ifname}


def test_a_batch_may_be_validated_only(vifd: Daemon, client: Client) -> None:
    answers = client.batch_request_endpoints([asked(validate_only=True) for _ in range(3)])
    assert [len(answer.plan) for answer in answers] == [3, 3, 3]
    assert names(vifd) == set()


def test_a_release_takes_the_tap_down_and_forgets_the_endpoint(vifd: Daemon, client: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    endpoint = make(client)
    client.release_endpoint(endpoint.endpoint_id)
    assert kernel.snapshot(vifd.netns) == before
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        client.get_endpoint(endpoint.endpoint_id)


def test_a_release_of_an_endpoint_that_is_being_made_waits_for_it(vifd: Daemon, client: Client) -> None:
    request = asked()
    with ThreadPoolExecutor(2) as pool:
        with vifd.helper_stopped():
            made = pool.submit(client.request_endpoint, request)
            wait_for(lambda: state_of(client, request.endpoint_id) == "PENDING")
            released = pool.submit(client.release_endpoint, request.endpoint_id)
        assert made.result().endpoint.generation > 0
        released.result()
    assert names(vifd) == set()


def test_a_batch_of_releases_takes_all_down_at_once(vifd: Daemon, client: Client) -> None:
    requests = [asked() for _ in range(BATCH)]
    client.batch_request_endpoints(requests)
    kept = make(client)
    client.batch_release_endpoints(releases(*requests))
    assert names(vifd) == {kept.tap.ifname}
    assert list(client.list_endpoints()) == [kept]


def test_an_opened_tap_is_released_all_the_same(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    with client.acquire_fds(endpoint.endpoint_id):
        client.release_endpoint(endpoint.endpoint_id)
        assert names(vifd) == set()


def test_a_renamed_tap_is_found_and_released(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    kernel.run(vifd.netns, "link", "set", endpoint.tap.ifname, "down", "name", "renamed0")
    client.release_endpoint(endpoint.endpoint_id)
    assert taps(vifd.netns) == []


def test_a_full_bridge_refuses_the_next_port_and_leaves_nothing_behind(vifd: Daemon, client: Client) -> None:
    for _ in range(15):
        client.batch_request_endpoints([asked() for _ in range(BATCH)])
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):  # 960 and 64 are more than the 1,023 that a bridge takes
        client.batch_request_endpoints([asked() for _ in range(BATCH)])
    assert len(names(vifd)) == 960
    client.batch_request_endpoints([asked() for _ in range(BATCH - 1)])
    before = kernel.snapshot(vifd.netns)
    last = asked()
    with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
        client.request_endpoint(last)
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        client.get_endpoint(last.endpoint_id)
    assert kernel.snapshot(vifd.netns) == before
    release_all(client, [next(iter(client.list_endpoints())).endpoint_id])
    assert client.request_endpoint(last).endpoint.tap.ifname in names(vifd)
