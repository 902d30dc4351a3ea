"""A thousand plans that no vifd would send: none of them takes effect, by the helper's own decoder, check and order of work."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.support.messages import ID, endpoint_id
from tests.support.sriov_host import no_guards
from tests.support.vdpa_host import ELSEWHERE, FIRST, SECOND, FakeVdpaHost
from vifd.kernel import names, ops
from vifd.kernel.authority import BridgeGrant, FunctionGrant, VdpaGrant
from vifd.kernel.direct import Macvtaps
from vifd.kernel.limits import Support
from vifd.kernel.making import Devices, Maker
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.nft.nat import NoNatTable
from vifd.kernel.ops import BindVdpa, ClaimFunction, CreateTap, CreateVdpa, EnsureBridge, Made, Plan, Refusal
from vifd.kernel.publics import Publics
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.vdpa.devices import VdpaDevices
from vifd.kernel.vdpa.netlink import NetConfig
from vifd.model import Kind, Limits, LimitsMechanism, Port, RateLimit, Vlan

NEIGHBOUR = endpoint_id(7)
NAME, THEIRS, FOREIGN = (names.device_name(Kind.VDPA, one) for one in (ID, NEIGHBOUR, endpoint_id(8)))
AUTHORITY = {
    "net": VdpaGrant((FIRST, SECOND), mtu_bytes=1500),
    "pci": FunctionGrant(("eth0",)),
    "blue": BridgeGrant("br-blue"),
}
PORT = Port("52:54:00:12:34:56")
PLAN: Plan = (CreateVdpa(ID, NAME, "net", names.place(FIRST, 0), PORT, 1), BindVdpa(ID, NAME, "net", 1000))
#: These are hostile as they are: the device isn't this endpoint's, or isn't there.
NOT_THEIRS: tuple[Plan, ...] = (
    (BindVdpa(ID, NAME, "net", 1000),),
    (BindVdpa(ID, THEIRS, "net", 1000),),
    (BindVdpa(endpoint_id(8), FOREIGN, "net", 1000),),
    (replace(PLAN[0], endpoint_id=endpoint_id(8), name=FOREIGN), BindVdpa(endpoint_id(8), FOREIGN, "net", 1000)),
)
PLACES = [
    names.place(ELSEWHERE, 0),
    FIRST,
    f"{FIRST}#",
    f"{FIRST}#-1",
    f"{FIRST}#4096",
    f"{FIRST}#00",
    f"{FIRST}#0\n",
    f"{FIRST}#0\0",
    f" {FIRST}#0",
    f"{FIRST}/{SECOND}#0",
    f"../{FIRST}#0",
    "pci/../../etc#0",
    "#0",
    "",
    "*#0",
    f"{'x' * 300}#0",
]
NAMES = [
    "",
    ".",
    "..",
    "vdpa0",
    THEIRS,
    f"{NAME}\0",
    f"{NAME}\n",
    f"../{NAME}",
    f"{NAME}/driver",
    NAME.upper(),
    NAME[:-1],
    "vdtz5geomx5ho",
]
IDS = ["", "../x", ID.replace("1", "A"), "00000000-0000-0000-0000-000000000000", f"{ID}\0", f"{ID}\n", ID[:-1], NEIGHBOUR]
NETWORKS = ["", "green", "blue", "pci", "NET", "net\0", FIRST, "../net", "*"]
PORTS: list[dict[str, Any]] = [
    *({"mac": mac} for mac in ("", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "52:54:00:12:34:56:78", "x")),
    *({"mtu_bytes": mtu} for mtu in (-1, 1, 67, 1501, 65536, 1 << 40)),
    {"vlan": Vlan(7)},
    {"vlan": Vlan(trunk_vids=(7, 8))},
    {"limits": Limits(from_vm=RateLimit(rate_bps=1_000_000))},
    {"guard_enabled": True},
    {"isolated": True},
    {"trusted": True},
    {"link_up": False},
    {"addresses": ("192.0.2.1",)},
    {"public_addresses": ("192.0.2.1",)},
    {"tx_queue_length": 500},
]
JUNK: list[Any] = [None, -1, 1.5, 1 << 63, "", "x", b"x", [], [1], {}, {"type": "create_vdpa"}, True]
TAP = CreateTap(ID, names.device_name(Kind.TAP, ID), "fe:54:00:12:34:56", 1000, None, 1, vnet_hdr=True)
CLAIM = ClaimFunction(ID, "pci", "0000:01:10.0", PORT)


class Attacker:
    """Makes plans that are wrong in one way."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ways: list[Callable[[], Any]] = [
            lambda: _with(PLAN[: self._random.choice([1, 2])], PLAN[0], place=self._random.choice(PLACES)),
            lambda: _with(PLAN, *self._some(), name=self._random.choice(NAMES)),
            lambda: _with(PLAN, *self._some(), endpoint_id=self._random.choice(IDS)),
            lambda: _with(PLAN, *self._some(), network=self._random.choice(NETWORKS)),
            lambda: _with(PLAN, PLAN[0], port=replace(PORT, **self._random.choice(PORTS))),
            lambda: _with(PLAN, PLAN[0], queues=self._random.choice([-1, 0, 2, 257, 1 << 40])),
            lambda: _with(PLAN, PLAN[1], owner_uid=self._random.choice([-1, (1 << 32) - 1, 1 << 40, 0.5, "root"])),
            lambda: _with(self._random.choice([PLAN[::-1], PLAN * 2, (PLAN[0], PLAN[0])])),
            lambda: _with(self._random.choice([(PLAN[0], TAP), (EnsureBridge("blue"), *PLAN), (*PLAN, TAP), (CLAIM, *PLAN)])),
            lambda: _with(self._random.choice(NOT_THEIRS)),
            self._odd_type,
        ]

    def plan(self) -> Any:
        """Give a hostile plan: as msgpack's own types, for not all could be a `Plan`."""
        return self._random.choice(self._ways)()

    def _some(self) -> list[ops.Operation]:
        return self._random.choice([[PLAN[0]], [PLAN[1]], list(PLAN)])

    def _odd_type(self) -> Any:
        operations = _with(PLAN)
        operation = self._random.choice(operations)
        key = self._random.choice([*operation, "surprise"])
        junk = [one for one in JUNK if type(one) is not type(operation.get(key)) and not (key == "surprise" and one is None)]
        operation[key] = self._random.choice(junk)
        return operations


def _with(plan: Plan, *changed: ops.Operation, **fields: Any) -> list[dict[str, Any]]:
    """Give a plan's operations, some with other values."""
    new = msgspec.to_builtins(fields)
    return [msgspec.to_builtins(one) | (new if one in changed else {}) for one in plan]


@pytest.fixture
def crowded(host: FakeVdpaHost) -> FakeVdpaHost:
    """A host with a neighbour's device, and with one of vifd's form that isn't vifd's."""
    own = VdpaDevices(host.prepared())
    port = replace(PORT, mac="52:54:00:00:00:07")
    assert own.create(CreateVdpa(NEIGHBOUR, THEIRS, "net", names.place(FIRST, 0), port, 1), AUTHORITY["net"]) == 1500  # type: ignore[arg-type]  # that one is vDPA's
    own.bind(BindVdpa(NEIGHBOUR, THEIRS, "net", 1007))
    host.add(FOREIGN, FIRST, NetConfig("52:54:00:00:00:08", 1500))
    host.steps = []
    return host


@pytest.fixture
def maker(crowded: FakeVdpaHost) -> Iterator[Maker]:
    """What carries plans out, on a kernel that has nothing but vDPA."""
    rtnl, guards = RtnlSocket(), no_guards()
    functions = Functions("no VFs here", None, guards)  # type: ignore[arg-type]  # without them it isn't asked
    devices = Devices(Macvtaps(rtnl, "no nodes here"), functions, VdpaDevices(crowded.prepared()))
    yield Maker(rtnl, guards, Support(LimitsMechanism.POLICE, egress_tbf=False), devices, Publics(NoNatTable()))
    rtnl.close()


def send(maker: Maker, *plans: Any) -> list[list[Made] | Refusal]:
    """Send a group as the helper's entry point gets it; what it can't decode, it raises for."""
    request = msgspec.msgpack.encode({"groups": [plans]})
    return maker.apply(ops.decode_apply(request).groups, AUTHORITY)


def test_what_a_driver_would_plan_takes_effect(crowded: FakeVdpaHost, maker: Maker) -> None:
    (made,) = send(maker, _with(PLAN))
    assert isinstance(made, list), made
    assert (made[0].mtu_bytes, made[0].device_path[:-1]) == (1500, "/dev/vhost-vdpa-")
    assert crowded.owners[NAME] == (1000, 0o600)


@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_hostile_plans_take_no_effect(crowded: FakeVdpaHost, maker: Maker, seed: int) -> None:
    attacker, before = Attacker(seed), crowded.snapshot()
    for _ in range(100):
        plan = attacker.plan()
        try:
            (answer,) = send(maker, plan)
        except msgspec.ValidationError:
            continue
        assert isinstance(answer, Refusal), plan
        assert crowded.steps == [], plan
    assert crowded.snapshot() == before


def test_a_group_is_made_all_or_none(crowded: FakeVdpaHost, maker: Maker) -> None:
    before, other = crowded.snapshot(), endpoint_id(9)
    crowded.failing[f"give to {1009}"] = PermissionError(1, "Operation not permitted")
    name = names.device_name(Kind.VDPA, other)
    second: Plan = (
        replace(PLAN[0], endpoint_id=other, name=name, place=names.place(SECOND, 0)),
        BindVdpa(other, name, "net", 1009),
    )
    (answer,) = send(maker, _with(PLAN), _with(second))
    assert isinstance(answer, Refusal)
    assert (answer.plan_index, answer.operation, answer.device) == (1, "BindVdpa", name)
    assert crowded.snapshot() == before


def test_a_full_management_device_is_told_by_its_place(crowded: FakeVdpaHost, maker: Maker) -> None:
    crowded.failing["add"] = OSError(28, "No space left on device")
    (answer,) = send(maker, _with(PLAN))
    assert isinstance(answer, Refusal)
    assert (answer.cause, answer.device) == (ops.TAKEN, names.place(FIRST, 0))
    assert NAME not in crowded.marked()
