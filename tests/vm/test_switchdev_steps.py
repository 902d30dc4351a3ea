"""Who is killed after any step of attaching a VF by its representor, or of giving it back, leaves what a release makes as new."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.messages import ID
from tests.support.steps import Steps
from tests.support.switchdev import PF_ADDRESS, Card, run, state, vf_address
from vifd.kernel import limits
from vifd.kernel.authority import BridgeGrant, FunctionGrant
from vifd.kernel.executor import Executor, Tools
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.nft.devices import open_guards
from vifd.kernel.nft.nat import NoNatTable
from vifd.kernel.ops import BindFunction, ClaimFunction, ConfigurePort, EnsureBridge
from vifd.kernel.sriov.hardware import Hardware, Locks
from vifd.kernel.sriov.inventory import Inventory
from vifd.kernel.sriov.marks import Marks
from vifd.kernel.sriov.pci import PciBus
from vifd.kernel.sriov.vfio import VfioNodes
from vifd.model import Limits, PciHostDriver, Port, RateLimit, Vlan

BRIDGE = "br-steps"
AUTHORITY = {"fast": FunctionGrant((PF_ADDRESS,), bridge=BridgeGrant(BRIDGE))}
LIMITS = Limits(RateLimit(100_000_000), RateLimit(100_000_000))
PORT = Port("52:54:00:12:34:56", 1400, ("192.0.2.7",), Vlan(7), guard_enabled=True, limits=LIMITS, isolated=True)
PLAN = (
    EnsureBridge("fast"),
    ClaimFunction(ID, "fast", vf_address(0), PORT),
    BindFunction(ID, "fast", vf_address(0), PciHostDriver.KERNEL, 20001, None),
    ConfigurePort(ID, "", "fast", PORT),
)


@pytest.fixture
def tools(card: Card, tmp_path: Path) -> Iterator[Callable[[], Tools]]:
    """Gives what a helper has that just began."""
    rtnl = RtnlSocket()
    support = limits.probe(rtnl)
    rtnl.close()

    def opened() -> Tools:
        hardware = Hardware(
            Inventory(card.sysfs), PciBus(card.sysfs), VfioNodes(card.sysfs), Marks.prepare(tmp_path), Locks(), set()
        )
        guards, nothing = open_guards(owned=False, direct=False), "nothing of that here"
        return Tools(guards, NoNatTable(), support, nothing, None, hardware, nothing)

    opened().close()  # the guard's table stays
    run("link", "add", BRIDGE, "type", "bridge", "vlan_filtering", "1", "forward_delay", "0")
    run("link", "set", BRIDGE, "mtu", "1400", "up")  # by itself, or it follows its ports'
    yield opened
    run("link", "delete", BRIDGE)
    subprocess.run(["nft", "delete", "table", "bridge", "vifd"], check=True)


@contextlib.contextmanager
def executor(tools: Callable[[], Tools]) -> Iterator[Executor]:
    """Give what carries plans out in a helper that just began."""
    with contextlib.closing(tools()) as own:
        one = Executor(lambda: AUTHORITY, own)
        yield one
        one._rtnl.close()


def test_who_is_killed_after_any_step_leaves_nothing(
    card: Card, tools: Callable[[], Tools], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("link", "set", card.pf, "up")
    card.renew()

    def make() -> None:
        with executor(tools) as one:
            (answer,) = one.apply([(PLAN,)])
            assert isinstance(answer, list), answer

    def take_down() -> None:
        with executor(tools) as one:
            assert one.revert([PLAN]) == [None]

    def release() -> None:
        take_down()
        card.renew()

    before, steps = state(card, 0), Steps(monkeypatch)
    making, releasing = steps.of(make), steps.of(release)
    assert state(card, 0) == before
    for action, count in ((make, making), (take_down, releasing)):
        for step in range(1, count + 1):
            if action is take_down:
                make()
            steps.killed(action, step)
            release()
            assert state(card, 0) == before, (action, step)
            assert list((tmp_path / "functions").iterdir()) == []
