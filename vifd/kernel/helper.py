"""The privileged helper: a fork of vifd that keeps CAP_NET_ADMIN and does what plans say, and nothing else.

`start` forks it before grpc or any thread exists. The front process calls the entry points below; oslo.privsep carries the calls.
What they take comes from a process that strangers talk to: bytes are decoded by type, every plan is checked against the
configuration that the helper has read itself, and no argument is a path, an argv or a device that isn't derived from an
endpoint's id.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  the helper takes no module in after the fork, and this one is taken in lazily
import errno
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, NamedTuple, cast

from oslo_config import cfg
from oslo_privsep import daemon, priv_context

from vifd import privileges
from vifd.errors import StartError
from vifd.kernel import equipping, limits, names, ops, rulesetmonitor
from vifd.kernel.announcing import open_packet_socket
from vifd.kernel.authority import Authority
from vifd.kernel.calls import Calls
from vifd.kernel.executor import Executor, Tools
from vifd.kernel.netlink import RtnlSocket
from vifd.kernel.nft.devices import open_guards
from vifd.kernel.nft.nat import open_nat_table
from vifd.kernel.vdpa.netlink import GenericSocket

_PLANS_A_CALL = 512
_TOKEN_BYTES = 16
_MAX_QUEUES = 253  # SCM_MAX_FD, net/scm.h: as many descriptors as one message carries
_START_SECONDS = 20
_DID_NOT_START = "the privileged helper did not start; its error stands above"

context = priv_context.PrivContext(
    "vifd.kernel",
    cfg_section="vifd_privsep",
    pypath=f"{__name__}.context",
    capabilities=equipping.CAPABILITIES,
)


class _Helper:
    """What the helper has beside its entry points: set before the fork, so that no call can set it."""

    def __init__(
        self,
        load: Callable[[], tuple[str, Authority]],
        fd_channel: socket.socket,
        device_dir: Path,
        vdpa: GenericSocket | None,
        *,
        owned: bool,
    ) -> None:
        self.load, self.fd_channel = load, fd_channel
        self.authority: Authority = load()[1]
        try:
            guard = open_guards(owned=owned, direct=equipping.has_macvtaps(self.authority))
            nat = open_nat_table(owned=owned)
            support = _probe_limits()
        except OSError as error:
            owner = (
                "; another process owns it: is there a second vifd in this network namespace?"
                if error.errno == errno.EPERM
                else ""
            )
            raise StartError(f"vifd's tables of nftables can't be made: {error.strerror or error}{owner}") from error
        nodes = equipping.prepare_nodes(device_dir, self.authority)
        hardware = equipping.prepare_hardware(device_dir, self.authority)
        devices = equipping.prepare_vdpa(vdpa, device_dir, self.authority)
        self.tools = Tools(guard, nat, support, nodes, open_packet_socket(), hardware, devices)
        self.per_thread = threading.local()

    @property
    def executor(self) -> Executor:
        """This thread's executor: a netlink socket serves one thread at a time."""
        if not hasattr(self.per_thread, "executor"):
            self.per_thread.executor = Executor(lambda: self.authority, self.tools)
        return cast("Executor", self.per_thread.executor)


def _probe_limits() -> limits.Support:
    rtnl = RtnlSocket()
    try:
        return limits.probe(rtnl)
    finally:
        rtnl.close()


_helper: _Helper | None = None


class Channels(NamedTuple):
    """The front process's ends of what it shares with the helper beside oslo.privsep's own.

    Args:
        fds: where `open_queues` sends descriptors.
        lifeline: reads end-of-file when the helper is dead.
        rulesets: tells of changes of the guard's table by others; None: the kernel has no nftables.
        support: how this kernel keeps limits.
        card_calls: how many calls about VFs and vDPA devices it works on at once.
    """

    fds: socket.socket
    lifeline: int
    rulesets: socket.socket | None
    support: limits.Support
    card_calls: int


def start(
    load: Callable[[], tuple[str, Authority]],
    device_dir: Path,
    vdpa: GenericSocket | None = None,
    *,
    own_tables: bool = True,
) -> Channels:
    """Fork the helper. Call it as root, before any thread exists; drop the privileges after it.

    Args:
        load: reads the configuration; gives its text, and what it lets the helper touch. The helper calls it again on `reload`.
        device_dir: where device nodes are made, if there are direct networks.
        vdpa: what the kernel is told of vDPA devices by; None: there are none.
        own_tables: whether the guard's table is to be the helper's own, where the kernel can.

    Returns:
        What the front process shares with it.

    Raises:
        StartError: the guard's table can't be made, or the helper did not start.
    """
    global _helper  # noqa: PLW0603  the entry points are functions, and oslo.privsep finds them by name
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lifeline, held = os.pipe2(os.O_CLOEXEC)
    _helper = _Helper(load, back, device_dir, vdpa, owned=own_tables)
    tools = _helper.tools
    cfg.CONF.set_override("capabilities", equipping.needed_capabilities(tools), group=context.cfg_section)
    port_id = tools.guard.port_id
    rulesets = rulesetmonitor.listen((port_id, tools.nat.port_id)) if port_id else None
    cfg.CONF.set_override("thread_pool_size", equipping.needed_threads(_helper.authority), group=context.cfg_section)
    os.register_at_fork(after_in_child=_Fork(front, lifeline, rulesets))
    with _watched(_START_SECONDS):
        try:
            with _without_return():
                context.start(priv_context.Method.FORK)
        except daemon.FailedToDropPrivileges as error:  # its end was heard of before its death
            raise StartError(_DID_NOT_START) from error
    back.close()
    os.close(held)
    tools.close()
    return Channels(front, lifeline, rulesets, tools.support, equipping.card_calls(_helper.authority))


@contextmanager
def _without_return() -> Iterator[None]:
    """Let a child that is forked in this block end there: what the front does next, and tidies up, is none of the helper's."""
    front = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() == front:
            raise
        if not isinstance(error, ConnectionError):  # that one: the front was killed before it had read an answer
            traceback.print_exc()
        os._exit(1)


class _ExpiredError(BaseException):
    """The start took too long, or the helper died. No Exception: the libraries that it interrupts would make another of it."""


@contextmanager
def _watched(seconds: int) -> Iterator[None]:
    """Raise when a child dies, or after some seconds: oslo.privsep waits for ever for a helper that died at its first step."""

    def expire(*_: object) -> None:
        raise _ExpiredError

    before = {number: signal.signal(number, expire) for number in (signal.SIGALRM, signal.SIGCHLD)}
    signal.alarm(seconds)
    try:
        try:
            yield
        finally:
            signal.alarm(0)
            for number, handler in before.items():
                signal.signal(number, handler)
    except _ExpiredError:  # perhaps only just now
        raise StartError(_DID_NOT_START) from None


def calls(on_lost: Callable[[str], None]) -> Calls:
    """Give the entry points as coroutines, once the helper is started.

    Args:
        on_lost: see Calls.
    """
    return Calls(context, __name__, on_lost)


def stop() -> None:
    """End the helper, and wait until it has closed its side."""
    context.stop()


class _Fork:
    """What the child does first, once: it lets go of the front's ends, takes no new module in, and gives up gaining privileges.

    systemd and a terminal signal all processes at once; the helper leaves when the front process has, for that still needs it.
    """

    def __init__(self, front: socket.socket, lifeline: int, rulesets: socket.socket | None) -> None:
        self._front: socket.socket | None = front
        self._lifeline, self._rulesets = lifeline, rulesets
        self._parent = os.getpid()

    def __call__(self) -> None:
        if self._front is not None and os.getppid() == self._parent:
            self._front.close()
            os.close(self._lifeline)
            if self._rulesets is not None:
                self._rulesets.close()
            self._front = None
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            privileges.refuse_new()
            _seal_imports()


def _seal_imports() -> None:
    """Take no further module in: oslo.privsep imports whatever module a call's name begins with, before it looks what that is."""
    sys.meta_path[:] = [_NoImports()]


class _NoImports(MetaPathFinder):
    """A finder that refuses, so that even a module that nobody would miss isn't run by a stranger's wish."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:  # noqa: ARG002  the import system's signature
        """Refuse."""
        raise ImportError(f"the privileged helper imports nothing: {name}")


def _get() -> _Helper:
    if _helper is None:
        raise RuntimeError("the helper isn't started")
    return _helper


@context.entrypoint
def apply(request: bytes) -> bytes:
    """Make groups of plans, each all or none.

    Needs CAP_NET_ADMIN: it makes taps and bridges (TUNSETIFF, RTM_SETLINK), limits them (RTM_NEWQDISC) and guards them
    (NFT_MSG_NEWSETELEM); and it gives taps back to their owners (TUNSETOWNER through a queue of its own, see `owner`): nobody
    else may open a tap that its holder gave away. Who sends plans could as well delete a tap and have it made for another uid.

    Of VFs it needs CAP_NET_ADMIN to tell their PFs what they are like (IFLA_VFINFO_LIST), uid 0 to bind them (sysfs:
    driver_override, unbind, drivers_probe), and CAP_CHOWN to give their VFIO nodes to their owners; it takes only VFs of PFs that
    the configuration names, that nobody else has.

    Of vDPA devices it needs CAP_NET_ADMIN to make them (VDPA_CMD_DEV_NEW), on management devices that the configuration names,
    CAP_CHOWN to give their nodes to their owners, and uid 0 to bind one that another driver has taken (sysfs: driver_override).

    Args:
        request: an encoded `ops.ApplyRequest`.

    Returns:
        An encoded `ops.ApplyAnswer`.
    """
    groups = ops.decode_apply(request).groups
    if sum(map(len, groups)) > _PLANS_A_CALL:
        raise ValueError("too many plans in a call")
    return ops.encode(_get().executor.apply(groups))


@context.entrypoint
def revert(request: bytes) -> bytes:
    """Delete the devices of plans. Needs CAP_NET_ADMIN: it deletes taps (RTM_DELLINK), only those with the endpoint's mark.

    VFs it gives back, only those that are marked for the endpoint: with what `apply` takes, and uid 0 to reset them (sysfs). vDPA
    devices it deletes, likewise (VDPA_CMD_DEV_DEL).

    Args:
        request: an encoded `ops.RevertRequest`.

    Returns:
        An encoded `ops.RevertAnswer`.
    """
    plans = ops.decode_revert(request).plans
    if len(plans) > _PLANS_A_CALL:
        raise ValueError("too many plans in a call")
    return ops.encode(_get().executor.revert(plans))


@context.entrypoint
def check(request: bytes) -> bytes:
    """Compare what plans have made with what is there. Needs CAP_NET_ADMIN to read nftables. It changes nothing.

    Args:
        request: an encoded `ops.CheckRequest`.

    Returns:
        For each plan an encoded list of `Drift`.
    """
    plans = ops.decode_check(request).plans
    if len(plans) > _PLANS_A_CALL:
        raise ValueError("too many plans in a call")
    return ops.encode(_get().executor.check(plans))


@context.entrypoint
def announce(request: bytes) -> list[str]:
    """Announce VMs that run here now, out of their networks' uplinks.

    Needs a packet socket that was opened before the fork, for the frames have the VM's MAC as their source, and no capability. It
    receives nothing. What is sent is made here, for devices that are there with their endpoint's mark and MAC.

    Args:
        request: an encoded `ops.AnnounceRequest`.

    Returns:
        For each plan, why its VM couldn't be announced, or an empty text.
    """
    plans = ops.decode_announce(request).plans
    if len(plans) > _PLANS_A_CALL:
        raise ValueError("too many plans in a call")
    return _get().executor.announce(plans)


@context.entrypoint
def restore_guard() -> bool:
    """Put the tables of nftables back as they were, if somebody has changed them. Needs CAP_NET_ADMIN to write nftables.

    It takes nothing from the caller: what is put back is what the helper has put there before.

    Returns:
        Whether somebody had changed one.
    """
    return _get().executor.restore_guard()


@context.entrypoint
def inspect(endpoint_ids: tuple[str, ...]) -> bytes:
    """Tell what is there of endpoints' devices; with no id, of every device with an endpoint's mark. It changes nothing.

    Returns:
        An encoded list of `ops.Device`.
    """
    executor = _get().executor
    return ops.encode(executor.inspect(endpoint_ids) if endpoint_ids else executor.find_marked())


@context.entrypoint
def open_queues(endpoint_id: str, count: int, vnet_hdr: bool, token: bytes) -> int:
    """Open queues of an endpoint's tap or macvtap and send them over the fd channel, the token with them.

    Needs CAP_NET_ADMIN: only then a tap opens for somebody who isn't its owner; and CAP_MKNOD, to open a macvtap.

    Args:
        endpoint_id: whose device.
        count: how many queues, 1 to 253.
        vnet_hdr: whether frames of a macvtap carry a virtio-net header.
        token: what the front process knows the packet by.

    Returns:
        0, or the errno.
    """
    if not names.is_endpoint_id(endpoint_id) or not 1 <= count <= _MAX_QUEUES or len(token) != _TOKEN_BYTES:
        raise ValueError("bad arguments")
    try:
        fds = _get().executor.open_queues(endpoint_id, count, vnet_hdr=vnet_hdr is True)
    except OSError as error:
        return error.errno or -1
    try:
        socket.send_fds(_get().fd_channel, [token], fds)
    except OSError as error:  # ETOOMANYREFS: root has too many on their way
        return error.errno or -1
    finally:
        for fd in fds:
            os.close(fd)
    return 0


@context.entrypoint
def reload() -> tuple[str, dict[str, str], dict[str, str]]:
    """Read the configuration again and bring the networks' bridges and their NAT to it.

    Needs CAP_NET_ADMIN to make them, and to let the host forward (/proc/sys/net); and uid 0 to make a PF's VFs where it has none
    (sysfs: sriov_numvfs).

    Returns:
        The configuration's text, which the front process may not be able to read; by network, why nothing can be made on it, or
        by "" what is wrong with the configuration, which then stays as it was; and by network, what else isn't as configured.
    """
    helper = _get()
    try:
        text, helper.authority = helper.load()
    except StartError as error:
        return "", {"": str(error)}, {}
    return text, helper.executor.prepare(), helper.executor.remarks
