"""What a caller sees: get, list, watch, and what the host can do."""

from __future__ import annotations

import contextlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import kernel
from tests.support.asking import BRIDGE, asked, event, make, new_id, refusal, state_of
from tests.support.daemon import Daemon, taps, wait_for
from tests.support.users import user
from vifclient import Client, VifError
from vifclient.messages import DriftKind, EndpointKind, Feature, Instance
from vifd.kernel.monitor import open_events

NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"
repair = "report"

[networks.red]
driver = "bridge"
bridge = "br-red"
mtu = 9000
"""
GONE_SECONDS = 20


def test_filters_leave_only_what_matches_them_all(client: Client) -> None:
    vm = new_id()
    blue = make(client, acceptable=[BRIDGE], instance=Instance(uuid=vm), labels={"a": "1", "b": "2"})
    red = make(client, network="red", acceptable=[BRIDGE], instance=Instance(uuid=vm), labels={"a": "1"})
    assert list(client.list_endpoints(network="red")) == [red]
    assert list(client.list_endpoints(labels={"b": "2"})) == [blue]
    assert list(client.list_endpoints(labels={"a": "1", "b": "3"})) == []
    assert len(list(client.list_endpoints(instance_uuid=vm))) == 2
    assert list(client.list_endpoints(instance_uuid=vm, network="blue")) == [blue]
    assert list(client.list_endpoints(instance_uuid=new_id())) == []


def test_a_filter_pages_too(client: Client) -> None:
    ids = sorted(make(client, acceptable=[BRIDGE], labels={"x": str(i % 2)}).endpoint_id for i in range(6))
    found = list(client.list_endpoints(labels={"x": "1"}, page_size=1))
    assert len(found) == 3
    assert [endpoint.endpoint_id for endpoint in found] == sorted(set(ids) & {e.endpoint_id for e in found})


def test_a_watch_gives_what_is_there_then_every_change_in_order(client: Client) -> None:
    first = make(client)
    with client.watch_endpoints() as watch:
        assert event(next(watch)) == ("CURRENT", first.endpoint_id, "READY")
        assert event(next(watch)) == ("SYNCED", "", "")
        second = make(client)
        client.release_endpoint(first.endpoint_id)
        assert [event(next(watch)) for _ in range(4)] == [
            ("ADDED", second.endpoint_id, "PENDING"),
            ("CHANGED", second.endpoint_id, "READY"),
            ("CHANGED", first.endpoint_id, "RELEASING"),
            ("REMOVED", first.endpoint_id, "RELEASING"),
        ]


def test_a_request_that_fails_is_seen_to_come_and_go(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    client.release_endpoint(endpoint.endpoint_id)
    kernel.make_tap(vifd.netns, endpoint.tap.ifname)
    with client.watch_endpoints() as watch:
        assert event(next(watch))[0] == "SYNCED"
        with refusal("INTERNAL", "KERNEL"):
            make(client, endpoint.endpoint_id)
        assert [event(next(watch))[0] for _ in range(2)] == ["ADDED", "REMOVED"]
    kernel.run(vifd.netns, "link", "delete", endpoint.tap.ifname)


def test_a_watch_with_a_filter_gives_nothing_else(client: Client) -> None:
    with client.watch_endpoints(network="red") as watch:
        assert event(next(watch))[0] == "SYNCED"
        make(client, acceptable=[BRIDGE])
        red = make(client, network="red", acceptable=[BRIDGE])
        assert event(next(watch)) == ("ADDED", red.endpoint_id, "PENDING")


def test_an_endpoint_is_attached_while_a_process_has_its_tap_open(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    with client.watch_endpoints() as watch:
        assert event(next(watch))[0] == "CURRENT"
        assert event(next(watch))[0] == "SYNCED"
        for _ in range(2):
            fd = kernel.open_tap(vifd.netns, endpoint.tap.ifname)
            assert event(next(watch)) == ("CHANGED", endpoint.endpoint_id, "ATTACHED")
            assert state_of(client, endpoint.endpoint_id) == "ATTACHED"
            os.close(fd)
            assert event(next(watch)) == ("CHANGED", endpoint.endpoint_id, "READY")


def test_an_attached_endpoint_is_the_same_to_a_repeated_request(vifd: Daemon, client: Client) -> None:
    request = asked()
    endpoint = client.request_endpoint(request).endpoint
    fd = kernel.open_tap(vifd.netns, endpoint.tap.ifname)
    wait_for(lambda: state_of(client, endpoint.endpoint_id) == "ATTACHED")
    assert client.request_endpoint(request).endpoint.generation == endpoint.generation
    os.close(fd)


def test_a_tap_that_its_owner_deleted_is_told_as_drift_and_can_be_released(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    kernel.let_tap_go(kernel.open_tap(vifd.netns, endpoint.tap.ifname))
    assert taps(vifd.netns) == []
    (drift,) = wait_for(lambda: client.get_endpoint(endpoint.endpoint_id).drifts)
    assert (drift.kind, drift.expected) == (DriftKind.DRIFT_KIND_DEVICE_MISSING, endpoint.tap.ifname)
    assert "release" in drift.message
    client.release_endpoint(endpoint.endpoint_id)
    assert make(client, endpoint.endpoint_id).generation > endpoint.generation


def test_a_watch_that_is_broken_off_leaves_the_daemon_nothing_to_do(client: Client) -> None:
    for _ in range(300):  # more than the 256 that may watch at once
        with client.watch_endpoints() as watch:
            next(watch)
    with client.watch_endpoints() as watch:
        assert event(next(watch))[0] == "SYNCED"


def test_too_many_watchers_are_told_so(vifd: Daemon, client: Client) -> None:
    with contextlib.ExitStack() as stack:
        for uid in range(20010, 20018):
            one = stack.enter_context(stack.enter_context(user(uid)).client(vifd))
            watches = [stack.enter_context(one.watch_endpoints()) for _ in range(32)]
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(next, watches))
            with refusal("RESOURCE_EXHAUSTED", "OVERLOADED") as caught, one.watch_endpoints() as watch:
                next(watch)
            assert f"uid {uid} has 32 watchers" in caught.value.message or uid == 20017
            assert one.get_host_info().networks
        with refusal("RESOURCE_EXHAUSTED", "OVERLOADED"), client.watch_endpoints() as watch:
            next(watch)

    def watched() -> bool:
        try:
            with client.watch_endpoints() as watch:
                return event(next(watch))[0] == "SYNCED"
        except VifError:
            return False

    wait_for(watched)


def test_the_host_says_what_its_networks_offer(vifd: Daemon, client: Client) -> None:
    make(client)
    info = client.get_host_info()
    assert info.version
    assert info.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert {"bridge", "fake"} <= set(info.network_drivers)
    assert info.fd_socket_path == vifd.fd_socket
    blue, red = info.networks
    assert (blue.name, blue.network_driver, blue.endpoint_count) == ("blue", "bridge", 1)
    assert (red.name, red.mtu_bytes, red.endpoint_count) == ("red", 9000, 0)
    assert [(o.kind, o.available) for o in blue.offers] == [
        (EndpointKind.ENDPOINT_KIND_TAP, True),
        (EndpointKind.ENDPOINT_KIND_BRIDGE, True),
    ]
    assert Feature.FEATURE_FD_HANDOFF in blue.offers[0].features


def test_the_kernels_events_have_more_room_than_the_host_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_text())
    monkeypatch.setattr("vifd.kernel.monitor._BUFFER_BYTES", 2 * allowed)
    with contextlib.closing(open_events()) as events:
        assert events.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 4 * allowed  # the kernel counts its own needs in
