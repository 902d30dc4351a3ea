"""Who owns the front process still can't touch what isn't vifd's: the helper believes nothing that it is sent."""

from __future__ import annotations

import contextlib
import inspect
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import kernel
from tests.support.asking import new_id
from tests.support.daemon import network_namespace, taps
from tests.support.owner import RAISED, RETURNED, OwnedFront
from tests.support.plans import configure
from vifd.kernel import helper, names, ops
from vifd.kernel.ops import ConfigurePort, CreateMacvtap, CreateTap, EnsureBridge, EnsureNode, EnsureOwner, Plan, Refusal
from vifd.model import Kind, MacvtapMode

ENTRY_POINTS = {"announce", "apply", "check", "restore_guard", "revert", "inspect", "open_queues", "reload"}
ONE = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
ANOTHER = "9c5b94b1-35ad-49bb-b118-8e8fc24abf80"
BLUE = EnsureBridge("blue")


def tap(endpoint_id: str = ONE, **changed: Any) -> CreateTap:
    fields = {
        "endpoint_id": endpoint_id,
        "ifname": names.device_name(Kind.TAP, endpoint_id),
        "mac": "fe:54:00:12:34:56",
        "owner_uid": 20001,
        "owner_gid": None,
        "queues": 1,
        "vnet_hdr": True,
    }
    return CreateTap(**(fields | changed))


def port(endpoint_id: str = ONE, network: str = "blue", **fields: Any) -> ConfigurePort:
    return configure(endpoint_id, network, **fields)


def macvtap(endpoint_id: str = ONE, *, network: str = "blue") -> CreateMacvtap:
    ifname = names.device_name(Kind.MACVTAP, endpoint_id)
    return CreateMacvtap(endpoint_id, ifname, network, "52:54:00:12:34:56", MacvtapMode.BRIDGE)


def node(endpoint_id: str = ONE, *, ifname: str = "") -> EnsureNode:
    return EnsureNode(endpoint_id, ifname or names.device_name(Kind.MACVTAP, endpoint_id), 20001, None)


def owner(endpoint_id: str = ONE, uid: int = 20002, gid: int | None = None, *, ifname: str = "") -> EnsureOwner:
    return EnsureOwner(endpoint_id, ifname or names.device_name(Kind.TAP, endpoint_id), uid, gid)


HOSTILE: dict[str, Plan] = {
    "a foreign device to be made": (BLUE, tap(ifname="eth0")),
    "another endpoint's name": (BLUE, tap(ifname=names.device_name(Kind.TAP, new_id()))),
    "a bridge's name": (BLUE, tap(ifname="br-blue")),
    "a name with %d": (BLUE, tap(ifname="vdt%d")),
    "a name with a path": (BLUE, tap(ifname="../vdt")),
    "an id that is none": (BLUE, tap("../../etc")),
    "an id with NUL": (BLUE, tap(f"{ONE}\0")),
    "a foreign device to be enslaved": (BLUE, configure(ONE, ifname="eth0")),
    "a foreign device to be enslaved beside an own one": (BLUE, tap(), configure(ONE, ifname="eth0")),
    "lo to be enslaved": (BLUE, tap(), configure(ONE, ifname="lo")),
    "an existing bridge to be enslaved": (BLUE, tap(), configure(ONE, ifname="br-red")),
    "an unknown network": (EnsureBridge("green"), tap(), port(network="green")),
    "a bridge in the place of a network": (EnsureBridge("br-blue"), tap(), port(network="br-blue")),
    "two networks": (BLUE, tap(), port(network="red")),
    "an MTU of 2^32-1": (BLUE, tap(), port(mtu_bytes=0xFFFFFFFF)),
    "an MTU of 67": (BLUE, tap(), port(mtu_bytes=67)),
    "a negative MTU": (BLUE, tap(), port(mtu_bytes=-1)),
    "an MTU that the bridge can't carry": (BLUE, tap(), port(mtu_bytes=9000)),
    "the uid of nobody at all": (BLUE, tap(owner_uid=(1 << 32) - 1)),
    "a negative uid": (BLUE, tap(owner_uid=-1)),
    "a uid of 2^64": (BLUE, tap(owner_uid=1 << 63)),
    "the gid of nobody at all": (BLUE, tap(owner_gid=(1 << 32) - 1)),
    "no queue": (BLUE, tap(queues=0)),
    "257 queues": (BLUE, tap(queues=257)),
    "a MAC of a VM's": (BLUE, tap(mac="52:54:00:12:34:56")),
    "a multicast MAC": (BLUE, tap(mac="ff:ff:ff:ff:ff:ff")),
    "a MAC that is too long": (BLUE, tap(mac="fe:54:00:12:34:56:78")),
    "no bridge before its port": (tap(), port()),
    "operations out of order": (tap(), BLUE, port()),
    "a port before its tap": (BLUE, port(), tap()),
    "an operation twice": (BLUE, BLUE, tap(), port()),
    "a macvtap on a bridge": (macvtap(),),
    "a macvtap on a device": (macvtap(network="eth0"),),
    "a node for a macvtap that isn't there": (node(),),
    "a node for a device": (node(ifname="eth0"),),
    "a node outside": (node("../../etc/passwd"),),
    "a node beside a tap": (BLUE, tap(), node(), port()),
    "a foreign device to be given away": (owner(ifname="eth0"),),
    "another endpoint's tap to be given away": (owner(ifname=names.device_name(Kind.TAP, new_id())),),
    "a tap that isn't there to be given away": (owner(),),
    "a tap that isn't there to be root's": (owner(uid=0),),
    "a tap to be given to nobody at all": (owner(uid=(1 << 32) - 1),),
    "a tap to be given to the group of nobody at all": (owner(gid=(1 << 32) - 1),),
    "two taps in a plan": (BLUE, tap(), tap(new_id()), port()),
}


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    """A namespace with devices that are nobody's business."""
    with network_namespace() as name:
        kernel.run(name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        kernel.run(name, "link", "add", "br-red", "address", "02:00:00:00:00:01", "type", "bridge")
        kernel.run(name, "link", "add", "br-blue", "address", "02:00:00:00:00:02", "type", "bridge")
        for ifname in ("eth0", "eth1", "br-red", "br-blue"):
            kernel.run(name, "link", "set", ifname, "addrgenmode", "none", "up")
        yield name


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of Python modules with one that tells when it is imported."""
    directory = tmp_path_factory.mktemp("modules")
    (directory / "tattler.py").write_text(f"open({str(directory / 'imported')!r}, 'w').close()\ndef run(*_): return 'ran'\n")
    return directory


@pytest.fixture(scope="module")
def shared(netns: str, modules: Path) -> Iterator[OwnedFront]:
    with contextlib.closing(OwnedFront(netns, modules)) as one:
        yield one


@pytest.fixture
def front(netns: str, shared: OwnedFront) -> Iterator[OwnedFront]:
    """The owned front process; the kernel is afterwards as it was before."""
    before = kernel.snapshot(netns)
    yield shared
    assert kernel.snapshot(netns) == before
    assert shared.helper_is_alive


def test_the_helper_has_these_entry_points_and_no_others() -> None:
    assert {name for name, _ in inspect.getmembers(helper, helper.context.is_entrypoint)} == ENTRY_POINTS


def test_a_plan_as_vifd_makes_it_is_carried_out_and_taken_back(netns: str, front: OwnedFront) -> None:
    plan = (BLUE, tap(), port())
    ((made,),) = front.apply((plan,))
    assert [(one["ifname"], one["ifindex"]) for one in taps(netns)] == [(tap().ifname, made.ifindex)]
    assert front.revert(plan) == [None]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_plan_takes_no_effect(front: OwnedFront, case: str) -> None:
    (answer,) = front.apply((HOSTILE[case],))
    assert isinstance(answer, Refusal)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_plan_spoils_its_group_and_no_other(netns: str, front: OwnedFront, case: str) -> None:
    good, other = new_id(), new_id()
    answers = front.apply(((BLUE, tap(good), port(good)), HOSTILE[case]), ((BLUE, tap(other), port(other)),))
    assert isinstance(answers[0], Refusal)
    assert (answers[0].plan_index, len(answers[1])) == (1, 1)
    assert [one["ifalias"] for one in taps(netns)] == [f"vifd:{other}"]
    front.revert((tap(other),))


def test_the_same_plan_twice_in_a_group_leaves_nothing(front: OwnedFront) -> None:
    plan = (BLUE, tap(), port())
    (answer,) = front.apply((plan, plan))
    assert isinstance(answer, Refusal)


FOREIGN_TAP = new_id()
OUTSIDE = EnsureBridge("outside")
SPOOFS: dict[str, Plan] = {
    "an endpoint that isn't there": (OUTSIDE, tap(new_id()), port(new_id(), "outside")),
    "a device on another network": (OUTSIDE, tap(), port(network="outside")),
    "another VM's MAC": (OUTSIDE, tap(mac="fe:54:00:00:00:99"), port(network="outside", mac="52:54:00:00:00:99")),
    "a device that has only the name": (OUTSIDE, tap(FOREIGN_TAP), port(FOREIGN_TAP, "outside")),
    "a foreign device": (OUTSIDE, configure(ONE, "outside", ifname="eth0")),
    "a plan that would be refused": HOSTILE["no bridge before its port"],
}


@pytest.fixture
def two_taps(netns: str, front: OwnedFront) -> Iterator[None]:
    """An endpoint's on blue, and one that only has the name of an endpoint's."""
    plan = (BLUE, tap(), port())
    front.apply((plan,))
    ifname = names.device_name(Kind.TAP, FOREIGN_TAP)
    kernel.make_tap(netns, ifname)
    yield
    kernel.run(netns, "link", "delete", ifname)
    front.revert(plan)


@pytest.mark.usefixtures("two_taps")
@pytest.mark.parametrize("case", SPOOFS)
def test_nothing_is_announced_that_isnt_there(netns: str, front: OwnedFront, case: str) -> None:
    with contextlib.closing(kernel.packet_socket(netns, "eth1", 3)) as far_end:
        (answer,) = front.announce(SPOOFS[case])
        assert answer
        assert select.select([far_end], [], [], 0.1)[0] == []


def test_an_endpoint_that_exists_is_not_made_anew(netns: str, front: OwnedFront) -> None:
    plan = (BLUE, tap(), port())
    front.apply((plan,))
    before = kernel.snapshot(netns)
    (answer,) = front.apply(((BLUE, tap(owner_uid=20002), port()),))
    assert isinstance(answer, Refusal)
    assert kernel.snapshot(netns) == before
    front.revert(plan)


@pytest.mark.parametrize(
    "plan",
    [
        (tap(ifname="eth0"),),
        (tap(ifname="br-blue"),),
        (tap("../../etc", ifname="eth0"),),
        (tap(ifname="lo"),),
        (configure(ONE, ifname="eth0"),),
        (BLUE,),
        (),
    ],
)
def test_reverting_what_was_never_made_deletes_nothing(front: OwnedFront, plan: Plan) -> None:
    front.revert(plan)


@pytest.mark.parametrize("alias", ["", "vifd:", f"vifd:{ONE} ", "vifd:network:blue", f"vifd:{ANOTHER}"])
def test_reverting_a_tap_without_the_endpoints_mark_leaves_it(netns: str, front: OwnedFront, alias: str) -> None:
    kernel.make_tap(netns, tap().ifname, alias=alias)
    kernel.run(netns, "link", "property", "add", "dev", tap().ifname, "altname", names.altname(ONE))
    try:
        front.revert((tap(),))
        assert [one["ifname"] for one in taps(netns)] == [tap().ifname]
    finally:
        kernel.run(netns, "link", "delete", tap().ifname)


def test_reverting_a_device_that_is_no_tap_leaves_it_whatever_it_is_called(netns: str, front: OwnedFront) -> None:
    kernel.run(netns, "link", "add", tap().ifname, "type", "veth", "peer", "name", "peer0")
    kernel.run(netns, "link", "set", tap().ifname, "alias", names.mark(ONE))
    kernel.run(netns, "link", "property", "add", "dev", tap().ifname, "altname", names.altname(ONE))
    try:
        front.revert((tap(),))
        front.revert((tap(),), (tap(new_id()),))
        assert kernel.settings(netns, tap().ifname)["ifalias"] == names.mark(ONE)
    finally:
        kernel.run(netns, "link", "delete", tap().ifname)


def test_a_device_of_the_taps_name_is_neither_taken_nor_changed(netns: str, front: OwnedFront) -> None:
    kernel.run(netns, "link", "add", tap().ifname, "type", "veth", "peer", "name", "peer0")
    try:
        before = kernel.snapshot(netns)
        (answer,) = front.apply(((BLUE, tap(), port()),))
        assert isinstance(answer, Refusal)
        assert kernel.snapshot(netns) == before
    finally:
        kernel.run(netns, "link", "delete", tap().ifname)


def test_queues_of_a_foreign_tap_are_not_opened(netns: str, front: OwnedFront) -> None:
    kernel.make_tap(netns, tap().ifname)
    try:
        assert front.call("open_queues", ONE, 1, True, bytes(16)) == 19  # ENODEV
    finally:
        kernel.run(netns, "link", "delete", tap().ifname)


@pytest.mark.parametrize("alias", ["", "vifd:", f"vifd:{ONE} ", "vifd:network:blue", f"vifd:{ANOTHER}"])
@pytest.mark.parametrize("uid", [0, 20002])
def test_a_tap_without_the_endpoints_mark_is_not_given_away(netns: str, front: OwnedFront, alias: str, uid: int) -> None:
    kernel.make_tap(netns, tap().ifname, alias=alias)
    kernel.run(netns, "link", "property", "add", "dev", tap().ifname, "altname", names.altname(ONE))
    try:
        before = kernel.settings(netns, tap().ifname)
        (answer,) = front.apply(((owner(uid=uid, gid=uid),),))
        assert isinstance(answer, Refusal)
        assert kernel.settings(netns, tap().ifname) == before
    finally:
        kernel.run(netns, "link", "delete", tap().ifname)


def test_a_device_that_is_no_tap_is_not_given_away_whatever_it_is_called(netns: str, front: OwnedFront) -> None:
    kernel.run(netns, "link", "add", tap().ifname, "type", "veth", "peer", "name", "peer0")
    kernel.run(netns, "link", "set", tap().ifname, "alias", names.mark(ONE))
    try:
        before = kernel.settings(netns, tap().ifname)
        (answer,) = front.apply(((owner(),),))
        assert isinstance(answer, Refusal)
        assert kernel.settings(netns, tap().ifname) == before
    finally:
        kernel.run(netns, "link", "delete", tap().ifname)


@pytest.mark.parametrize("uid", [0, 20002])
def test_who_owns_the_front_process_gives_away_what_it_could_make_anew_and_nothing_else(
    netns: str, front: OwnedFront, uid: int
) -> None:
    other = new_id()
    front.apply(((BLUE, tap(), port()),), ((BLUE, tap(other), port(other)),))
    before = kernel.settings(netns, tap(other).ifname)
    assert isinstance(front.apply(((owner(uid=uid),),))[0], list)
    assert kernel.settings(netns, tap(other).ifname) == before
    front.revert((tap(),), (tap(other),))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("apply", (b"garbage",)),
        ("apply", (b"\xff" * 4096,)),
        ("apply", (b"",)),
        ("apply", ("eth0",)),
        ("apply", (ops.encode({"groups": [[[{"type": "delete_link", "ifname": "eth0"}]]]}),)),
        ("apply", (ops.encode({"groups": [[[{"type": "ensure_bridge", "network": "blue", "bridge": "br-red"}]]]}),)),
        ("apply", (ops.encode(ops.ApplyRequest((tuple((BLUE, tap(new_id())) for _ in range(10_000)),))),)),
        ("revert", (ops.encode(ops.RevertRequest(tuple((tap(new_id()),) for _ in range(10_000)))),)),
        ("revert", (b"\x81\xa5plans\xdd\xff\xff\xff\xff",)),
        ("inspect", (("x" * 5000,),)),
        ("inspect", (7,)),
        ("open_queues", ("eth0", 1, True, bytes(16))),
        ("open_queues", (ONE, 0, True, bytes(16))),
        ("open_queues", (ONE, 1 << 40, True, bytes(16))),
        ("open_queues", (ONE, 1, True, b"")),
        ("reload", ("/etc/passwd",)),
    ],
)
def test_arguments_that_are_none_are_refused(front: OwnedFront, name: str, arguments: Any) -> None:
    kind, *_ = front.send((f"vifd.kernel.helper.{name}", arguments))
    assert kind == RAISED or (name, kind) == ("inspect", RETURNED)


@pytest.mark.parametrize("name", ["antigravity.fly", "tattler.run", "this.s", "xml.dom.minidom.parse"])
def test_no_module_is_imported_at_a_callers_wish(front: OwnedFront, modules: Path, name: str) -> None:
    kind, error, *_ = front.send((name, ()))
    assert (kind, error) in {(RAISED, "builtins.ImportError"), (RAISED, "builtins.ModuleNotFoundError")}
    assert not (modules / "imported").exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("os.system", ("ip link delete eth0",)),
        ("os._exit", (0,)),
        ("builtins.exec", ("import os",)),
        ("subprocess.run", (("ip", "link", "delete", "eth0"),)),
        ("vifd.kernel.helper.start", ()),
        ("vifd.kernel.helper.stop", ()),
        ("vifd.kernel.helper._get", ()),
        ("vifd.kernel.bridge.ensure", ()),
        ("vifd.kernel.tap.create", ("eth9",)),
        ("vifd.kernel.netlink.delete_link", (1,)),
        ("apply", ()),
        ("", ()),
        ("vifd.kernel.helper.apply.__wrapped__", (b"",)),
    ],
)
def test_what_is_no_entry_point_is_not_called(front: OwnedFront, name: str, arguments: Any) -> None:
    kind, *_ = front.send((name, arguments))
    assert kind == RAISED


@pytest.mark.parametrize("garbage", [b"\xc1", b"\x92\xa1x\x07", b"\xdd\xff\xff\xff\xff" * 100, b"\x93\x01\x02\x03" * 1000])
def test_garbage_on_the_channel_at_worst_ends_the_helper(modules: Path, garbage: bytes) -> None:
    with network_namespace() as netns:
        before = kernel.snapshot(netns)
        with contextlib.closing(OwnedFront(netns, modules)) as owned:
            owned.send(garbage)
        assert kernel.snapshot(netns) == before
