"""Who is killed after any step of attaching a VF by its representor, or of giving it back, leaves what a release makes as new.

The VF and its PF are made up (`tests/support/sriov_host.py`). What stands for the representor is a veth: that, the bridge, the
guard's table and the limits are the kernel's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import kernel
from tests.support.daemon import ip, network_namespace
from tests.support.messages import ID
from tests.support.sriov_host import FakeHost, FakeNic, vf_address
from tests.support.steps import Steps
from vifd.kernel import limits
from vifd.kernel.authority import BridgeGrant, FunctionGrant
from vifd.kernel.direct import Macvtaps
from vifd.kernel.making import Devices, Maker
from vifd.kernel.netlink import Reply, RtnlSocket
from vifd.kernel.nft.devices import open_guards
from vifd.kernel.nft.nat import NoNatTable
from vifd.kernel.ops import BindFunction, ClaimFunction, ConfigurePort, EnsureBridge
from vifd.kernel.publics import Publics
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.sriov.nic import Netdev, RtnlNic
from vifd.kernel.sriov.settings import Setting, VfSettings
from vifd.kernel.vdpa.devices import VdpaDevices
from vifd.model import Limits, PciHostDriver, Port, RateLimit

PF, REPRESENTOR, BRIDGE = "eth0", "eth0r0", "br-fast"
VF = vf_address(PF, 0)
AUTHORITY = {"fast": FunctionGrant((PF,), bridge=BridgeGrant(BRIDGE))}
LIMITS = Limits(RateLimit(100_000_000), RateLimit(100_000_000))
PORT = Port("52:54:00:12:34:56", 1400, ("192.0.2.7",), guard_enabled=True, limits=LIMITS, isolated=True)
PLAN = (
    EnsureBridge("fast"),
    ClaimFunction(ID, "fast", VF, PORT),
    BindFunction(ID, "fast", VF, PciHostDriver.VFIO, 1000, None),
    ConfigurePort(ID, "", "fast", PORT),
)


class HalfRealNic(RtnlNic):
    """Netdevs of the kernel, and a PF that is told of its VFs in memory."""

    def __init__(self, rtnl: RtnlSocket, host: FakeHost) -> None:
        super().__init__(rtnl)
        self._fake = FakeNic(host)

    def read_vf(self, pf: Netdev, vf_index: int) -> VfSettings:
        """See Nic."""
        return self._fake.read_vf(pf, vf_index)

    def set_vf(self, pf: Netdev, vf_index: int, setting: Setting, settings: VfSettings) -> Reply:
        """See Nic."""
        return self._fake.set_vf(pf, vf_index, setting, settings)


@pytest.fixture
def netns() -> Iterator[str]:
    """A namespace with a PF, a representor of its VF, and a bridge."""
    with network_namespace() as name:
        for ifname in (PF, REPRESENTOR):
            kernel.run(name, "link", "add", ifname, "type", "veth", "peer", "name", f"{ifname}peer")
        kernel.run(name, "link", "add", BRIDGE, "type", "bridge")
        kernel.run(name, "link", "set", BRIDGE, "mtu", "1400")  # by itself, or it follows its ports'
        for ifname in (PF, BRIDGE):
            kernel.run(name, "link", "set", ifname, "up")
        yield name


@pytest.fixture
def host(netns: str, tmp_path: Path) -> Iterator[FakeHost]:
    """A PF whose switch is in mode switchdev, and whose VF has no driver."""
    with contextlib.closing(FakeHost(tmp_path)) as one:
        one.set_switchdev(PF)
        one.unbind(VF)
        for ifname in (PF, REPRESENTOR):
            (link,) = ip(netns, "link", "show", "dev", ifname)
            (one.sysfs.root / "class/net" / ifname / "ifindex").write_text(f"{link['ifindex']}\n")
        yield one


@contextlib.contextmanager
def made(host: FakeHost, support: limits.Support) -> Iterator[tuple[Maker, Functions]]:
    """Give what a helper has that just began."""
    rtnl, guards = RtnlSocket(), open_guards(owned=False, direct=False)
    functions = Functions(host.open(), HalfRealNic(rtnl, host), guards)
    yield (
        Maker(
            rtnl,
            guards,
            support,
            Devices(Macvtaps(rtnl, "no nodes"), functions, VdpaDevices("no vDPA here")),
            Publics(NoNatTable()),
        ),
        functions,
    )
    rtnl.close()
    guards.close()


def state(netns: str) -> object:
    """All that could be left of a representor, read by other programs."""
    (link,) = ip(netns, "link", "show", "dev", REPRESENTOR)
    kept = ("flags", "mtu", "master", "ifalias", "altnames", "inet6_addr_gen_mode", "txqlen")
    own = {one["kind"] for one in kernel.qdiscs(netns, REPRESENTOR)} - {"noqueue"}  # the kernel's, once it was up
    ifbs = [one["ifname"] for one in ip(netns, "link", "show") if one.get("linkinfo", {}).get("info_kind") == "ifb"]
    return {key: link.get(key) for key in kept}, own, f'"{REPRESENTOR}"' in kernel.nft(netns, "list", "ruleset"), ifbs


def test_who_is_killed_after_any_step_leaves_nothing(netns: str, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt() -> None:
        rtnl = RtnlSocket()
        support = limits.probe(rtnl)
        rtnl.close()

        def make() -> None:
            with made(host, support) as (maker, _):
                (answer,) = maker.apply([(PLAN,)], AUTHORITY)
                assert isinstance(answer, list), answer

        def release() -> None:
            with made(host, support) as (_, functions):
                assert functions.release(ID, VF) is None

        before, steps = state(netns), Steps(monkeypatch)
        making = steps.of(make)
        assert state(netns) != before
        releasing = steps.of(release)
        assert state(netns) == before
        for action, count in ((make, making), (release, releasing)):
            for step in range(1, count + 1):
                if action is release:
                    make()
                steps.killed(action, step)
                release()
                assert state(netns) == before, (action, step)

    kernel.inside(netns, attempt)
