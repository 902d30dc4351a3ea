"""Macvtaps on VFs by the kernel's own macvtap: the VFs are made up, on a sysfs of plain files, but their netdevs are real."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from tests.support import frames, kernel
from tests.support.daemon import network_namespace
from tests.support.messages import ID
from tests.support.sriov_host import PFS, FakeHost, FakeNic, vf_address
from vifd.kernel import limits, names, ops
from vifd.kernel.announcing import open_packet_socket
from vifd.kernel.authority import FunctionGrant
from vifd.kernel.executor import Executor, Tools
from vifd.kernel.netlink import Reply, RtnlSocket
from vifd.kernel.nft.devices import open_guards
from vifd.kernel.nft.nat import NoNatTable
from vifd.kernel.nodes import Nodes
from vifd.kernel.ops import below_macvtap
from vifd.kernel.sriov.nic import Netdev, RtnlNic
from vifd.model import DriftKind, Kind, Limits, MacvtapMode, PciHostDriver, Port, RateLimit, Vlan

T = TypeVar("T")
ETH_P_ARP, ETH_P_RARP = 0x0806, 0x8035
VF, MAC = vf_address("eth0", 0), "52:54:00:12:34:56"
NAME, LOWER = names.device_name(Kind.MACVTAP, ID), names.device_name(Kind.PCI, ID)
PORT = Port(
    MAC,
    addresses=("192.0.2.1",),
    vlan=Vlan(7, qos=3),
    guard_enabled=True,
    limits=Limits(RateLimit(rate_bps=10**8), RateLimit(rate_bps=10**9)),
    link_up=True,
)


class VethHost(FakeHost):
    """Its VFs' netdevs are veths of this thread's namespace."""

    def add_netdev(self, address: str, ifname: str, *, up: bool, mac: str = "02:00:00:00:00:01") -> None:
        if ifname not in PFS:
            subprocess.run(["ip", "link", "add", ifname, "type", "veth", "peer", "name", f"{ifname}far"], check=True)
            subprocess.run(["ip", "link", "set", f"{ifname}far", "up"], check=True)
            if mac != "00:00:00:00:00:00":
                subprocess.run(["ip", "link", "set", ifname, "address", mac], check=True)
            shown = subprocess.run(["ip", "-o", "link", "show", ifname], check=True, capture_output=True, text=True).stdout
            self.sysfs.add_netdev(address, ifname, up=up, ifindex=int(shown.partition(":")[0]))
        super().add_netdev(address, ifname, up=up, mac=mac)

    def unbind(self, address: str) -> None:
        if ifname := self.function(address).ifname:
            subprocess.run(["ip", "link", "delete", ifname], check=True)
        super().unbind(address)


class VethNic(FakeNic):
    """What it says of VFs' netdevs, the kernel says; of PFs, the host."""

    def __init__(self, host: FakeHost, rtnl: RtnlSocket) -> None:
        super().__init__(host)
        self._real = RtnlNic(rtnl)

    def find_netdev(self, ifname: str) -> Netdev | None:
        return super().find_netdev(ifname) if ifname in PFS else self._real.find_netdev(ifname)

    def name(self, netdev: Netdev, ifname: str, alias: str) -> Reply:
        super().name(netdev, ifname, alias)
        return self._real.name(netdev, ifname, alias)

    def configure(self, netdev: Netdev, mac: str, mtu_bytes: int, *, up: bool, silent: bool = False) -> Reply:
        return self._real.configure(netdev, mac, mtu_bytes, up=up, silent=silent)


class World:
    """A host, and what the helper carries plans out with, in a namespace."""

    def __init__(self, netns: str, host: FakeHost, executor: Executor) -> None:
        self.netns, self.host, self._executor = netns, host, executor

    def apply(self, *plans: ops.Plan) -> list[list[ops.Made] | ops.Refusal]:
        return self._executor.apply([(plan,) for plan in plans])

    def revert(self, plan: ops.Plan) -> Sequence[ops.Refusal | None]:
        return self._executor.revert([plan])

    def drifts(self, plan: ops.Plan) -> set[DriftKind]:
        return {drift.kind for drift in self._executor.check([plan])[0]}

    def announce(self, plan: ops.Plan) -> list[str]:
        return self._executor.announce([plan])

    def open_queue(self) -> int:
        (fd,) = self._executor.open_queues(ID, 1, vnet_hdr=False)
        return fd

    def link(self, ifname: str) -> Any:
        return kernel.settings(self.netns, ifname)


def plan_of(port: Port = PORT) -> ops.Plan:
    return (
        ops.ClaimFunction(ID, "net", VF, below_macvtap(port)),
        ops.BindFunction(ID, "net", VF, PciHostDriver.KERNEL, 1000, None),
        ops.CreateMacvtap(ID, NAME, "net", MAC, MacvtapMode.PASSTHRU),
        ops.EnsureNode(ID, NAME, 1000, None),
        ops.ConfigurePort(ID, NAME, "net", port),
    )


def change_of(before: Port | None, port: Port) -> ops.Plan:
    return (
        ops.EnsureNode(ID, NAME, 1000, None),
        ops.ChangePort(ID, NAME, "net", MAC, before, port),
        ops.ChangeFunction(ID, "net", VF, None if before is None else below_macvtap(before), below_macvtap(port)),
    )


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[World], T]], T]]:
    """Runs a function in a namespace of its own, with a world there; nothing of it must be left then."""
    devices = Path(tempfile.mkdtemp(prefix="vifd-test-", dir="/dev"))
    with network_namespace() as netns, contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, devices)

        def run(function: Callable[[World], T]) -> T:
            host = VethHost(tmp_path)  # the tools close it
            monkeypatch.setattr("vifd.kernel.executor.RtnlNic", lambda rtnl: VethNic(host, rtnl))
            rtnl = RtnlSocket()
            guards, nodes = open_guards(owned=False, direct=True), Nodes.prepare(devices)
            packets = open_packet_socket()
            tools = Tools(guards, NoNatTable(), limits.probe(rtnl), nodes, packets, host.open(), "no vDPA here")
            rtnl.close()
            executor = Executor(lambda: {"net": FunctionGrant(("eth0",))}, tools)
            before = host.snapshot(), len(kernel.snapshot(netns))
            try:
                return function(World(netns, host, executor))
            finally:
                executor.revert([plan_of()])
                executor._rtnl.close()
                tools.close()
                assert (host.snapshot(), len(kernel.snapshot(netns))) == before
                assert list(devices.rglob("macvtap*")) == []

        yield lambda function: kernel.inside(netns, lambda: run(function))


def test_it_is_made_on_the_vfs_netdev_with_all_that_a_port_has(inside: Any) -> None:
    def scenario(world: World) -> None:
        (made,) = world.apply(plan_of())
        assert isinstance(made, list), made
        assert (made[0].bridge_name, made[0].function.ifname, made[0].mtu_bytes) == (LOWER, LOWER, 1500)
        link, lower = world.link(NAME), world.link(LOWER)
        assert (link["link"], link["linkinfo"]["info_data"]["mode"], link["address"]) == (LOWER, "passthru", MAC)
        assert (lower["address"], "UP" in lower["flags"], "UP" in link["flags"]) == (MAC, True, True)
        assert {"tbf", "ingress"} <= {one["kind"] for one in kernel.qdiscs(world.netns, NAME)}
        assert (world.host.settings["eth0", 0].vid, world.host.settings["eth0", 0].max_rate_mbps) == (7, 0)
        assert Path(made[0].device_path).stat().st_uid == 1000
        assert world.drifts(plan_of()) == set()

    inside(scenario)


def test_the_host_says_nothing_by_either_and_the_guard_stands_between_the_vm_and_the_vf(inside: Any) -> None:
    def scenario(world: World) -> None:
        (made,) = world.apply(plan_of())
        assert isinstance(made, list)
        for ifname in (NAME, LOWER):
            assert Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6").read_text() == "1\n"
        with contextlib.closing(kernel.packet_socket(world.netns, "eth0v0far", ETH_P_ARP)) as far:
            far.settimeout(20)
            fd = world.open_queue()
            os.write(fd, frames.probe("52:54:00:12:34:57", 1))
            os.write(fd, frames.probe(MAC, 2))
            os.close(fd)
            assert far.recv(2048)[6:12] == frames.mac_bytes(MAC)

    inside(scenario)


def test_its_vm_is_announced_by_the_vf(inside: Any) -> None:
    def scenario(world: World) -> None:
        world.apply(plan_of())
        with contextlib.closing(kernel.packet_socket(world.netns, "eth0v0far", ETH_P_RARP)) as far:
            far.settimeout(20)
            assert world.announce(plan_of()) == [""]
            assert far.recv(2048)[6:12] == frames.mac_bytes(MAC)

    inside(scenario)


def test_it_changes_with_its_vf(inside: Any) -> None:
    def scenario(world: World) -> None:
        world.apply(plan_of())
        after = replace(PORT, mtu_bytes=1400, vlan=Vlan(8), limits=None, link_up=False)
        (made,) = world.apply(change_of(PORT, after))
        assert isinstance(made, list), made
        assert made[0].mtu_bytes == 1400
        assert [(world.link(one)["mtu"], "UP" in world.link(one)["flags"]) for one in (NAME, LOWER)] == [
            (1400, False),
            (1400, True),
        ]
        assert world.host.settings["eth0", 0].vid == 8
        assert "tbf" not in {one["kind"] for one in kernel.qdiscs(world.netns, NAME)}
        assert world.drifts(plan_of(after)) == set()
        (made,) = world.apply(change_of(after, PORT))
        assert isinstance(made, list), made
        assert [(world.link(one)["mtu"], "UP" in world.link(one)["flags"]) for one in (NAME, LOWER)] == [
            (1500, True),
            (1500, True),
        ]
        assert world.drifts(plan_of()) == set()

    inside(scenario)


def test_what_the_macvtap_cant_be_leaves_both_as_they_were(inside: Any) -> None:
    def scenario(world: World) -> None:
        world.apply(plan_of())
        kernel.run(world.netns, "link", "set", NAME, "name", "elsewhere")  # and it can't have its name back
        kernel.run(world.netns, "link", "add", NAME, "type", "bridge")
        (made,) = world.apply(change_of(PORT, replace(PORT, mtu_bytes=1400, vlan=Vlan(8))))
        assert isinstance(made, ops.Refusal), made
        assert [world.link(one)["mtu"] for one in ("elsewhere", LOWER)] == [1500, 1500]
        assert world.host.settings["eth0", 0].vid == 7
        assert world.drifts(plan_of()) == {DriftKind.NAME}
        kernel.run(world.netns, "link", "delete", NAME)
        assert isinstance(world.apply(change_of(None, PORT))[0], list)
        assert world.drifts(plan_of()) == set()

    inside(scenario)


def test_a_macvtap_that_stands_elsewhere_is_not_changed(inside: Any) -> None:
    def scenario(world: World) -> None:
        world.apply(plan_of())
        kernel.run(world.netns, "link", "delete", NAME)
        on = ["link", "add", NAME, "link", "eth0v0far", "address", MAC, "type", "macvtap", "mode", "passthru"]
        kernel.run(world.netns, *on)
        kernel.run(world.netns, "link", "set", NAME, "alias", names.mark(ID))
        before = world.link(NAME)
        (made,) = world.apply(change_of(PORT, replace(PORT, mtu_bytes=1400))[1:])
        assert isinstance(made, ops.Refusal), made
        assert (made.operation, made.cause) == ("ChangePort", ops.GONE)
        assert world.link(NAME) == before
        assert world.link(LOWER)["mtu"] == 1500

    inside(scenario)


def test_what_others_change_of_either_is_found_and_mended(inside: Any) -> None:
    def scenario(world: World) -> None:
        (made,) = world.apply(plan_of())
        assert isinstance(made, list)
        kernel.run(world.netns, "link", "set", LOWER, "mtu", "1300")
        kernel.run(world.netns, "link", "set", NAME, "down")
        world.host.settings["eth0", 0] = replace(world.host.settings["eth0", 0], vid=9)
        Path(made[0].device_path).unlink()
        assert world.drifts(plan_of()) == {DriftKind.MTU, DriftKind.LINK_STATE, DriftKind.VLAN, DriftKind.OWNER}
        (mended,) = world.apply(change_of(None, PORT))
        assert isinstance(mended, list), mended
        assert world.drifts(plan_of()) == set()

    inside(scenario)


def test_what_is_gone_is_made_anew(inside: Any) -> None:
    def scenario(world: World) -> None:
        world.apply(plan_of())
        kernel.run(world.netns, "link", "delete", NAME)
        assert world.drifts(plan_of()) == {DriftKind.DEVICE_MISSING}
        (made,) = world.apply(plan_of())
        assert isinstance(made, list), made
        assert world.drifts(plan_of()) == set()
        assert world.revert(plan_of()) == [None]
        assert world.host.driver(VF) == "igbvf"

    inside(scenario)
