"""What a VF's request and release take in the helper, step by step: the helper's own parts, run here and timed one by one."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.bench import cards
from tests.bench.measure import Row, Samples, make_row
from tests.support import vfs
from tests.support.sriov_host import no_guards
from tests.support.vfs import FIRST_PF
from vifd.kernel.authority import FunctionGrant
from vifd.kernel.macvtap import Failure
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.ops import BindFunction, ClaimFunction
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.sriov.hardware import Hardware
from vifd.kernel.sriov.nic import RtnlNic
from vifd.kernel.sriov.preparing import FunctionPreparer
from vifd.model import PciHostDriver, Port, Vlan

_NETLINK, _SYSFS, _MARK, _NODE = "netlink", "sysfs read", "mark", "node"
#: What is written to the PCI bus.
_OF_BUS = {"unbind": "unbind", "probe": "bind", "reset": "reset"}
_OVERRIDE = "driver_override"
_REST = "the rest"
_PORT, _OWNER = Port("52:54:00:12:34:56", vlan=Vlan(7, qos=3)), 20001


def measure_steps(rounds: int, advance: Callable[[], None]) -> list[Row]:
    """Take a VF for a VM and give it back, again and again.

    Args:
        rounds: how often.
        advance: is called after each.
    """
    samples: defaultdict[str, Samples] = defaultdict(list)
    grant = FunctionGrant((FIRST_PF,), vfs=1)
    with cards.without_vfs(), tempfile.TemporaryDirectory() as folder, closing(RtnlSocket()) as rtnl:
        hardware, nic, watch = Hardware.prepare(Path(folder)), RtnlNic(rtnl), _Stopwatch()
        if problem := FunctionPreparer(hardware, nic).prepare("fast", grant):
            raise RuntimeError(problem)
        address = vfs.addresses(FIRST_PF)[0]
        functions = Functions(watch.timed_hardware(hardware), watch.timed(nic, lambda _: _NETLINK), no_guards())
        for _ in range(rounds):
            endpoint_id = str(uuid.uuid4())
            with watch.running(samples, "make VF"):
                _check(functions.claim(ClaimFunction(endpoint_id, "fast", address, _PORT), grant))
                _check(functions.bind(BindFunction(endpoint_id, "fast", address, PciHostDriver.VFIO, _OWNER, None), _PORT))
            with watch.running(samples, "delete VF"):
                _check(functions.release(endpoint_id, address))
            advance()
        hardware.close()
    return [make_row("vifd's helper", operation, times) for operation, times in samples.items()]


class _Stopwatch:
    """Adds up what each step takes, in milliseconds."""

    def __init__(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)

    def timed_hardware(self, hardware: Hardware) -> Hardware:
        """Give the same hardware, whose every use is a step."""
        return hardware._replace(
            inventory=self.timed(hardware.inventory, lambda _: _SYSFS),
            bus=self.timed(hardware.bus, lambda name: _OF_BUS.get(name, _OVERRIDE)),
            nodes=self.timed(hardware.nodes, lambda _: _NODE),
            marks=self.timed(hardware.marks, lambda _: _MARK),
        )

    def timed(self, tool: Any, step_of: Callable[[str], str]) -> Any:
        """Give a tool whose methods are timed.

        Args:
            tool: the tool.
            step_of: gives the step that a method belongs to.
        """
        return _Timed(tool, step_of, self._spent)

    @contextmanager
    def running(self, samples: defaultdict[str, Samples], operation: str) -> Iterator[None]:
        """Time a block: all of it, and each step in it."""
        self._spent.clear()
        begin = time.perf_counter()
        yield
        whole = (time.perf_counter() - begin) * 1000
        samples[f"{operation}, in all"].append(whole)
        for step, spent in {**self._spent, _REST: whole - sum(self._spent.values())}.items():
            samples[f"{operation}: {step}"].append(spent)


class _Timed:
    """A tool that notes how long it is used."""

    def __init__(self, tool: object, step_of: Callable[[str], str], spent: defaultdict[str, float]) -> None:
        self._tool, self._step_of, self._spent = tool, step_of, spent

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._tool, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self._spent[self._step_of(name)] += (time.perf_counter() - begin) * 1000

        return timed


def _check(result: object) -> None:
    match result:
        case Failure(message=message):
            raise RuntimeError(message)
