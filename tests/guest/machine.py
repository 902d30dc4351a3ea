"""Run the guest in QEMU and talk to it over its serial console."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from tests.guest.image import Image

PROGRAM = "qemu-system-x86_64"
KVM = "/dev/kvm"
READY = r"GUEST-READY (?P<addresses>.*)"
# An emulated boot takes 4 s on a quiet machine with two CPUs
BOOT_TIMEOUT_S = 90.0

_MEMORY_MIB = 128
_KVM_TIMEOUT_S = 6.0


class ConsoleError(Exception):
    """The guest did not say what was waited for; the message ends with what it did say."""


def argv(image: Image, *, addresses: Mapping[str, str], accelerator: str = "tcg", cpus: int = 1) -> list[str]:
    """Say how QEMU starts the guest; the caller appends its network devices.

    Args:
        image: What to boot.
        addresses: What to give to each of the guest's interfaces: {"eth0": "10.0.0.2/24"}, or "dhcp" to let it ask.
        accelerator: "tcg", or "kvm" where `find_accelerator` says so.
        cpus: How many processors it has.
    """
    network = [f"vif.{name}={address}" for name, address in addresses.items()]
    return [
        *(PROGRAM, "-accel", accelerator, "-machine", "q35", "-cpu", "max" if accelerator == "kvm" else "qemu64"),
        *("-smp", str(cpus), "-m", str(_MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", " ".join(["console=ttyS0", "quiet", "panic=-1", *network])),
    ]


def find_accelerator(image: Image, run_as: Callable[[Sequence[str]], list[str]]) -> str:
    """Find out whether a guest really boots with KVM: a node that opens proves nothing.

    Args:
        image: What to boot.
        run_as: Turns a command into one that runs as the user who will run QEMU.
    """
    if subprocess.run(run_as(["test", "-r", KVM, "-a", "-w", KVM]), check=False).returncode != 0:
        return "tcg"
    pipe = subprocess.PIPE
    command = run_as(argv(image, addresses={}, accelerator="kvm"))
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        try:
            Console(process).wait_for(READY, _KVM_TIMEOUT_S)
        except ConsoleError:
            return "tcg"
        finally:
            process.kill()
    return "kvm"


@dataclass(frozen=True)
class Streams:
    """Both directions of a guest's console, where it isn't on its QEMU's pipes.

    Args:
        stdin: What the guest reads.
        stdout: What it says.
    """

    stdin: IO[bytes]
    stdout: IO[bytes]


class Console:
    """The serial console of a running guest.

    Args:
        process: QEMU, or what started it, with pipes as standard input and output and the console on them; or the console.
    """

    def __init__(self, process: subprocess.Popen[bytes] | Streams) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the process needs pipes as standard input and output")
        self._process = process
        self._input = process.stdin
        self._text = ""
        self._position = 0
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._read, args=(process.stdout,), name="console", daemon=True).start()

    @property
    def text(self) -> str:
        """All that the guest has said."""
        with self._changed:
            return self._text

    def wait_for(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait for a line that matches; the next wait begins after it.

        Raises:
            ConsoleError: It did not come in time, or the guest ended.
        """
        regex = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                # only whole lines: the rest of one may be on its way
                match = regex.search(self._text, self._position, self._text.rfind("\n") + 1)
                if match:
                    self._position = match.end()
                    return match
                self._wait_for_more(pattern, deadline)

    def run(self, command: str, timeout_s: float = 30.0) -> tuple[int, str]:
        """Run a shell command in the guest.

        Returns:
            Its exit status, and what it printed.
        """
        with self._changed:
            start = self._position = len(self._text)
        self._input.write(command.encode() + b"\n")
        self._input.flush()
        done = self.wait_for(r"GUEST-DONE (?P<status>\d+)", timeout_s)
        return int(done["status"]), self.text[start : done.start()]

    def _wait_for_more(self, pattern: str, deadline: float) -> None:
        remaining_s = deadline - time.monotonic()
        if self._closed or remaining_s <= 0:
            why = "ended" if self._closed else "said no more in time"
            raise ConsoleError(f"the guest {why} before {pattern!r}; it said:\n{self._text[-4000:] or '(nothing)'}")
        self._changed.wait(remaining_s)

    def _read(self, stream: IO[bytes]) -> None:
        # the descriptor, not the stream: a buffered read would wait for a full buffer
        while chunk := self._read_some(stream):
            self._append(chunk.decode(errors="replace").replace("\r", ""))
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @staticmethod
    def _read_some(stream: IO[bytes]) -> bytes:
        try:
            return os.read(stream.fileno(), 65536)
        except (OSError, ValueError):  # closed by the owner of the process
            return b""

    def _append(self, text: str) -> None:
        with self._changed:
            self._text += text
            self._changed.notify_all()
