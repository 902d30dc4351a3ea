"""Bad input: each gets its status with a sentence that says what to do, and the kernel stays exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import Message

from tests.functional.conftest import ALICE, BOB
from tests.support import kernel
from tests.support.asking import BATCH, BRIDGE, TAP, asked, make, new_id, refusal
from tests.support.daemon import Daemon, ip, taps
from vifclient import Client
from vifclient.messages import (
    EndpointPreference,
    Instance,
    MacvtapPreference,
    Owner,
    PciPreference,
    PortSpec,
    ReleaseEndpointRequest,
    TapPreference,
    VhostUserPreference,
    VlanSpec,
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

MALFORMED: dict[str, tuple[str, dict[str, Any]]] = {
    "no id": ("endpoint_id", {}),
    "an upper-case id": ("endpoint_id", {"endpoint_id": "6F9619FF-8B86-4D01-B42D-00CF4FC964FF"}),
    "an id in braces": ("endpoint_id", {"endpoint_id": "{6f9619ff-8b86-4d01-b42d-00cf4fc964ff}"}),
    "an id without dashes": ("endpoint_id", {"endpoint_id": "6f9619ff8b864d01b42d00cf4fc964ff"}),
    "the nil id": ("endpoint_id", {"endpoint_id": "00000000-0000-0000-0000-000000000000"}),
    "an id with a newline": ("endpoint_id", {"endpoint_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff\n"}),
    "an id with NUL": ("endpoint_id", {"endpoint_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964f\0"}),
    "an id with a path": ("endpoint_id", {"endpoint_id": "../../etc/passwd"}),
    "an id with %d": ("endpoint_id", {"endpoint_id": "6f9619ff-8b86-4d01-b42d-00cf4fc96%d"}),
    "an id of other digits": ("endpoint_id", {"endpoint_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964f\u0663"}),
    "no network": ("network", {"network": ""}),
    "a network with ../": ("network", {"network": "../blue"}),
    "a network with NUL": ("network", {"network": "blue\0"}),
    "a network with %d": ("network", {"network": "blue%d"}),
    "an upper-case network": ("network", {"network": "BLUE"}),
    "a network of 64 characters": ("network", {"network": "b" * 64}),
    "nothing acceptable": ("acceptable", {"acceptable": []}),
    "a preference without a kind": ("acceptable[1]", {"acceptable": [TAP, EndpointPreference()]}),
    "the same kind twice": ("acceptable[1]", {"acceptable": [TAP, EndpointPreference(tap=TapPreference(queues=2))]}),
    "257 queues": ("acceptable[0].tap.queues", {"acceptable": [EndpointPreference(tap=TapPreference(queues=257))]}),
    "an unknown macvtap mode": (
        "acceptable[0].macvtap.mode",
        {"acceptable": [EndpointPreference(macvtap=MacvtapPreference(mode=99))]},
    ),
    "an unknown PCI driver": (
        "acceptable[1].pci.host_driver",
        {"acceptable": [TAP, EndpointPreference(pci=PciPreference(host_driver=99))]},
    ),
    "an unknown vhost-user role": (
        "acceptable[0].vhost_user.hypervisor_role",
        {"acceptable": [EndpointPreference(vhost_user=VhostUserPreference(hypervisor_role=-1))]},
    ),
    "a multicast MAC": ("port.mac", {"port": PortSpec(mac="01:00:5e:00:00:01")}),
    "a broadcast MAC": ("port.mac", {"port": PortSpec(mac="ff:ff:ff:ff:ff:ff")}),
    "a zero MAC": ("port.mac", {"port": PortSpec(mac="00:00:00:00:00:00")}),
    "a short MAC": ("port.mac", {"port": PortSpec(mac="52:54:00:12:34")}),
    "a MAC with dashes": ("port.mac", {"port": PortSpec(mac="52-54-00-12-34-56")}),
    "an MTU of 67": ("port.mtu_bytes", {"port": PortSpec(mtu_bytes=67)}),
    "an MTU of 65536": ("port.mtu_bytes", {"port": PortSpec(mtu_bytes=65536)}),
    "an MTU of 2^32-1": ("port.mtu_bytes", {"port": PortSpec(mtu_bytes=TOO_LARGE_ID)}),
    "no address": ("port.addresses[1]", {"port": PortSpec(addresses=["10.0.0.1", "10.0.0.256"])}),
    "65 addresses": ("port.addresses", {"port": PortSpec(addresses=[f"10.91.0.{n}" for n in range(2, 67)])}),
    "VLAN 4095": ("port.vlan.vid", {"port": PortSpec(vlan=VlanSpec(vid=4095))}),
    "an empty VLAN": ("port.vlan", {"port": PortSpec(vlan=VlanSpec())}),
    "a VLAN and a trunk": ("port.vlan", {"port": PortSpec(vlan=VlanSpec(vid=1, trunk_vids=[2]))}),
    "a VLAN twice": ("port.vlan.trunk_vids", {"port": PortSpec(vlan=VlanSpec(trunk_vids=[2, 2]))}),
    "an instance that is no UUID": ("instance.uuid", {"instance": Instance(uuid="../vm")}),
    "an instance's name of 256 bytes": ("instance.name", {"instance": Instance(name="é" * 128)}),
    "an instance's name with NUL": ("instance.name", {"instance": Instance(name="vm\0")}),
    "an instance's name of several lines": ("instance.name", {"instance": Instance(name="vm\nroot")}),
    "a label of 64 KiB": ("labels['a']", {"labels": {"a": LONG}}),
    "a label's key of 64 KiB": (f"labels['{LONG[:63]}']", {"labels": {LONG: "a"}}),
    "a label without a key": ("labels['']", {"labels": {"": "a"}}),
    "a label's key with %": ("labels['%d']", {"labels": {"%d": "a"}}),
    "a label with NUL": ("labels['a']", {"labels": {"a": "\0"}}),
    "33 labels": ("labels", {"labels": {str(i): "" for i in range(33)}}),
    "an owner that is nobody": ("owner.uid", {"owner": Owner(uid=TOO_LARGE_ID)}),
    "a group that is none": ("owner.gid", {"owner": Owner(gid=TOO_LARGE_ID)}),
    "a port id with spaces": ("port_id", {"port_id": "a b"}),
    "a port id of 256 characters": ("port_id", {"port_id": "x" * 256}),
}


@pytest.fixture(autouse=True)
def _kernel_unchanged(vifd: Daemon, client: Client) -> Iterator[None]:
    """What a test makes on purpose, it releases; all else is as before."""
    before = kernel.snapshot(vifd.netns)
    yield
    assert list(client.list_endpoints()) == []
    assert kernel.snapshot(vifd.netns) == before


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_field_is_named(as_alice: Client, case: str) -> None:
    field, fields = MALFORMED[case]
    request = asked(**fields)
    if case == "no id":
        request.endpoint_id = ""
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        as_alice.request_endpoint(request)
    assert [name for name, _ in caught.value.violations] == [field]


@pytest.mark.parametrize("case", ["a multicast MAC", "an id with NUL", "a label of 64 KiB", "an MTU of 67"])
def test_a_malformed_field_in_a_batch_is_named_with_its_request(as_alice: Client, case: str) -> None:
    field, fields = MALFORMED[case]
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        as_alice.batch_request_endpoints([asked(), asked(**fields)])
    assert [name for name, _ in caught.value.violations] == [f"requests[1].{field}"]


def test_every_violation_is_told_at_once(as_alice: Client) -> None:
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        as_alice.request_endpoint(asked("x", network="", port=PortSpec(mac="zz", mtu_bytes=1), labels={"%": ""}))
    fields = {name for name, _ in caught.value.violations}
    assert fields == {"endpoint_id", "network", "port.mac", "port.mtu_bytes", "labels['%']"}


def test_a_thousand_violations_still_fit_in_an_answer(as_alice: Client) -> None:
    labels = {f"{'😀' * 60}{i:02}": "x" * 300 for i in range(32)}
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD") as caught:
        as_alice.batch_request_endpoints([asked("x", labels=labels) for _ in range(BATCH)])
    assert caught.value.violations


@pytest.mark.parametrize("request_count", [0, BATCH + 1])
def test_a_batch_has_1_to_64_requests(as_alice: Client, request_count: int) -> None:
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.batch_request_endpoints([asked() for _ in range(request_count)])
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.batch_release_endpoints([ReleaseEndpointRequest(endpoint_id=new_id()) for _ in range(request_count)])


def test_an_id_twice_in_a_batch_is_refused(as_alice: Client) -> None:
    one = asked()
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.batch_request_endpoints([one, asked(), one])
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.batch_release_endpoints([ReleaseEndpointRequest(endpoint_id=one.endpoint_id)] * 2)


def test_a_batch_is_validated_as_a_whole_or_not_at_all(as_alice: Client) -> None:
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.batch_request_endpoints([asked(), asked(validate_only=True)])


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


def newer(message: Message) -> Any:
    """A message of a newer contract, with a field that this one doesn't have."""
    return type(message).FromString(message.SerializeToString() + b"\xa2\x7d\x01x")


def test_a_field_of_a_newer_contract_is_refused_wherever_it_stands(as_alice: Client) -> None:
    preference = newer(EndpointPreference(tap=newer(TapPreference())))
    for request in (newer(asked()), asked(port=newer(PortSpec())), asked(acceptable=[preference])):
        with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
            as_alice.request_endpoint(request)
        with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
            as_alice.batch_request_endpoints([request])
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.batch_release_endpoints([newer(ReleaseEndpointRequest(endpoint_id=new_id()))])


def test_a_kind_of_a_newer_contract_is_refused(as_alice: Client) -> None:
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        as_alice.request_endpoint(asked(acceptable=[newer(EndpointPreference()), TAP]))


def test_an_unknown_network_is_not_found(as_alice: Client) -> None:
    with refusal("NOT_FOUND", "UNKNOWN_NETWORK"):
        make(as_alice, network="green")
    with refusal("NOT_FOUND", "UNKNOWN_NETWORK"):
        as_alice.batch_request_endpoints([asked(), asked(network="green")])


def test_an_owner_that_is_not_the_callers_to_name_is_refused(as_alice: Client) -> None:
    for owner in (Owner(uid=BOB), Owner(uid=0), Owner(uid=ALICE, gid=0), Owner(gid=BOB)):
        with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
            make(as_alice, owner=owner)


def test_an_id_in_use_with_another_spec_is_refused(vifd: Daemon, as_alice: Client) -> None:
    request = asked(labels={"a": "1"})
    endpoint = as_alice.request_endpoint(request).endpoint
    others = [
        asked(request.endpoint_id),
        asked(request.endpoint_id, labels={"a": "2"}),
        asked(request.endpoint_id, labels={"a": "1"}, acceptable=[BRIDGE, TAP]),
        asked(request.endpoint_id, labels={"a": "1"}, network="foreign"),
    ]
    for other in others:
        with refusal("ALREADY_EXISTS", "ID_IN_USE"):
            as_alice.request_endpoint(other)
    assert [tap["ifname"] for tap in taps(vifd.netns)] == [endpoint.tap.ifname]
    as_alice.release_endpoint(request.endpoint_id)


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
