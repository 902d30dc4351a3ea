"""A tap that its holder gave away is given back, and nothing else of it, nor of any other device, changes with that."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import kernel
from tests.support.asking import new_id
from tests.support.daemon import ip, network_namespace, taps
from tests.support.plans import configure
from vifd.kernel import limits, names, ops, owner, tap
from vifd.kernel.authority import BridgeGrant
from vifd.kernel.executor import Executor, Tools
from vifd.kernel.marks import look_up
from vifd.kernel.netlink import Link, RtnlSocket
from vifd.kernel.nft.devices import open_guards
from vifd.kernel.nft.nat import NoNatTable
from vifd.model import Kind

_TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP, _TUNSETQUEUE = 0x400454CB, 0x400454CC, 0x400454CE, 0x400454D9
ONE, ANOTHER = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff", "9c5b94b1-35ad-49bb-b118-8e8fc24abf80"
TAP = names.device_name(Kind.TAP, ONE)
OWNER = ops.EnsureOwner(ONE, TAP, 1000, None)
#: How a tap may be opened: as vifd makes it, and as nobody but its owner would.
FORMS = [{"vnet_hdr": vnet_hdr, "multi_queue": many} for vnet_hdr in (True, False) for many in (True, False)]


@pytest.fixture
def netns() -> Iterator[str]:
    with network_namespace() as name:
        yield name


@pytest.fixture
def rtnl(netns: str) -> Iterator[RtnlSocket]:
    one = kernel.inside(netns, RtnlSocket)
    yield one
    one.close()


def make(netns: str, *, uid: int = 4242, gid: int | None = None, mark: str = ONE, ifname: str = TAP, **form: bool) -> None:
    """Make a marked tap that is somebody else's."""
    fd = kernel.open_tap(netns, ifname, **form)
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    fcntl.ioctl(fd, _TUNSETOWNER, uid)
    if gid is not None:
        fcntl.ioctl(fd, _TUNSETGROUP, gid)
    os.close(fd)
    kernel.run(netns, "link", "set", ifname, "up", "alias", names.mark(mark))


def shown(netns: str, ifname: str = TAP) -> tuple[Any, dict[str, Any]]:
    """What of a tap isn't its owner's to say, and what is; as `ip` shows it."""
    link = ip(netns, "link", "show", ifname)[0]
    data = link["linkinfo"].pop("info_data")
    owners = {key: data.pop(key) for key in ("user", "group") if key in data}
    return (link["ifindex"], link["flags"], link["address"], data), owners


def find(rtnl: RtnlSocket) -> Link:
    link = look_up(rtnl, [ONE])[0].link
    assert link is not None
    return link


def give_back(netns: str, rtnl: RtnlSocket, link: Link | None = None, op: ops.EnsureOwner = OWNER) -> str:
    """Give a tap back; why not, if not."""
    failure = kernel.inside(netns, lambda: owner.ensure(rtnl, op) if link is None else owner.give_back(rtnl, link, op))
    return "" if failure is None else failure.message


@pytest.mark.parametrize("form", FORMS)
def test_it_is_given_back_and_else_as_it_was(netns: str, rtnl: RtnlSocket, form: dict[str, bool]) -> None:
    make(netns, **form)
    before, owners = shown(netns)
    assert owners == {"user": 4242}
    assert give_back(netns, rtnl) == ""
    assert shown(netns)[0] == before
    assert owner.owner_of(find(rtnl)) == (1000, owner.NOBODY)


def test_its_group_is_given_back(netns: str, rtnl: RtnlSocket) -> None:
    make(netns, gid=4242)
    assert give_back(netns, rtnl, op=ops.EnsureOwner(ONE, TAP, 1000, 1001)) == ""
    assert owner.owner_of(find(rtnl)) == (1000, 1001)


def test_a_group_that_cant_be_taken_off_is_told(netns: str, rtnl: RtnlSocket) -> None:
    make(netns, gid=4242)
    assert "takes no group off" in give_back(netns, rtnl)
    assert owner.owner_of(find(rtnl)) == (1000, 4242)


@contextlib.contextmanager
def held(netns: str, **form: bool) -> Iterator[int]:
    fd = kernel.open_tap(netns, TAP, **form)
    try:
        yield fd
    finally:
        os.close(fd)


def test_its_only_queue_that_is_held_keeps_it_from_being_given_back(netns: str, rtnl: RtnlSocket) -> None:
    make(netns)
    with held(netns):
        before = shown(netns)
        assert "its only queue is held" in give_back(netns, rtnl)
        assert shown(netns) == before
    assert give_back(netns, rtnl) == ""


@pytest.mark.parametrize("detached", [True, False])
def test_of_several_queues_one_more_is_opened_for_the_moment(netns: str, rtnl: RtnlSocket, *, detached: bool) -> None:
    make(netns, multi_queue=True)
    with held(netns, multi_queue=True), held(netns, multi_queue=True) as second:
        if detached:
            fcntl.ioctl(second, _TUNSETQUEUE, b"\0" * 16 + b"\x00\x04" + b"\0" * 22)  # IFF_DETACH_QUEUE
        before, _ = shown(netns)
        assert (before[3]["numqueues"], before[3]["numdisabled"]) == ((1, 1) if detached else (2, 0))
        assert give_back(netns, rtnl) == ""
        assert shown(netns)[0] == before
    assert owner.owner_of(find(rtnl))[0] == 1000


def test_one_that_is_its_owners_is_not_opened(netns: str, rtnl: RtnlSocket) -> None:
    make(netns, uid=1000)
    with held(netns):
        assert give_back(netns, rtnl) == ""


def test_a_mortal_tap_is_no_more_than_it_was(netns: str, rtnl: RtnlSocket) -> None:
    make(netns, multi_queue=True)
    with held(netns, multi_queue=True) as fd:
        fcntl.ioctl(fd, _TUNSETPERSIST, 0)
        assert give_back(netns, rtnl) == ""
        assert [one["ifname"] for one in taps(netns)] == [TAP]
    assert taps(netns) == []


# --- what happens between the look and the opening


def test_a_tap_that_went_away_is_not_made_anew(netns: str, rtnl: RtnlSocket) -> None:
    make(netns)
    link = find(rtnl)
    kernel.run(netns, "link", "delete", TAP)
    assert give_back(netns, rtnl, link) == f"the tap of endpoint {ONE} is gone"
    assert taps(netns) == []


@pytest.mark.parametrize("mark", [ONE, ANOTHER])
def test_another_tap_that_has_its_name_by_now_is_left_alone(netns: str, rtnl: RtnlSocket, mark: str) -> None:
    make(netns)
    link = find(rtnl)
    kernel.run(netns, "link", "delete", TAP)
    make(netns, mark=mark)
    before = shown(netns)
    assert give_back(netns, rtnl, link) == f"the tap of endpoint {ONE} is gone"
    assert shown(netns) == before


def test_two_taps_that_changed_names_are_told_apart(netns: str, rtnl: RtnlSocket) -> None:
    make(netns)
    make(netns, mark=new_id(), ifname="other0")
    link = find(rtnl)
    for before, after in ((TAP, "moved0"), ("other0", TAP)):
        kernel.run(netns, "link", "set", before, "name", after)
    untouched = shown(netns, "moved0"), shown(netns)
    assert give_back(netns, rtnl, link) == f"the tap of endpoint {ONE} is gone"
    assert (shown(netns, "moved0"), shown(netns)) == untouched


def test_a_device_of_another_kind_that_has_its_name_by_now_is_left_alone(netns: str, rtnl: RtnlSocket) -> None:
    make(netns)
    link = find(rtnl)
    kernel.run(netns, "link", "delete", TAP)
    kernel.run(netns, "link", "add", TAP, "type", "bridge")
    assert "it can't be opened" in give_back(netns, rtnl, link)
    assert ip(netns, "link", "show", TAP)[0]["linkinfo"]["info_kind"] == "bridge"


@pytest.mark.parametrize("queues", [1, 2])
def test_a_tap_that_somebody_opened_before_it_had_an_owner_is_not_made(
    netns: str, monkeypatch: pytest.MonkeyPatch, queues: int
) -> None:
    """Between the two steps that make a tap, anybody may open one that takes several."""
    opened: list[int] = []
    set_owner = tap.set_owner

    def set_owner_late(fd: int, *, uid: int, gid: int | None) -> None:
        with contextlib.suppress(OSError):
            opened.append(tap.open_queue(TAP, multi_queue=queues > 1, vnet_hdr=True))
        set_owner(fd, uid=uid, gid=gid)

    def make_one() -> ops.ApplyAnswer:
        plan = (ops.EnsureBridge("blue"), ops.CreateTap(ONE, TAP, "fe:54:00:12:34:56", 1000, None, queues, True), configure(ONE))
        with an_executor() as executor:
            monkeypatch.setattr(tap, "set_owner", set_owner_late)
            return executor.apply(((plan,),))

    (answer,) = kernel.inside(netns, make_one)
    assert isinstance(answer, ops.Refusal) is bool(opened) is (queues > 1)
    for fd in opened:
        os.close(fd)
    assert len(taps(netns)) == (0 if queues > 1 else 1)


@contextlib.contextmanager
def an_executor() -> Iterator[Executor]:
    """What the helper carries plans out with, in this process, without NAT and macvtaps."""
    rtnl = RtnlSocket()
    guards, nothing = open_guards(owned=False, direct=False), "nothing of that here"
    tools = Tools(guards, NoNatTable(), limits.probe(rtnl), nothing, None, nothing, nothing)
    rtnl.close()
    executor = Executor(lambda: {"blue": BridgeGrant("br-blue")}, tools)
    try:
        yield executor
    finally:
        executor._rtnl.close()
        tools.close()
