"""Who is killed after any one step of taking a VF, or of giving it back, leaves what a release makes as new: on real drivers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import vfs
from tests.support.messages import ID
from tests.support.sriov_host import no_guards
from tests.support.vfs import FIRST_PF, SECOND_PF
from vifd.kernel.authority import FunctionGrant
from vifd.kernel.macvtap import Failure
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.ops import BindFunction, ClaimFunction
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.sriov.hardware import Hardware
from vifd.kernel.sriov.marks import Marks
from vifd.kernel.sriov.nic import RtnlNic
from vifd.kernel.sriov.pci import PciBus
from vifd.kernel.sriov.preparing import FunctionPreparer
from vifd.kernel.sriov.vfio import VfioNodes
from vifd.model import Limits, PciHostDriver, Port, RateLimit, Vlan

GRANT = FunctionGrant((FIRST_PF,))
LIMITS = Limits(from_vm=RateLimit(rate_bps=100_000_000))
PORT = Port("52:54:00:12:34:56", vlan=Vlan(7, qos=3), limits=LIMITS, trusted=True)
#: All that changes something.
CHANGES = [
    *((PciBus, name) for name in ("_write", "_write_probe")),
    *((RtnlNic, name) for name in ("set_vf", "name", "configure")),
    *((Marks, name) for name in ("create", "discard")),
    *((VfioNodes, name) for name in ("give", "take_back")),
]


class Steps:
    """Counts changes, and kills the process after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.die_at = 0
        for owner, name in CHANGES:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            result = change(*arguments, **named)
            self.count += 1
            if self.count == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    def of(self, action: Callable[[], None]) -> int:
        """Give how many changes something makes."""
        self.count = 0
        action()
        return self.count

    def killed(self, action: Callable[[], None], step: int) -> None:
        """Begin something in a process that is killed after a step."""
        pid = os.fork()
        if not pid:
            self.count, self.die_at = 0, step
            try:
                action()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.fixture
def address() -> Iterator[str]:
    """The only VF of the machine's first card; elsewhere these tests are skipped."""
    if vfs.pfs() != [FIRST_PF, SECOND_PF]:
        pytest.skip("this isn't the emulated machine")
    vfs.set_count(FIRST_PF, 1)
    yield vfs.addresses(FIRST_PF)[0]
    vfs.set_count(FIRST_PF, 0)


@pytest.mark.parametrize("driver", [PciHostDriver.VFIO, PciHostDriver.KERNEL])
def test_who_is_killed_after_any_step_leaves_nothing(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: PciHostDriver
) -> None:
    rtnl = RtnlSocket()

    def functions() -> Functions:
        return Functions(Hardware.prepare(tmp_path), RtnlNic(rtnl), no_guards())

    def make() -> None:
        own = functions()
        assert not isinstance(own.claim(ClaimFunction(ID, "fast", address, PORT), GRANT), Failure)
        assert not isinstance(own.bind(BindFunction(ID, "fast", address, driver, 20001, None), PORT), Failure)

    def release() -> None:
        assert functions().release(ID, address) is None

    assert FunctionPreparer(Hardware.prepare(tmp_path), RtnlNic(rtnl)).prepare("fast", GRANT) == ""
    before, steps = vfs.state(FIRST_PF), Steps(monkeypatch)
    making, releasing = steps.of(make), steps.of(release)
    assert vfs.state(FIRST_PF) == before
    for action, count in ((make, making), (release, releasing)):
        for step in range(1, count + 1):
            if action is release:
                make()
            steps.killed(action, step)
            release()
            assert vfs.state(FIRST_PF) == before, (action, step)
            assert list((tmp_path / "functions").iterdir()) == []
    rtnl.close()
