import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.messages import ID
from vifd.kernel import ops
from vifd.model import Limits, MacvtapMode, Port, RateLimit, Vlan

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBER = st.integers(-(2**63), 2**64 - 1)
LIMITS = st.builds(Limits, *[st.builds(RateLimit, NUMBER, NUMBER, NUMBER)] * 2)
VLANS = st.builds(Vlan, NUMBER, st.lists(NUMBER, max_size=3).map(tuple), NUMBER)
PORTS = st.builds(
    Port, TEXT, NUMBER, st.lists(TEXT, max_size=3).map(tuple), st.none() | VLANS, st.none() | st.booleans(), st.none() | LIMITS
)
OPERATIONS = (
    st.builds(ops.EnsureBridge, TEXT)
    | st.builds(ops.CreateTap, TEXT, TEXT, TEXT, NUMBER, st.none() | NUMBER, NUMBER, vnet_hdr=st.booleans())
    | st.builds(ops.CreateMacvtap, TEXT, TEXT, TEXT, TEXT, st.sampled_from(MacvtapMode))
    | st.builds(ops.EnsureVlan, TEXT, NUMBER)
    | st.builds(ops.EnsureNode, TEXT, TEXT, NUMBER, st.none() | NUMBER)
    | st.builds(ops.EnsureOwner, TEXT, TEXT, NUMBER, st.none() | NUMBER)
    | st.builds(ops.ConfigurePort, TEXT, TEXT, TEXT, PORTS)
    | st.builds(ops.ChangePort, TEXT, TEXT, TEXT, TEXT, st.none() | PORTS, PORTS)
)
PLANS = st.lists(OPERATIONS, max_size=4).map(tuple)
MADE = st.builds(ops.Made, NUMBER, NUMBER, TEXT, TEXT)
REFUSALS = st.builds(ops.Refusal, NUMBER, TEXT, TEXT, NUMBER, TEXT, TEXT)
DEVICES = st.builds(ops.Device, TEXT, NUMBER, TEXT, TEXT, NUMBER, NUMBER, TEXT, up=st.booleans(), carrier=st.booleans())


@given(st.lists(st.lists(PLANS, max_size=3).map(tuple), max_size=3).map(tuple))
def test_what_is_to_be_made_crosses_as_it_is(groups: tuple[ops.Group, ...]) -> None:
    assert ops.decode_apply(ops.encode(ops.ApplyRequest(groups))).groups == groups


@given(st.lists(PLANS, max_size=5).map(tuple))
def test_what_is_to_be_deleted_crosses_as_it_is(plans: tuple[ops.Plan, ...]) -> None:
    assert ops.decode_revert(ops.encode(ops.RevertRequest(plans))).plans == plans


@given(st.lists(st.lists(MADE, max_size=3) | REFUSALS, max_size=4))
def test_what_was_made_crosses_as_it_is(answer: ops.ApplyAnswer) -> None:
    assert ops.decode_apply_answer(ops.encode(answer)) == answer


@given(st.lists(st.none() | REFUSALS, max_size=4))
def test_what_was_deleted_crosses_as_it_is(answer: ops.RevertAnswer) -> None:
    assert ops.decode_revert_answer(ops.encode(answer)) == answer


@given(st.lists(DEVICES, max_size=3))
def test_what_there_is_crosses_as_it_is(devices: list[ops.Device]) -> None:
    assert ops.decode_devices(ops.encode(devices)) == devices


@given(st.binary(max_size=100))
def test_no_bytes_make_anything_but_plans_or_an_error(data: bytes) -> None:
    for decode in (ops.decode_apply, ops.decode_revert):
        try:
            found = decode(data)
        except msgspec.DecodeError:
            continue
        assert isinstance(found, ops.ApplyRequest | ops.RevertRequest)


@pytest.mark.parametrize(
    "operation",
    [
        {"type": "ensure_bridge"},
        {"type": "ensure_bridge", "network": 1},
        {"type": "ensure_bridge", "network": "blue", "bridge": "eth0"},
        {"type": "run", "argv": ["/bin/sh"]},
        {"network": "blue"},
        {"type": "create_macvtap", "endpoint_id": ID, "ifname": "vdm", "network": "lan", "mac": "02:00:00:00:00:01", "mode": "x"},
        {"type": "configure_port", "endpoint_id": ID, "ifname": "x", "network": "blue", "port": {"mtu_bytes": "1500"}},
        "ensure_bridge",
        None,
    ],
)
def test_an_operation_of_another_form_is_an_error(operation: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        ops.decode_apply(msgspec.msgpack.encode({"groups": [[[operation]]]}))


FULL = Port(
    mac="52:54:00:12:34:56",
    mtu_bytes=9000,
    addresses=("10.0.0.7",),
    vlan=Vlan(7),
    guard_enabled=True,
    limits=Limits(RateLimit(1000, 0, 5), RateLimit(0, 0, 9)),
    isolated=True,
    link_up=True,
    tx_queue_length=3,
)


def test_a_plan_is_described_line_by_line() -> None:
    plan = (
        ops.EnsureBridge("blue"),
        ops.CreateTap(ID, "vdtz5geomx5ho", "fe:54:00:12:34:56", 1000, 36, 2, vnet_hdr=True),
        ops.ConfigurePort(ID, "vdtz5geomx5ho", "blue", FULL),
        ops.ConfigurePort(ID, "vdtz5geomx5ho", "blue", Port()),
        ops.ChangePort(ID, "vdtz5geomx5ho", "blue", "fe:54:00:12:34:56", None, Port(link_up=False)),
    )
    assert ops.describe(plan) == (
        "make sure that the bridge of network blue is there",
        "make tap vdtz5geomx5ho for uid 1000 and gid 36, 2 queue(s), host-side MAC fe:54:00:12:34:56",
        (
            "put vdtz5geomx5ho on network blue with MTU 9000, a guard for 52:54:00:12:34:56, 10.0.0.7, VLAN 7, "
            "1000 bit/s and 5 frames/s from the VM, 9 frames/s to the VM, isolation, a queue of 3, link up"
        ),
        "put vdtz5geomx5ho on network blue with the network's MTU, link up",
        "change vdtz5geomx5ho on network blue to the network's MTU, link down",
    )


def test_a_macvtap_and_its_node_are_described() -> None:
    assert str(ops.EnsureVlan("lan", 7)) == "make sure that the uplink of network lan has a device for VLAN 7"
    plan = (
        ops.CreateMacvtap(ID, "vdm", "lan", "52:54:00:12:34:56", MacvtapMode.VEPA),
        ops.EnsureNode(ID, "vdm", 1000, 36),
        ops.EnsureNode(ID, "vdm", 1000, None),
    )
    assert ops.describe(plan) == (
        "make macvtap vdm on the uplink of network lan, mode vepa, MAC 52:54:00:12:34:56",
        "make sure that vdm has a device node for uid 1000 and gid 36",
        "make sure that vdm has a device node for uid 1000",
    )


def test_a_tap_without_a_group_is_described_without_one() -> None:
    tap = ops.CreateTap(ID, "vdt", "fe:54:00:12:34:56", 1000, None, 1, vnet_hdr=True)
    assert str(tap) == "make tap vdt for uid 1000, 1 queue(s), host-side MAC fe:54:00:12:34:56"
