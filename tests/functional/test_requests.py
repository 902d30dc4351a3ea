"""Endpoints as they are asked for, and as the kernel has them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.functional.conftest import ALICE
from tests.support import kernel
from tests.support.asking import BRIDGE, TAP, asked, make, refusal, state_of
from tests.support.daemon import Daemon, ip, taps, wait_for
from vifclient import Client
from vifclient.errors import DeadlineExceeded
from vifclient.messages import (
    Consideration,
    ConsiderationOutcome,
    EndpointKind,
    EndpointPreference,
    EndpointState,
    MacvtapPreference,
    Owner,
    PciPreference,
    PortSpec,
    Requirements,
    TapPreference,
)

UNKNOWN_USER_UID = 4_000_000_001

NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"
addresses = ["10.91.0.1/24"]

[networks.wide]
driver = "bridge"
bridge = "br-wide"
mtu = 9000

[networks.narrow]
driver = "bridge"
bridge = "br-narrow"
mtu = 1000
addresses = ["10.91.1.1/24"]
"""


def outcomes(considered: list[Consideration]) -> list[tuple[int, str, str]]:
    return [
        (
            c.index,
            EndpointKind.Name(c.kind).removeprefix("ENDPOINT_KIND_"),
            ConsiderationOutcome.Name(c.outcome).removeprefix("CONSIDERATION_OUTCOME_"),
        )
        for c in considered
    ]


def test_a_tap_is_the_callers_and_marked_and_up_on_the_networks_bridge(vifd: Daemon, as_alice: Client) -> None:
    endpoint = make(as_alice, port=PortSpec(mac="52:54:00:12:34:56"))
    (tap,) = taps(vifd.netns)
    data = tap["linkinfo"]["info_data"]
    assert (data["type"], data["persist"], data["vnet_hdr"], data["multi_queue"]) == ("tap", True, True, False)
    assert (int(data["user"]), data.get("group")) == (ALICE, None)
    assert (tap["master"], tap["mtu"], tap["address"]) == ("br-blue", 1500, "fe:54:00:12:34:56")
    assert tap["ifalias"] == f"vifd:{endpoint.endpoint_id}"
    assert tap["altnames"] == [f"vifd-{endpoint.endpoint_id}"]
    assert "UP" in tap["flags"]
    assert (tap["ifname"], tap["ifindex"]) == (endpoint.tap.ifname, endpoint.tap.ifindex)


def test_a_tap_has_no_address_of_its_own(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    (device,) = ip(vifd.netns, "address", "show", "dev", endpoint.tap.ifname)
    assert device["addr_info"] == []


def test_the_answer_says_all_that_is_in_effect(vifd: Daemon, as_alice: Client) -> None:
    endpoint = make(as_alice, labels={"role": "web"}, instance={"name": "vm-1"})
    assert endpoint.state == EndpointState.ENDPOINT_STATE_READY
    assert (endpoint.network, endpoint.network_driver) == ("blue", "bridge")
    assert (endpoint.tap.queues, endpoint.tap.multi_queue, endpoint.tap.vnet_hdr) == (1, False, True)
    assert endpoint.tap.netns_path == f"/run/netns/{vifd.netns}"
    assert endpoint.port.mtu_bytes == 1500
    assert endpoint.owner.uid == ALICE
    assert (dict(endpoint.labels), endpoint.instance.name) == ({"role": "web"}, "vm-1")
    assert endpoint.create_time.seconds > 0
    assert endpoint.generation > 0


def test_a_derived_mac_is_local_unicast_and_the_taps_own_differs_in_its_first_octet(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    assert int(endpoint.port.mac[:2], 16) & 0b11 == 0b10
    assert taps(vifd.netns)[0]["address"] == f"fe{endpoint.port.mac[2:]}"


def test_a_tap_has_the_options_that_were_asked_for(vifd: Daemon, client: Client) -> None:
    endpoint = make(client, acceptable=[EndpointPreference(tap=TapPreference(queues=4, vnet_hdr=False))])
    data = taps(vifd.netns)[0]["linkinfo"]["info_data"]
    assert (data["multi_queue"], data["vnet_hdr"]) == (True, False)
    assert (endpoint.tap.queues, endpoint.tap.multi_queue, endpoint.tap.vnet_hdr) == (4, True, False)


@pytest.mark.parametrize("mtu_bytes", [68, 1280, 9000])
def test_a_tap_has_the_mtu_that_was_asked_for(vifd: Daemon, client: Client, mtu_bytes: int) -> None:
    endpoint = make(client, network="wide", port=PortSpec(mtu_bytes=mtu_bytes))
    assert (taps(vifd.netns)[0]["mtu"], endpoint.port.mtu_bytes) == (mtu_bytes, mtu_bytes)
    assert kernel.settings(vifd.netns, "br-wide")["mtu"] == 9000


def test_a_network_may_have_an_mtu_below_ipv6s_least(vifd: Daemon, client: Client) -> None:
    endpoint = make(client, network="narrow")
    assert (endpoint.port.mtu_bytes, taps(vifd.netns)[0]["mtu"]) == (1000, 1000)
    bridge = kernel.settings(vifd.netns, "br-narrow")
    assert (bridge["mtu"], [address["local"] for address in bridge["addr_info"]]) == (1000, ["10.91.1.1"])


def test_root_makes_taps_for_any_user_and_group(vifd: Daemon, client: Client) -> None:
    make(client, owner=Owner(uid=UNKNOWN_USER_UID, gid=UNKNOWN_USER_UID))
    data = taps(vifd.netns)[0]["linkinfo"]["info_data"]
    assert (int(data["user"]), int(data["group"])) == (UNKNOWN_USER_UID, UNKNOWN_USER_UID)


def test_a_caller_may_want_its_own_group_as_well(vifd: Daemon, as_alice: Client) -> None:
    make(as_alice, owner=Owner(gid=ALICE))
    assert int(taps(vifd.netns)[0]["linkinfo"]["info_data"]["group"]) == ALICE


def test_a_bridge_is_given_by_name_with_a_name_for_the_port(vifd: Daemon, client: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    first, second = make(client, acceptable=[BRIDGE]), make(client, acceptable=[BRIDGE])
    assert first.bridge.bridge_name == "br-blue"
    assert first.bridge.suggested_ifname.startswith("vdb")
    assert first.bridge.suggested_ifname != second.bridge.suggested_ifname
    assert kernel.snapshot(vifd.netns) == before


def test_what_the_network_cannot_give_is_passed_over_with_its_reason(client: Client) -> None:
    acceptable = [EndpointPreference(pci=PciPreference()), EndpointPreference(macvtap=MacvtapPreference()), TAP, BRIDGE]
    answer = client.request_endpoint(asked(acceptable=acceptable))
    assert answer.endpoint.WhichOneof("location") == "tap"
    assert outcomes(answer.considered) == [
        (0, "PCI", "KIND_NOT_OFFERED"),
        (1, "MACVTAP", "KIND_NOT_OFFERED"),
        (2, "TAP", "CHOSEN"),
        (3, "BRIDGE", "NOT_NEEDED"),
    ]
    assert all(c.message for c in answer.considered if c.index != 2)


def test_a_kind_that_can_do_the_options_is_taken_before_one_that_cannot(client: Client) -> None:
    answer = client.request_endpoint(asked(acceptable=[BRIDGE, TAP], port=PortSpec(mtu_bytes=1400)))
    assert outcomes(answer.considered) == [(0, "BRIDGE", "OPTION_UNSUPPORTED"), (1, "TAP", "CHOSEN")]


def test_a_requirement_that_is_met_changes_nothing(client: Client) -> None:
    assert make(client, require=Requirements(live_migratable=True)).HasField("tap")


def test_no_acceptable_kind_is_refused_with_the_reason_for_each(vifd: Daemon, client: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as caught:
        make(client, acceptable=[EndpointPreference(pci=PciPreference()), EndpointPreference(macvtap=MacvtapPreference())])
    assert outcomes(caught.value.considered) == [(0, "PCI", "KIND_NOT_OFFERED"), (1, "MACVTAP", "KIND_NOT_OFFERED")]
    assert kernel.snapshot(vifd.netns) == before


def test_validate_only_shows_the_plan_and_changes_nothing(vifd: Daemon, client: Client) -> None:
    before = kernel.snapshot(vifd.netns)
    request = asked(validate_only=True)
    answer = client.request_endpoint(request)
    assert (answer.endpoint.state, answer.endpoint.generation) == (EndpointState.ENDPOINT_STATE_PENDING, 0)
    assert outcomes(answer.considered) == [(0, "TAP", "CHOSEN")]
    assert [line.split()[0] for line in answer.plan] == ["make", "make", "put"]
    assert kernel.snapshot(vifd.netns) == before
    assert list(client.list_endpoints()) == []
    request.validate_only = False
    assert client.request_endpoint(request).endpoint.state == EndpointState.ENDPOINT_STATE_READY


def test_the_same_request_again_gives_the_same_endpoint(vifd: Daemon, client: Client) -> None:
    request = asked(labels={"b": "2", "a": "1"}, port=PortSpec(mtu_bytes=1400))
    first = client.request_endpoint(request)
    before = kernel.snapshot(vifd.netns)
    assert client.request_endpoint(request) == first
    assert kernel.snapshot(vifd.netns) == before


def test_identical_requests_at_once_share_one_piece_of_work(vifd: Daemon, client: Client) -> None:
    request = asked()
    with ThreadPoolExecutor(8) as pool:
        with vifd.helper_stopped():
            answers = [pool.submit(client.request_endpoint, request) for _ in range(8)]
            wait_for(lambda: state_of(client, request.endpoint_id) == "PENDING")
        endpoints = [answer.result().endpoint for answer in answers]
    assert endpoints == [endpoints[0]] * 8
    assert len(taps(vifd.netns)) == 1


def test_another_request_under_an_id_that_is_being_made_is_refused(vifd: Daemon, client: Client) -> None:
    request = asked()
    with ThreadPoolExecutor(1) as pool:
        with vifd.helper_stopped():
            answer = pool.submit(client.request_endpoint, request)
            wait_for(lambda: state_of(client, request.endpoint_id) == "PENDING")
            with refusal("ALREADY_EXISTS", "ID_IN_USE"):
                make(client, request.endpoint_id, acceptable=[BRIDGE])
        assert answer.result().endpoint.state == EndpointState.ENDPOINT_STATE_READY


def test_different_requests_at_once_are_all_made(vifd: Daemon, client: Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        endpoints = list(pool.map(lambda _: make(client), range(64)))
    assert len({endpoint.generation for endpoint in endpoints}) == 64
    assert {tap["ifname"] for tap in taps(vifd.netns)} == {endpoint.tap.ifname for endpoint in endpoints}


def test_a_client_that_goes_away_in_the_middle_finds_its_endpoint_when_it_asks_again(vifd: Daemon, client: Client) -> None:
    request = asked()
    with vifd.helper_stopped():
        with pytest.raises(DeadlineExceeded):
            client.request_endpoint(request, timeout_s=0.3)
        assert state_of(client, request.endpoint_id) == "PENDING"
    wait_for(lambda: state_of(client, request.endpoint_id) == "READY")
    (found,) = client.list_endpoints()
    assert client.request_endpoint(request).endpoint == found
    assert [tap["ifname"] for tap in taps(vifd.netns)] == [found.tap.ifname]


def test_a_client_that_goes_away_in_the_middle_of_a_release_finds_it_done(vifd: Daemon, client: Client) -> None:
    endpoint_id = make(client).endpoint_id
    with vifd.helper_stopped(), pytest.raises(DeadlineExceeded):
        client.release_endpoint(endpoint_id, timeout_s=0.3)
    client.release_endpoint(endpoint_id)
    assert taps(vifd.netns) == []


def test_a_device_of_somebody_elses_under_the_taps_name_is_left_alone(vifd: Daemon, client: Client) -> None:
    endpoint = make(client)
    client.release_endpoint(endpoint.endpoint_id)
    kernel.make_tap(vifd.netns, endpoint.tap.ifname)
    try:
        before = kernel.snapshot(vifd.netns)
        with refusal("INTERNAL", "KERNEL") as caught:
            make(client, endpoint.endpoint_id)
        assert caught.value.metadata == {"operation": "CreateTap", "device": endpoint.tap.ifname, "errno": "16"}
        assert list(client.list_endpoints()) == []
        assert kernel.snapshot(vifd.netns) == before
    finally:
        kernel.run(vifd.netns, "link", "delete", endpoint.tap.ifname)
