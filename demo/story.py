"""The demo's story: ask for an endpoint, look at it, give it back; then the same with a virtual machine on it."""

from __future__ import annotations

import json
import pwd
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from demo.stage import BRIDGE, HOST_ADDRESS, NETWORK, Stage, StageError, stop
from demo.terminal import Terminal
from tests.guest import image, machine

_COMMAND_TIMEOUT_S = 60.0
_ATTACH_TIMEOUT_S = 10.0
_GUEST_ENDS_TIMEOUT_S = 20.0


class Story:
    """Tells the story on a stage.

    Args:
        stage: Where it happens.
        terminal: Where it is written down.
    """

    def __init__(self, stage: Stage, terminal: Terminal) -> None:
        self._stage = stage
        self._terminal = terminal
        self._console: machine.Console | None = None

    @property
    def console(self) -> str:
        """What the virtual machine has said, for when something went wrong."""
        return self._console.text if self._console else ""

    def tell(self, guest: image.Image) -> None:
        """Tell it all.

        Raises:
            StageError: Something didn't go as it should.
            machine.ConsoleError: The virtual machine didn't.
        """
        self._start()
        self._endpoint_by_hand()
        self._show_nothing_left()
        self._virtual_machine(guest)
        self._show_nothing_left()

    def _start(self) -> None:
        self._terminal.heading(f"vifd starts in a network namespace of its own, {self._stage.namespace}")
        front = self._stage.start_vifd()
        self._terminal.output(self._stage.configuration.read_text())
        helpers = " and ".join(sorted({_user_of(child) for child in _children_of(front.pid)}))
        self._terminal.good(f"what clients talk to runs as {_user_of(front.pid)}, its helpers as {helpers}")

    def _endpoint_by_hand(self) -> None:
        user = self._stage.user
        self._terminal.heading(f"{user.pw_name} (uid {user.pw_uid}, no capability) asks for a network endpoint")
        self._run_vifctl("request", NETWORK)
        [endpoint] = self._endpoints()
        self._run_vifctl("list")
        self._terminal.say("The kernel's side: a tap on the bridge, and who may open it.")
        self._run_ip("-d", "link", "show", endpoint["tap"]["ifname"])
        self._terminal.heading("It gives the endpoint back")
        self._run_vifctl("release", endpoint["endpoint_id"])

    def _virtual_machine(self, guest: image.Image) -> None:
        self._terminal.heading("A virtual machine: vifctl run asks, and becomes QEMU with the open tap")
        accelerator = machine.find_accelerator(guest, self._stage.as_user)
        process = self._boot(guest, accelerator)
        [endpoint] = self._wait_until(lambda endpoints: [end["state"] for end in endpoints] == ["ENDPOINT_STATE_ACTIVE"])
        self._terminal.good(
            f"QEMU runs as {_user_of(process.pid)} and has the tap open; vifd saw its frames: the endpoint is active"
        )
        self._run_vifctl("list")
        self._run_vifctl("show", endpoint["endpoint_id"])
        self._run_ip("-d", "link", "show", endpoint["tap"]["ifname"])
        self._terminal.heading("The host pings the virtual machine")
        [address] = endpoint["port"]["addresses"]
        self._run_in_namespace("ping", "-c", "3", "-i", "0.2", "-W", "5", address)
        self._terminal.good(f"it answers at {address}, which it got by DHCP")
        self._power_off(process)

    def _boot(self, guest: image.Image, accelerator: str) -> subprocess.Popen[bytes]:
        qemu = machine.argv(guest, addresses={"eth0": "dhcp"}, accelerator=accelerator)
        device = ["-netdev", "tap,id=n0,fd={fd}", "-device", "virtio-net-pci,netdev=n0,mac={mac}"]
        command = ["run", NETWORK, "--", *qemu, *device]
        self._terminal.command(self._prompt, ["vifctl", *(_short(word) for word in command)])
        start_s = time.monotonic()
        process = self._stage.start(self._stage.vifctl(*command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._console = machine.Console(process)
        ready = self._console.wait_for(machine.READY, machine.BOOT_TIMEOUT_S)
        took = f"{time.monotonic() - start_s:.1f} s with {accelerator.upper()}"
        self._terminal.good(f"the virtual machine is up after {took}: {ready['addresses']}")
        return process

    def _power_off(self, process: subprocess.Popen[bytes]) -> None:
        self._terminal.heading("The virtual machine powers itself off, and vifd releases its endpoint")
        if process.stdin is not None:
            process.stdin.write(b"poweroff -f\n")
            process.stdin.flush()
        try:
            status = process.wait(_GUEST_ENDS_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise StageError("the virtual machine didn't power off") from None
        finally:
            stop(process)
        if status != 0:
            raise StageError(f"QEMU ended with exit status {status}")
        self._wait_until(lambda endpoints: not endpoints)

    def _show_nothing_left(self) -> None:
        self._run_vifctl("list")
        self._run_ip("-br", "link", "show")
        names = [
            link["ifname"] for link in json.loads(self._output(["ip", "-n", self._stage.namespace, "-json", "link", "show"]))
        ]
        if self._endpoints() or set(names) != {"lo", BRIDGE}:
            raise StageError(f"something is left behind: {', '.join(names)}")
        self._terminal.good(f"nothing is left but the network's bridge with the host's address, {HOST_ADDRESS}")

    @property
    def _prompt(self) -> str:
        return f"{self._stage.user.pw_name}$"

    def _run_vifctl(self, *arguments: str) -> None:
        self._terminal.command(self._prompt, ["vifctl", *arguments])
        self._terminal.output(self._output(self._stage.vifctl(*arguments)) or "(no endpoints)")

    def _run_ip(self, *arguments: str) -> None:
        command = ["ip", "-n", self._stage.namespace, *arguments]
        self._terminal.command("root#", command)
        self._terminal.output(self._output(command))

    def _run_in_namespace(self, *command: str) -> None:
        full = self._stage.in_namespace(command)
        self._terminal.command("root#", full)
        self._terminal.output(self._output(full))

    def _endpoints(self) -> list[dict[str, Any]]:
        endpoints: list[dict[str, Any]] = json.loads(self._output(self._stage.vifctl("--json", "list")))["endpoints"]
        return endpoints

    def _wait_until(self, condition: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + _ATTACH_TIMEOUT_S
        while not condition(endpoints := self._endpoints()):
            if time.monotonic() > deadline:
                raise StageError(f"the endpoint isn't as it should be: {endpoints}")
        return endpoints

    def _output(self, command: Sequence[str]) -> str:
        """Run a command to its end."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise StageError(f"exit status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout


def _short(word: str) -> str:
    """Leave out of a shown path where the checkout is."""
    checkout = str(Path(__file__).resolve().parents[1])
    return word.removeprefix(f"{checkout}/")


def _children_of(pid: int) -> list[int]:
    """Find the children of a process (proc(5), children)."""
    return [int(child) for child in Path("/proc", str(pid), "task", str(pid), "children").read_text().split()]


def _user_of(pid: int) -> str:
    return pwd.getpwuid(Path("/proc", str(pid)).stat().st_uid).pw_name
