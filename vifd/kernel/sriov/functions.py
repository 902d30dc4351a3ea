"""Takes VFs for endpoints, and gives them back as they were; runs in the privileged helper.

A VF is marked before anything of it is touched, and its mark goes when all of it is clean: whoever dies in between leaves a VF
that is taken, and a mark that says how to put it back. Only what is marked for an endpoint is ever touched for it, so nothing
that comes late meets the VF's next owner.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import msgspec

from vifd.kernel import ops
from vifd.kernel.authority import FunctionGrant
from vifd.kernel.macvtap import Failure, Uplink
from vifd.kernel.nft.devices import Guards
from vifd.kernel.sriov import use
from vifd.kernel.sriov.binding import Binder
from vifd.kernel.sriov.hardware import FunctionError, Hardware, wait_for
from vifd.kernel.sriov.inventory import Function, allows
from vifd.kernel.sriov.marks import Mark
from vifd.kernel.sriov.nic import Netdev, Nic
from vifd.kernel.sriov.representors import Representors
from vifd.kernel.sriov.telling import Teller, told
from vifd.model import Port

T = TypeVar("T")


class Representor(NamedTuple):
    """A representor that is an endpoint's.

    Args:
        ifindex: its index.
        ifname: the name that it is to have: the one that it was found with.
    """

    ifindex: int
    ifname: str


class Functions:
    """The VFs of this host, as far as networks may use them. One thread at a time.

    Args:
        hardware: what there is to work with; or why there is nothing.
        nic: rtnetlink.
        guard: what keeps VMs from pretending to be others, where representors are.
    """

    def __init__(self, hardware: Hardware | str, nic: Nic, guard: Guards) -> None:
        self._prepared, self._nic, self._guard = hardware, nic, guard

    def claim(self, op: ops.ClaimFunction, grant: FunctionGrant) -> int | Failure:
        """Take a VF that nobody has.

        Args:
            op: checked.
            grant: what the configuration says of its network.

        Returns:
            Its MTU in bytes, or why not; `undo` undoes what was done then.
        """
        return self._tried(op.address, lambda: self._claim(op, grant))

    def bind(self, op: ops.BindFunction, port: Port | None, *, silent: bool = False) -> ops.FunctionMade | Failure:
        """Bind an endpoint's VF to what it is attached through, if it isn't, and give it to its owner.

        Args:
            op: checked.
            port: what a netdev that it gets is to be like; None: as it is.
            silent: whether the host says nothing by that, for a macvtap is to stand on it.
        """
        return self._tried(op.address, lambda: self._bind(op, port, silent=silent))

    def find_uplink(self, op: ops.BindFunction | ops.ChangeFunction) -> Uplink | Failure:
        """Give the netdev of an endpoint's VF, as what its macvtap stands on: sysfs says which it is, and no plan."""
        return self._tried(op.address, lambda: self._find_uplink(op))

    def change(self, op: ops.ChangeFunction, *, silent: bool = False) -> int | Failure:
        """Bring an endpoint's VF to what its port says; if that fails, back to what it was.

        Args:
            op: checked.
            silent: whether the host says nothing by its netdev, for a macvtap stands on it.

        Returns:
            Its MTU in bytes, or why not.
        """
        return self._tried(op.address, lambda: self._change(op, silent=silent))

    def find_representor(self, endpoint_id: str, address: str) -> Representor | Failure:
        """Find the representor of an endpoint's VF, whatever a plan says of it."""
        return self._tried(address, lambda: self._find_representor(endpoint_id, address))

    def release(self, endpoint_id: str, address: str) -> Failure | None:
        """Give a VF back, if it is this endpoint's (still).

        Returns:
            None, or why it is kept out of use.
        """
        if isinstance(self._prepared, str):
            return None  # without marks there is nothing that could be an endpoint's
        return self._tried(address, lambda: self._release(endpoint_id, address))

    def undo(self, claim: ops.ClaimFunction) -> Failure | None:
        """Give back the VF of a request that failed. If that fails as well, it is tried again when somebody wants the VF.

        Returns:
            None, or why it is kept out of use.
        """
        failure = self.release(claim.endpoint_id, claim.address)
        if failure is not None and isinstance(self._prepared, Hardware):
            self._prepared.stranded.add(claim.endpoint_id)
        return failure

    # --- steps

    def _claim(self, op: ops.ClaimFunction, grant: FunctionGrant) -> int:
        function = self._get_allowed(op.address, grant)
        with self._hardware.locks.of(function.pf_address):
            self._give_back_left(op)
            pf = self._teller.get_pf(function)
            _check_pf(pf, op.port)
            function = self._get(op.address)
            mark = self._hardware.marks.find(op.address)
            representor = self._representors.find_wanted(function, grant)
            reason = use.find_user(self._hardware, self._nic, function) if mark is None else f"endpoint {mark.endpoint_id} has it"
            if representor is not None:
                reason = reason or self._representors.find_user(representor)
            if reason:
                raise FunctionError(f"VF {op.address} is taken: {reason}", ops.TAKEN)
            before = self._teller.read(pf, function)
            override = self._hardware.bus.override(op.address)
            port = None if representor is None else self._nic.describe(representor)
            mark = Mark(op.endpoint_id, function.pf_address, function.driver, override, before, port)
            try:
                self._hardware.marks.create(op.address, mark)
            except FileExistsError as error:
                raise FunctionError(f"VF {op.address} is taken: another vifd has it", ops.TAKEN) from error
            if representor is not None:
                self._representors.mark(representor, op.endpoint_id)
            self._hardware.bus.unbind(op.address)  # what is bound to a driver learns of its MAC only when it is bound anew
            self._teller.tell(pf, function, told(mark, before, op.port))
            return op.port.mtu_bytes or pf.mtu_bytes

    def _bind(self, op: ops.BindFunction, port: Port | None, *, silent: bool) -> ops.FunctionMade:
        with self._own(op.endpoint_id, op.address) as (function, mark):
            pf = self._teller.get_pf(function)
            known = self._teller.read(pf, function)
            made = Binder(self._hardware, self._nic, mark).bind(function, op)
            self._teller.check(pf, function, known)  # a driver that begins with a VF may have it forget
            if made.ifname and port is not None:
                self._configure_netdev(made.ifname, pf, port, silent=silent)
            representor = "" if mark.representor is None else mark.representor.ifname
            return msgspec.structs.replace(made, representor=representor)

    def _find_representor(self, endpoint_id: str, address: str) -> Representor:
        with self._own(endpoint_id, address) as (function, mark):
            netdev = self._representors.get_own(function, mark)
            return Representor(netdev.ifindex, mark.representor.ifname if mark.representor is not None else netdev.ifname)

    def _find_uplink(self, op: ops.BindFunction | ops.ChangeFunction) -> Uplink:
        with self._own(op.endpoint_id, op.address) as (function, _):
            netdev = self._nic.find_netdev(function.ifname)
            if netdev is None or not self._hardware.inventory.shows(netdev.ifname, netdev.ifindex):
                words = f"VF {op.address} has no netdev in vifd's network namespace, on which its macvtap could stand"
                raise FunctionError(words, ops.NOT_READY, errno.ENODEV)
            return Uplink(netdev.ifname, netdev.ifindex, netdev.mtu_bytes, netdev.mac, netdev.up)

    def _change(self, op: ops.ChangeFunction, *, silent: bool) -> int:
        with self._own(op.endpoint_id, op.address) as (function, mark):
            pf = self._teller.get_pf(function)
            _check_pf(pf, op.port)
            try:
                self._bring(function, pf, mark, op.port, silent=silent)
            except FunctionError as error:
                if op.before is not None:
                    try:
                        self._bring(function, pf, mark, op.before, silent=silent)
                    except FunctionError as left:  # a check finds what is left of it
                        raise FunctionError(f"{error}; and it can't go back: {left}", ops.KERNEL, error.errno) from error
                raise
            return op.port.mtu_bytes or pf.mtu_bytes

    def _bring(self, function: Function, pf: Netdev, mark: Mark, port: Port, *, silent: bool) -> None:
        self._teller.tell(pf, function, told(mark, self._teller.read(pf, function), port))
        if function.ifname:
            self._configure_netdev(function.ifname, pf, port, silent=silent)

    def _configure_netdev(self, ifname: str, pf: Netdev, port: Port, *, silent: bool) -> None:
        netdev = self._nic.find_netdev(ifname)
        if netdev is None:
            raise FunctionError(f"netdev {ifname} went away", ops.KERNEL, errno.ENODEV)
        up, mtu_bytes = port.link_up is not False, port.mtu_bytes or pf.mtu_bytes
        reply = self._nic.configure(netdev, port.mac, mtu_bytes, up=up, silent=silent)
        if reply.errno:
            raise FunctionError(f"netdev {ifname} can't be set up: {reply.message}", ops.KERNEL, reply.errno)

    def _release(self, endpoint_id: str, address: str) -> None:
        mark = self._hardware.marks.find_of(address, endpoint_id)
        if mark is None:
            return
        with self._hardware.locks.of(mark.pf_address):
            if self._hardware.marks.find_of(address, endpoint_id) == mark:
                self._give_back(address, mark)

    def _give_back_left(self, op: ops.ClaimFunction) -> None:
        """Give a VF back first that is the endpoint's already, for it was taken away and is there anew; or that is stranded."""
        mark, stranded = self._hardware.marks.find(op.address), self._hardware.stranded
        if mark is not None and (mark.endpoint_id == op.endpoint_id or mark.endpoint_id in stranded):
            self._give_back(op.address, mark)
            stranded.discard(mark.endpoint_id)

    def _give_back(self, address: str, mark: Mark) -> None:
        """Make a VF as new: nobody's node, no driver of a VM's, reset, nothing known to its PF; then let its driver have it."""
        function = self._hardware.inventory.find(address)
        if function is not None and function.pf_address == mark.pf_address:
            try:
                self._clean(function, mark)
            except (FunctionError, OSError) as error:
                reason = str(error) if isinstance(error, FunctionError) else os.strerror(error.errno or 0)
                cause = error.cause if isinstance(error, FunctionError) else ops.KERNEL
                words = f"VF {address} can't be made as new: {reason}. It is kept out of use (quarantined), and vifd tries again"
                raise FunctionError(words, cause, error.errno or 0) from error
        self._hardware.marks.discard(address)

    def _clean(self, function: Function, mark: Mark) -> None:
        hardware, address = self._hardware, function.address
        self._representors.give_back(function, mark)  # first, so that what has the VF open still reaches nobody
        hardware.nodes.take_back(function)
        self._wait_until_closed(function)
        hardware.bus.unbind(address)
        hardware.bus.set_override(address, "")
        self._reset(address)
        pf = self._teller.get_pf(function)
        self._teller.forget(pf, function, mark)
        if mark.driver and hardware.bus.has_driver(mark.driver):
            hardware.bus.probe(address, mark.driver)
            if not wait_for(lambda: hardware.bus.driver(address) == mark.driver, hardware.patience.device):
                raise FunctionError(f"driver {mark.driver}, which it had before, doesn't take it")
        hardware.bus.set_override(address, mark.driver_override)

    def _wait_until_closed(self, function: Function) -> None:
        """Wait until no program has a VF open: to take it from vfio-pci would wait as long as one has, however long that is."""
        if not wait_for(lambda: not self._hardware.nodes.is_open(function), self._hardware.patience.close):
            raise FunctionError("a program has it open; end the VM that it is attached to", ops.NOT_READY, errno.EBUSY)

    def _reset(self, address: str) -> None:
        try:
            self._hardware.bus.reset(address)
        except OSError as error:
            words = f"it can't be reset: {os.strerror(error.errno or 0)}"
            raise FunctionError(words, ops.KERNEL, error.errno or 0) from error

    # --- finding

    @property
    def _hardware(self) -> Hardware:
        if isinstance(self._prepared, str):
            raise FunctionError(self._prepared, ops.NOT_READY)
        return self._prepared

    @property
    def _teller(self) -> Teller:
        return Teller(self._hardware, self._nic)

    @property
    def _representors(self) -> Representors:
        return Representors(self._hardware, self._nic, self._guard)

    @contextmanager
    def _own(self, endpoint_id: str, address: str) -> Iterator[tuple[Function, Mark]]:
        """Give a VF that is an endpoint's, which nobody else changes meanwhile.

        Raises:
            FunctionError: it isn't, or isn't there.
        """
        mark = self._hardware.marks.find_of(address, endpoint_id)
        if mark is not None:
            with self._hardware.locks.of(mark.pf_address):
                function = self._hardware.inventory.find(address)
                if function is not None and self._hardware.marks.find_of(address, endpoint_id) == mark:
                    yield function, mark
                    return
        raise FunctionError(f"VF {address} of endpoint {endpoint_id} is gone", ops.GONE, errno.ENODEV)

    def _get(self, address: str) -> Function:
        function = self._hardware.inventory.find(address)
        if function is None:
            raise FunctionError(f"VF {address} isn't there (any more)", ops.TAKEN, errno.ENODEV)
        return function

    def _get_allowed(self, address: str, grant: FunctionGrant) -> Function:
        """Find a VF, if the configuration lets its network use it: by sysfs's own links, whatever the plan says."""
        function = self._get(address)
        pfs = [self._hardware.inventory.find_pf(name) for name in grant.pfs]
        if function.pf_address not in [pf.address for pf in pfs if pf is not None] or not allows(grant, address):
            raise FunctionError(f"the configuration doesn't let this network use VF {address}", ops.REJECTED)
        return function

    def _tried(self, address: str, step: Callable[[], T]) -> T | Failure:
        """Run a step; give what it gives, or why it failed."""
        try:
            return step()
        except FunctionError as error:
            return error.failure
        except OSError as error:
            return Failure(ops.KERNEL, error.errno or 0, f"VF {address}: {os.strerror(error.errno or 0)}")


def _check_pf(pf: Netdev, port: Port) -> None:
    if not pf.up:
        raise FunctionError(f"PF {pf.ifname} is down; set it up", ops.NOT_READY)
    if port.mtu_bytes > pf.mtu_bytes:
        raise FunctionError(f"MTU {port.mtu_bytes} is more than PF {pf.ifname}'s {pf.mtu_bytes}", ops.NOT_READY)
