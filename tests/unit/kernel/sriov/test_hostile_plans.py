"""A thousand plans that no vifd would send: none of them takes effect, by the helper's own decoder, check and order of work."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.support.messages import ID, endpoint_id
from tests.support.sriov_host import PFS, FakeHost, FakeNic, no_guards, vf_address
from vifd.kernel import names, ops
from vifd.kernel.authority import BridgeGrant, FunctionGrant, UplinkGrant
from vifd.kernel.direct import Macvtaps
from vifd.kernel.limits import Support
from vifd.kernel.making import Devices, Maker
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.nft.nat import NoNatTable
from vifd.kernel.ops import (
    BindFunction,
    ChangeFunction,
    ClaimFunction,
    ConfigurePort,
    CreateMacvtap,
    CreateTap,
    EnsureBridge,
    EnsureNode,
    Made,
    Plan,
    Refusal,
    below_macvtap,
)
from vifd.kernel.publics import Publics
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.vdpa.devices import VdpaDevices
from vifd.model import Kind, Limits, LimitsMechanism, MacvtapMode, PciHostDriver, Port, RateLimit, Vlan

FREE, THEIRS, EXCLUDED, ELSEWHERE = vf_address("eth0", 0), vf_address("eth0", 1), vf_address("eth0", 2), vf_address("eth1", 0)
AUTHORITY = {
    "net": FunctionGrant(("eth0",), exclude=(EXCLUDED,), vlan=7),
    "blue": BridgeGrant("br-blue"),
    "lan": UplinkGrant("eth1"),
}
NEIGHBOUR = endpoint_id(7)
PORT = Port("52:54:00:12:34:56", vlan=Vlan(7))
PLANS: tuple[Plan, ...] = (
    (ClaimFunction(ID, "net", FREE, PORT), BindFunction(ID, "net", FREE, PciHostDriver.VFIO, 1000, None)),
    (ClaimFunction(ID, "net", FREE, PORT), BindFunction(ID, "net", FREE, PciHostDriver.KERNEL, 1000, None)),
)
NAME = names.device_name(Kind.MACVTAP, ID)
STANDING: Plan = (
    ClaimFunction(ID, "net", FREE, below_macvtap(PORT)),
    BindFunction(ID, "net", FREE, PciHostDriver.KERNEL, 1000, None),
    CreateMacvtap(ID, NAME, "net", PORT.mac, MacvtapMode.PASSTHRU),
    EnsureNode(ID, NAME, 1000, None),
    ConfigurePort(ID, NAME, "net", PORT),
)
#: These are hostile as they are: the VF isn't this endpoint's.
FOREIGN: tuple[Plan, ...] = (
    (BindFunction(ID, "net", FREE, PciHostDriver.VFIO, 1000, None),),
    (BindFunction(ID, "net", THEIRS, PciHostDriver.VFIO, 1000, None),),
    (ChangeFunction(ID, "net", THEIRS, PORT, replace(PORT, vlan=Vlan(8))),),
    (BindFunction(ID, "net", THEIRS, PciHostDriver.KERNEL, 0, None), ChangeFunction(ID, "net", THEIRS, None, PORT)),
)
ADDRESSES = [
    *PFS.values(),
    THEIRS,
    EXCLUDED,
    ELSEWHERE,
    "0000:00:1f.2",
    "0000:01:1f.7",
    "",
    ".",
    "..",
    "../../../../etc",
    f"../devices/{FREE}",
    f"{FREE}/driver_override",
    f"{FREE}/../{THEIRS}",
    f"{FREE}\n",
    f"{FREE}\0",
    f" {FREE}",
    "*",
    "0" * 300,
]
IDS = ["", "../x", ID.replace("1", "A"), "00000000-0000-0000-0000-000000000000", f"{ID}\0", f"{ID}\n", ID[:-1], NEIGHBOUR + "x"]
NETWORKS = ["", "green", "blue", "NET", "net\0", "eth0", "../net", "*"]
LIMITS = [
    Limits(from_vm=RateLimit(rate_bps=1)),
    Limits(from_vm=RateLimit(rate_bps=-1_000_000)),
    Limits(from_vm=RateLimit(rate_bps=1 << 62)),
    Limits(from_vm=RateLimit(min_rate_bps=999_999)),
    Limits(from_vm=RateLimit(rate_bps=1_000_000, min_rate_bps=2_000_000)),
    Limits(from_vm=RateLimit(rate_bps=1_000_000, burst_bytes=1)),
    Limits(from_vm=RateLimit(rate_pps=1)),
    Limits(to_vm=RateLimit(rate_bps=1_000_000)),
]
PORTS: list[dict[str, Any]] = [
    *({"mac": mac} for mac in ("", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "52:54:00:12:34:56:78", "x")),
    *({"mtu_bytes": mtu} for mtu in (-1, 1, 67, 9000, 65536, 1 << 40)),
    *({"vlan": Vlan(vid)} for vid in (-1, 0, 4095, 1 << 16)),
    *({"vlan": Vlan(7, qos=qos)} for qos in (-1, 8, 255)),
    {"vlan": Vlan(8)},
    {"vlan": None},
    *({"vlan": vlan} for vlan in (Vlan(trunk_vids=(7, 8)), Vlan(7, trunk_vids=(8,)), Vlan(7, native_vid=7))),
    *({"limits": limits} for limits in LIMITS),
    {"guard_enabled": True},
    {"isolated": True},
    {"addresses": ("192.0.2.1",)},
    {"public_addresses": ("192.0.2.1",)},
    {"tx_queue_length": 500},
]
JUNK: list[Any] = [None, -1, 1.5, 1 << 63, "", "x", b"x", [], [1], {}, {"type": "claim_function"}, True]
TAP = CreateTap(ID, names.device_name(Kind.TAP, ID), "fe:54:00:12:34:56", 1000, None, 1, vnet_hdr=True)


class Attacker:
    """Makes plans that are wrong in one way or in several."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ways: list[Callable[[Plan], Any]] = [
            self._elsewhere,
            self._elsewhere,
            self._other_endpoint,
            self._other_network,
            self._bad_port,
            self._bad_port,
            self._bad_owner,
            self._disorder,
            self._two_devices,
            self._odd_type,
            self._odd_type,
            self._standing_elsewhere,
            self._standing_elsewhere,
        ]

    def plan(self) -> Any:
        """Give a hostile plan: as msgpack's own types, for not all could be a `Plan`."""
        if self._random.random() < 0.1:
            return msgspec.to_builtins(self._random.choice(FOREIGN))
        return self._random.choice(self._ways)(self._random.choice(PLANS))

    def _elsewhere(self, plan: Plan) -> Any:
        address = self._random.choice(ADDRESSES)
        return _with(plan if self._random.random() < 0.8 else plan[:1], address=address)

    def _other_endpoint(self, plan: Plan) -> Any:
        bad = self._random.choice(IDS)
        if self._random.random() < 0.5:
            return _with(plan, endpoint_id=bad)
        return [*_with(plan[:1]), *_with(plan[1:], endpoint_id=self._random.choice([*IDS, NEIGHBOUR]))]

    def _other_network(self, plan: Plan) -> Any:
        return _with(plan, network=self._random.choice(NETWORKS))

    def _bad_port(self, plan: Plan) -> Any:
        wrong = [self._random.choice(PORTS) for _ in range(self._random.randint(1, 3))]
        return [
            *_with(plan[:1], port=replace(PORT, **{key: value for one in wrong for key, value in one.items()})),
            *_with(plan[1:]),
        ]

    def _bad_owner(self, plan: Plan) -> Any:
        fields = {self._random.choice(["owner_uid", "owner_gid"]): self._random.choice([-1, (1 << 32) - 1, 1 << 40, 0.5, "root"])}
        return [*_with(plan[:1]), *_with(plan[1:], **fields)]

    def _disorder(self, plan: Plan) -> Any:
        change = ChangeFunction(ID, "net", FREE, None, PORT)
        return _with(self._random.choice([plan[::-1], plan * 2, (plan[0], plan[0]), (*plan, change), (plan[0], change)]))

    def _two_devices(self, plan: Plan) -> Any:
        others: list[Plan] = [(plan[0], TAP), (EnsureBridge("blue"), *plan), (*plan, TAP)]
        crossed = [*_with(plan[:1]), *_with(plan[1:], address=self._random.choice(ADDRESSES))]
        return crossed if self._random.random() < 0.5 else _with(self._random.choice(others))

    def _standing_elsewhere(self, plan: Plan) -> Any:
        """Give a macvtap on something else than the plan's VF, or one that is unlike it."""
        del plan
        operations = _with(STANDING)
        number = self._random.randrange(2, len(operations))
        match self._random.randrange(4):
            case 0:  # on an uplink that is no VF, or of another network or endpoint
                name = self._random.choice(["eth0", "eth1", "lo", "../x", names.device_name(Kind.PCI, ID), ""])
                fields = {"ifname": name, "network": self._random.choice(["lan", *NETWORKS]), "endpoint_id": NEIGHBOUR}
                key = self._random.choice([key for key in fields if key in operations[number]])
                operations[number][key] = fields[key]
            case 1:  # without what it stands on
                return [operations[at] for at in self._random.choice([(2, 3, 4), (0, 2, 3, 4), (1, 2, 3, 4), (0, 1, 4), (3, 4)])]
            case 2:
                fields = {"mode": self._random.choice(["bridge", "vepa", "private"]), "mac": "52:54:00:12:34:57"}
                operations[2] |= dict([self._random.choice(list(fields.items()))])
            case _:
                wrong = [fields for fields in PORTS if set(fields) & {"mac", "mtu_bytes", "vlan", "isolated", "public_addresses"}]
                operations[4]["port"] |= msgspec.to_builtins(self._random.choice(wrong))
        return operations

    def _odd_type(self, plan: Plan) -> Any:
        operations = _with(plan)
        operation = self._random.choice(operations)
        key = self._random.choice([*operation, "surprise"])
        known = operation.get(key)
        junk = [one for one in JUNK if type(one) is not type(known) and not (key in ("owner_gid", "surprise") and one is None)]
        operation[key] = self._random.choice(junk)
        return operations


def _with(plan: Plan, **fields: Any) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(operation) | msgspec.to_builtins(fields) for operation in plan]


@pytest.fixture
def host(tmp_path: Any) -> Iterator[FakeHost]:
    """A host whose second VF is a neighbour's, who lives."""
    with closing(FakeHost(tmp_path, vfs=3)) as host:
        host.sysfs.add_function("0000:00:1f.2", driver="ahci")
        own = Functions(host.open(), FakeNic(host), no_guards())
        port = replace(PORT, mac="52:54:00:00:00:07")
        assert own.claim(ClaimFunction(NEIGHBOUR, "net", THEIRS, port), AUTHORITY["net"]) == 1500
        own.bind(BindFunction(NEIGHBOUR, "net", THEIRS, PciHostDriver.VFIO, 1007, None), None)
        host.steps = []
        yield host


@pytest.fixture
def maker(host: FakeHost) -> Iterator[Maker]:
    """What carries plans out, on a kernel that has nothing but VFs."""
    rtnl, guards = RtnlSocket(), no_guards()
    devices = Devices(Macvtaps(rtnl, ""), Functions(host.open(), FakeNic(host), guards), VdpaDevices("no vDPA here"))
    yield Maker(rtnl, guards, Support(LimitsMechanism.POLICE, egress_tbf=False), devices, Publics(NoNatTable()))
    rtnl.close()


def send(maker: Maker, plans: list[Any]) -> list[list[Made] | Refusal]:
    """Send plans as the helper's entry point gets them; what it can't decode, it raises for."""
    request = msgspec.msgpack.encode({"groups": [plans]})
    return maker.apply(ops.decode_apply(request).groups, AUTHORITY)


@pytest.mark.parametrize("plan", PLANS)
def test_what_a_driver_would_plan_takes_effect(host: FakeHost, maker: Maker, plan: Plan) -> None:
    (made,) = send(maker, [msgspec.to_builtins(plan)])
    assert isinstance(made, list), made
    assert host.steps


@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_hostile_plans_take_no_effect(host: FakeHost, maker: Maker, seed: int) -> None:
    attacker, before = Attacker(seed), host.snapshot()
    for _ in range(100):
        plan = attacker.plan()
        try:
            (answer,) = send(maker, [plan])
        except msgspec.ValidationError:
            continue
        assert isinstance(answer, Refusal), plan
        assert host.steps == [], plan
    assert host.snapshot() == before


@pytest.mark.parametrize("address", [a for a in ADDRESSES if a != THEIRS])
def test_nothing_is_given_back_that_isnt_an_endpoints(host: FakeHost, address: str) -> None:
    before = host.snapshot()
    own = Functions(host.open(), FakeNic(host), no_guards())
    own.release(NEIGHBOUR, address)
    own.release(ID, THEIRS)
    assert (host.steps, host.snapshot()) == ([], before)
