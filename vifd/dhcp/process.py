"""A dnsmasq as a child process: started as its own user with what it needs, told things by signals, and ended."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from vifd import privileges
from vifd.dhcp import dnsmasq
from vifd.dhcp.dnsmasq import Files
from vifd.dhcp.network import DhcpNetwork, IPv4Or6
from vifd.errors import StartError

_DHCP_PORT = 67
_IPV6_ADDRESSES = Path("/proc/self/net/if_inet6")  # those too that the kernel still looks for duplicates of
_END_SECONDS = 2.0
_OUTPUT_BYTES = 1 << 16
_IGNORED_BY_THE_SUPERVISOR = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class LaunchError(Exception):
    """A server can't be started now; its text says why."""


class Process:
    """A running dnsmasq.

    Args:
        child: the child.
        output: what it logs; is closed at its end.
    """

    def __init__(self, child: subprocess.Popen[bytes], output: int) -> None:
        self._child, self.output = child, output
        self.pid = child.pid
        #: Readable when it has ended.
        self.pidfd = os.pidfd_open(child.pid)
        os.set_blocking(output, False)

    def read(self) -> bytes | None:
        """Read what it has logged; None: nothing now, empty: it logs no more."""
        try:
            return os.read(self.output, _OUTPUT_BYTES)
        except BlockingIOError:
            return None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def end(self) -> None:
        """End it, gently if it lets us, and forget it."""
        self.signal(signal.SIGTERM)
        if not select.select([self.pidfd], [], [], _END_SECONDS)[0]:
            self.signal(signal.SIGKILL)
        self.reap()

    def reap(self) -> int:
        """Forget it when it has ended, and give its exit status, or a signal's number with a minus."""
        status = self._child.wait()
        os.close(self.pidfd)
        os.close(self.output)
        return status


def launch(network: str, serving: DhcpNetwork, files: Files, user: privileges.User | None) -> Process:
    """Start a network's dnsmasq.

    Args:
        network: the network's name.
        serving: what the configuration says of it.
        files: where it has its files.
        user: whom it runs as; None: this host has no such user.

    Raises:
        LaunchError: it can't be started now.
    """
    program = shutil.which("dnsmasq", path=dnsmasq.SEARCH_PATH)
    if program is None:
        raise LaunchError("dnsmasq isn't installed, which dhcp = true needs")
    if user is None:
        raise LaunchError("this host has no user that DHCP servers may run as; make it, or set daemon.dhcp_user")
    if is_served(serving.bridge):
        raise LaunchError(dnsmasq.another_server(serving.bridge))
    if missing := find_missing_address(serving):
        raise LaunchError(
            f"bridge {serving.bridge} hasn't the address {missing}; vifd gives addresses only to bridges of its own"
        )
    parent, needed = os.getpid(), dnsmasq.capabilities(serving)

    def become() -> None:
        for number in _IGNORED_BY_THE_SUPERVISOR:
            signal.signal(number, signal.SIG_DFL)
        privileges.become(user, needed, parent)

    output, log = os.pipe2(os.O_CLOEXEC)
    try:
        child = subprocess.Popen(  # noqa: S603  of the configuration alone
            dnsmasq.argv(program, network, serving, files),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            env={"LC_ALL": "C", "PATH": dnsmasq.SEARCH_PATH},
            umask=0o022,
            start_new_session=True,
            preexec_fn=become,  # noqa: PLW1509  the supervisor has one thread
        )
    except (OSError, StartError, subprocess.SubprocessError) as error:
        os.close(output)
        raise LaunchError(f"dnsmasq can't be started: {error}") from error
    finally:
        os.close(log)
    return Process(child, output)


def is_served(bridge: str) -> bool:
    """Tell whether somebody has the DHCP port on this very bridge.

    dnsmasq itself doesn't notice another dnsmasq: both say that they share the port (SO_REUSEADDR). Somebody who has the port
    on every device is dnsmasq's to judge: it may be one that shares it, and serves other devices.
    """
    return not _is_free(bridge) and _is_free("lo")


def find_missing_address(serving: DhcpNetwork) -> IPv4Or6 | None:
    """Give one of a network's addresses that this host hasn't: on somebody else's bridge, or before there is any."""
    present = {line.split()[0] for line in _IPV6_ADDRESSES.read_text().splitlines()} if _IPV6_ADDRESSES.exists() else set()
    for interface in serving.interfaces:
        if interface.version == 6 and interface.ip.packed.hex() not in present:
            return interface.ip
        if interface.version == 4:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                try:
                    probe.bind((str(interface.ip), 0))
                except OSError as error:
                    if error.errno == errno.EADDRNOTAVAIL:
                        return interface.ip
                    raise LaunchError(f"can't look for {interface.ip}: {error.strerror}") from error
    return None


def _is_free(device: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            probe.bind(("", _DHCP_PORT))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True
