import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.messages import ID
from vifd.kernel import ops

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBER = st.integers(-(2**63), 2**64 - 1)
OPERATIONS = (
    st.builds(ops.EnsureBridge, TEXT)
    | st.builds(ops.CreateTap, TEXT, TEXT, TEXT, NUMBER, st.none() | NUMBER, NUMBER, vnet_hdr=st.booleans())
    | st.builds(ops.AttachPort, TEXT, TEXT, NUMBER)
)
PLANS = st.lists(OPERATIONS, max_size=4).map(tuple)
MADE = st.builds(ops.Made, NUMBER, NUMBER, TEXT)
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
        {"type": "attach_port", "ifname": "x", "network": "blue", "mtu_bytes": "1500"},
        "ensure_bridge",
        None,
    ],
)
def test_an_operation_of_another_form_is_an_error(operation: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        ops.decode_apply(msgspec.msgpack.encode({"groups": [[[operation]]]}))


def test_a_plan_is_described_line_by_line() -> None:
    plan = (
        ops.EnsureBridge("blue"),
        ops.CreateTap(ID, "vdtz5geomx5ho", "fe:54:00:12:34:56", 1000, 36, 2, vnet_hdr=True),
        ops.AttachPort("vdtz5geomx5ho", "blue", 9000),
        ops.AttachPort("vdtz5geomx5ho", "blue", 0),
    )
    assert ops.describe(plan) == (
        "make sure that the bridge of network blue is there",
        "make tap vdtz5geomx5ho for uid 1000 and gid 36, 2 queue(s), host-side MAC fe:54:00:12:34:56",
        "put vdtz5geomx5ho on the bridge of network blue with MTU 9000 and set it up",
        "put vdtz5geomx5ho on the bridge of network blue with the bridge's MTU and set it up",
    )


def test_a_tap_without_a_group_is_described_without_one() -> None:
    tap = ops.CreateTap(ID, "vdt", "fe:54:00:12:34:56", 1000, None, 1, vnet_hdr=True)
    assert str(tap) == "make tap vdt for uid 1000, 1 queue(s), host-side MAC fe:54:00:12:34:56"
