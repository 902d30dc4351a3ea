"""The start after an end of any kind: journal and kernel come together again, and a second start changes nothing."""

from __future__ import annotations

import os

import pytest

from tests.support import kernel
from tests.support.asking import BRIDGE, asked, new_id, state_of
from tests.support.daemon import BLUE, Daemon, taps, wait_for
from tests.support.restarts import listed, made, restarted
from vifclient import Client
from vifclient.messages import DriftKind, EndpointState
from vifd.kernel import names
from vifd.model import Kind


def make_stray(own: Daemon, endpoint_id: str, *, altname: bool = True) -> str:
    """Make a tap that carries the mark of an endpoint that no record knows."""
    ifname = names.device_name(Kind.TAP, endpoint_id)
    kernel.make_tap(own.netns, ifname, alias=names.mark(endpoint_id))
    if altname:
        kernel.run(own.netns, "link", "property", "add", "dev", ifname, "altname", names.altname(endpoint_id))
    return ifname


def test_a_restart_changes_neither_endpoints_nor_the_kernel(own: Daemon) -> None:
    endpoints = {one.endpoint_id: one for one in [*made(own, 5, labels={"a": "1"}), *made(own, 2, acceptable=[BRIDGE])]}
    before = kernel.snapshot(own.netns)
    for _ in range(2):
        assert restarted(own) == endpoints
        assert kernel.snapshot(own.netns) == before


def test_a_request_is_the_same_request_after_a_restart(own: Daemon) -> None:
    request = asked(labels={"a": "1", "b": "2"})
    with Client(own.socket) as client:
        endpoint = client.request_endpoint(request).endpoint
    restarted(own)
    with Client(own.socket) as client:
        assert client.request_endpoint(request).endpoint == endpoint


def test_a_tap_that_was_deleted_meanwhile_is_made_again_as_it_was(own: Daemon) -> None:
    lost, kept = made(own, 2)
    before = {tap["ifname"]: tap for tap in taps(own.netns)}
    own.stop()
    kernel.run(own.netns, "link", "delete", lost.tap.ifname)
    own.start()
    found = listed(own)
    after = {tap["ifname"]: tap for tap in taps(own.netns)}
    assert found[kept.endpoint_id] == kept
    again = found[lost.endpoint_id]
    assert (again.state, again.generation, again.tap.ifname) == (
        EndpointState.ENDPOINT_STATE_READY,
        lost.generation,
        lost.tap.ifname,
    )
    assert again.tap.ifindex == after[lost.tap.ifname]["ifindex"] != lost.tap.ifindex
    same = ("address", "mtu", "master", "ifalias", "altnames")
    assert [after[lost.tap.ifname][key] for key in same] == [before[lost.tap.ifname][key] for key in same]
    assert restarted(own) == found


def test_everything_is_made_again_when_the_bridge_and_all_taps_are_gone(own: Daemon) -> None:
    endpoints = made(own, 3)
    own.stop()
    for ifname in [endpoint.tap.ifname for endpoint in endpoints] + ["br-blue"]:
        kernel.run(own.netns, "link", "delete", ifname)
    own.start()
    assert set(listed(own)) == {endpoint.endpoint_id for endpoint in endpoints}
    assert {tap["ifname"]: tap["master"] for tap in taps(own.netns)} == {e.tap.ifname: "br-blue" for e in endpoints}


def test_a_tap_that_cannot_be_made_again_is_told_as_drift(own: Daemon) -> None:
    (endpoint,) = made(own, 1)
    own.stop()
    kernel.run(own.netns, "link", "delete", endpoint.tap.ifname)
    kernel.make_tap(own.netns, endpoint.tap.ifname)  # somebody else's
    own.start()
    (drift,) = listed(own)[endpoint.endpoint_id].drifts
    assert drift.kind == DriftKind.DRIFT_KIND_DEVICE_MISSING
    with Client(own.socket) as client:
        client.release_endpoint(endpoint.endpoint_id)
    assert [tap["ifname"] for tap in taps(own.netns)] == [endpoint.tap.ifname]


def test_a_renamed_tap_is_still_known_and_gets_its_name_back(own: Daemon) -> None:
    (endpoint,) = made(own, 1)
    own.stop()
    kernel.run(own.netns, "link", "set", endpoint.tap.ifname, "down", "name", "renamed0")
    own.start()
    assert listed(own) == {endpoint.endpoint_id: endpoint}
    assert [tap["ifname"] for tap in taps(own.netns)] == [endpoint.tap.ifname]


def test_a_tap_that_lost_its_alternative_name_is_still_known(own: Daemon) -> None:
    (endpoint,) = made(own, 1)
    own.stop()
    altname = names.altname(endpoint.endpoint_id)
    kernel.run(own.netns, "link", "property", "del", "dev", endpoint.tap.ifname, "altname", altname)
    own.start()
    assert listed(own) == {endpoint.endpoint_id: endpoint}
    with Client(own.socket) as client:
        client.release_endpoint(endpoint.endpoint_id)
    assert taps(own.netns) == []


def test_an_open_tap_is_attached_after_a_restart(own: Daemon) -> None:
    (endpoint,) = made(own, 1)
    fd = kernel.open_tap(own.netns, endpoint.tap.ifname)
    with Client(own.socket) as client:
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "ATTACHED")
    assert restarted(own)[endpoint.endpoint_id].state == EndpointState.ENDPOINT_STATE_ATTACHED
    os.close(fd)
    with Client(own.socket) as client:
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "READY")


def test_a_tap_that_was_closed_meanwhile_is_ready_after_a_restart(own: Daemon) -> None:
    (endpoint,) = made(own, 1)
    fd = kernel.open_tap(own.netns, endpoint.tap.ifname)
    with Client(own.socket) as client:
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "ATTACHED")
    own.stop()
    os.close(fd)
    wait_for(lambda: taps(own.netns)[0]["linkinfo"]["info_data"].get("numqueues", 0) == 0)
    own.start()
    with Client(own.socket) as client:
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "READY")


@pytest.mark.parametrize("altname", [True, False])
def test_a_marked_stray_is_deleted(own: Daemon, altname: bool) -> None:
    (endpoint,) = made(own, 1)
    own.stop()
    ifname = make_stray(own, new_id(), altname=altname)
    own.start()
    assert [tap["ifname"] for tap in taps(own.netns)] == [endpoint.tap.ifname]
    assert f"is deleted device={ifname}" in own.log()


def test_a_stray_that_lost_both_names_is_told_and_not_called_deleted(own: Daemon) -> None:
    own.stop()
    ifname = make_stray(own, new_id(), altname=False)
    kernel.run(own.netns, "link", "set", "dev", ifname, "name", "renamed0")
    own.start()
    assert [tap["ifname"] for tap in taps(own.netns)] == ["renamed0"]
    assert "a stray tap can't be deleted device=renamed0" in own.log()
    assert "is deleted device=renamed0" not in own.log()


def test_a_marked_stray_that_is_in_use_is_kept_and_told(own: Daemon) -> None:
    own.stop()
    ifname = make_stray(own, new_id())
    fd = kernel.open_tap(own.netns, ifname)
    wait_for(lambda: "LOWER_UP" in kernel.ip(own.netns, "link", "show", ifname)[0]["flags"])
    own.start()
    assert [tap["ifname"] for tap in taps(own.netns)] == [ifname]
    assert f"is in use: it stays device={ifname}" in own.log()
    os.close(fd)
    wait_for(lambda: "LOWER_UP" not in kernel.ip(own.netns, "link", "show", ifname)[0]["flags"])
    restarted(own)
    assert taps(own.netns) == []


@pytest.mark.parametrize("alias", ["", "vifd:", "vifd:not-a-uuid", "somebody's", "xvifd:6f9619ff-8b86-4d01-b42d-00cf4fc964ff"])
def test_a_tap_without_a_mark_is_left_alone(own: Daemon, alias: str) -> None:
    own.stop()
    ifname = names.device_name(Kind.TAP, new_id())
    kernel.make_tap(own.netns, ifname, alias=alias)
    before = kernel.snapshot(own.netns)
    own.start()
    assert kernel.snapshot(own.netns) == before


def test_a_device_of_another_kind_is_left_alone_whatever_its_mark(own: Daemon) -> None:
    own.stop()
    endpoint_id = new_id()
    kernel.run(own.netns, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    kernel.run(own.netns, "link", "set", "veth0", "alias", names.mark(endpoint_id))
    kernel.run(own.netns, "link", "property", "add", "dev", "veth0", "altname", names.altname(endpoint_id))
    before = kernel.snapshot(own.netns)
    own.start()
    assert kernel.snapshot(own.netns) == before


def test_a_network_that_left_the_configuration_keeps_its_endpoints_over_a_restart(own: Daemon) -> None:
    (endpoint,) = made(own, 1)
    own.write_config(BLUE.replace("blue", "green"))
    left = restarted(own)[endpoint.endpoint_id]
    assert [drift.kind for drift in left.drifts] == [DriftKind.DRIFT_KIND_NETWORK_MISSING]
    del left.drifts[:]
    assert left == endpoint
    with Client(own.socket) as client:
        client.release_endpoint(endpoint.endpoint_id)
    assert taps(own.netns) == []
