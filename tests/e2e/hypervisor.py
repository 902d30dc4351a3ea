"""The tests' hand on the hypervisor driver (`driver.py`) that runs as an ordinary user."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from google.protobuf import json_format

from tests.guest import machine, unprivileged
from tests.guest.image import Image
from vifclient.messages import PortSpec

_DRIVER = Path(__file__).with_name("driver.py")
_TIMEOUT_S = 30.0


class DriverError(Exception):
    """The driver ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Guest:
    """A running virtual machine.

    Args:
        process: Its QEMU.
        console: Its serial console, past its first line.
    """

    process: subprocess.Popen[bytes]
    console: machine.Console

    def power_off(self) -> None:
        """Let it end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"poweroff -f\n")
        self.process.stdin.flush()
        assert self.process.wait(_TIMEOUT_S) == 0


@dataclass(frozen=True)
class Hypervisor:
    """A hypervisor driver.

    Args:
        user: Who it runs as.
        socket: vifd's socket.
        namespace: The network namespace that vifd works in; the driver is there only to open a device by its name.
        image: What its virtual machines boot.
    """

    user: unprivileged.User
    socket: Path
    namespace: str
    image: Image

    def request(self, network: str, *, queues: int = 1, endpoint_id: str = "", port: PortSpec | None = None) -> str:
        """Ask for an endpoint, without an id for a new one, and return its id."""
        endpoint_id = endpoint_id or str(uuid4())
        self._run("request", network, endpoint_id, str(queues), json_format.MessageToJson(port or PortSpec()))
        return endpoint_id

    def release(self, endpoint_id: str) -> None:
        """Give it back."""
        self._run("release", endpoint_id)

    @contextmanager
    def boot(
        self, endpoint_id: str, address: str, *, by_name: bool = False, cpus: int = 1, qemu: Sequence[str] = ()
    ) -> Iterator[Guest]:
        """Boot a virtual machine on an endpoint, and end it at the latest with the block.

        Args:
            endpoint_id: the endpoint.
            address: the guest's.
            by_name: whether QEMU opens the endpoint's tap by its name.
            cpus: how many processors the guest has.
            qemu: more arguments of QEMU.

        Raises:
            DriverError: QEMU ended before the machine was up.
        """
        argv = [*machine.argv(self.image, addresses={"eth0": address}, cpus=cpus), *qemu]
        with self._started(self._boot_command(endpoint_id, argv, by_name=by_name)) as process:
            yield Guest(process, _wait_until_up(process))

    @contextmanager
    def receive(self, endpoint_id: str, address: str, *, qemu: Sequence[str]) -> Iterator[Guest]:
        """Start a QEMU on an endpoint that waits for a virtual machine of another host, and end it at the latest with the block.

        Args:
            endpoint_id: the endpoint.
            address: what the guest was booted with.
            qemu: more arguments of QEMU: where it waits.
        """
        argv = [*machine.argv(self.image, addresses={"eth0": address}), *qemu]
        with self._started(self._boot_command(endpoint_id, argv, by_name=False)) as process:
            yield Guest(process, machine.Console(process))

    def open_by_name(self, ifname: str) -> None:
        """Let QEMU open a tap by its name, without asking vifd about it.

        Raises:
            DriverError: It couldn't.
        """
        qemu = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
        tap = ["-netdev", f"tap,id=net0,ifname={ifname},script=no,downscript=no"]
        self._finish(self._in_namespace(unprivileged.command([*qemu, *tap], user=self.user, open_tun=True)))

    @contextmanager
    def _started(self, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                yield process
            finally:
                process.kill()

    def _boot_command(self, endpoint_id: str, qemu: list[str], *, by_name: bool) -> list[str]:
        command = self._command("boot", endpoint_id, "name" if by_name else "fd", *qemu, open_tun=by_name)
        return self._in_namespace(command) if by_name else command

    def _in_namespace(self, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *command]

    def _run(self, *arguments: str) -> None:
        self._finish(self._command(*arguments))

    def _finish(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise DriverError(done.stderr.strip())

    def _command(self, *arguments: str, open_tun: bool = False) -> list[str]:
        program = [sys.executable, str(_DRIVER), str(self.socket), *arguments]
        return unprivileged.command(program, user=self.user, open_tun=open_tun)


def _wait_until_up(process: subprocess.Popen[bytes]) -> machine.Console:
    console = machine.Console(process)
    try:
        console.wait_for(machine.READY, machine.BOOT_TIMEOUT_S)
    except machine.ConsoleError as error:
        process.kill()
        assert process.stderr is not None
        raise DriverError(process.stderr.read().decode(errors="replace") or str(error)) from error
    return console
