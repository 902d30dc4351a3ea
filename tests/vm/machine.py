"""The machine: QEMU's emulator, an IOMMU, two network cards with SR-IOV, and the host's files, which it can't change.

What it has to do, and what came of it, is in a directory that both sides may write (`Job`).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import click

from tests.guest import initramfs
from tests.vm.emulator import Emulator
from tests.vm.linux import Linux

#: What `Job.folder` is inside.
INSIDE = Path("/run/job")
#: What `Job.shared` is inside.
SHARED = Path("/run/shared")
#: The MAC addresses of the network cards, which are on one wire.
CARDS = ("52:54:00:0a:00:01", "52:54:00:0a:01:01")
# It takes 10 s. On a machine with much else to do it once and again doesn't come up: its clock is lost while Linux looks for one.
BOOT_TIMEOUT_S = 120.0
_BOOTS = 3
_INIT, _START = (Path(__file__).with_name(name) for name in ("init", "start"))
# All of it lies below 4 GiB, and so do the cards' registers then: QEMU 10.0 puts those of virtual functions at the lower half of
# an address, where their driver doesn't find them, and they never get carrier.
_MEMORY_MIB = 2560
# Debian's kernel does for security what only takes an emulator's time
_KERNEL_ARGUMENTS = (
    "console=ttyS0 loglevel=4 panic=-1 net.ifnames=0 intel_iommu=on iommu=pt mitigations=off nokaslr norandmaps init_on_alloc=0 "
    "randomize_kstack_offset=off transparent_hugepage=always apparmor=0 selinux=0 audit=0 cryptomgr.notests nowatchdog "
    "tsc=reliable no_timer_check random.trust_cpu=on"
)
# without what makes a real one faster and an emulated one slower: copies byte by byte, and a protection that each of them lifts
_CPU = "max,la57=off,erms=off,fsrm=off,smap=off"
_POLL_S = 0.2


class MachineError(Exception):
    """The machine didn't do its job; the message says how far it came, and ends with the kernel's console."""


@dataclass(frozen=True)
class Job:
    """What the machine is to do.

    Args:
        folder: Shared with it; it is `INSIDE` there.
        command: The program and its arguments, run by root.
        directory: Where it runs.
        environment: What it has in its environment beside the ordinary.
        interactive: Whether it reads this process's standard input, and finds a terminal.
        shared: What it shares with other machines as well.
    """

    folder: Path
    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    interactive: bool = False
    shared: Path | None = None

    @property
    def console(self) -> str:
        """All that the kernel has said."""
        path = self.folder / "console"
        return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""

    @property
    def has_started(self) -> bool:
        """Whether the machine has its files."""
        return (self.folder / "started").exists()

    @property
    def status(self) -> int | None:
        """The command's exit status; None: it hasn't ended."""
        path = self.folder / "status"
        text = path.read_text().strip() if path.exists() else ""
        return int(text) if text else None

    def write(self, linux: Linux) -> None:
        """Put everything in the folder that the machine needs."""
        settings = {
            "release": linux.release,
            "modules": str(linux.modules),
            "terminal": "yes" if self.interactive else "",
            "shared": str(SHARED) if self.shared else "",
        }
        assignments = [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        (self.folder / "start").write_bytes(_START.read_bytes())
        (self.folder / "settings").write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()))
        (self.folder / "command").write_text(
            "\n".join([*assignments, f"cd {shlex.quote(str(self.directory))} || exit", f"exec {shlex.join(self.command)}", ""])
        )
        (self.folder / "initramfs").write_bytes(pack_initramfs(linux))


def pack_initramfs(linux: Linux) -> bytes:
    """Pack the first file system: busybox, what mounts the host's files, and the modules for that."""
    modules = linux.first_modules()
    places = ("bin", "dev", "host", "layer", "modules", "proc", "root", "sys")
    return initramfs.pack(
        [
            *(initramfs.directory(path) for path in places),
            initramfs.program("bin/busybox", linux.busybox.read_bytes()),
            initramfs.program("init", _INIT.read_bytes()),
            initramfs.file("modules/order", "\n".join(path.name for path in modules).encode()),
            *(initramfs.file(f"modules/{path.name}", path.read_bytes()) for path in modules),
        ]
    )


def argv(emulator: Emulator, linux: Linux, job: Job, cpus: int) -> list[str]:
    """Say how QEMU starts the machine.

    Args:
        emulator: The QEMU.
        linux: What it boots.
        job: What it does.
        cpus: How many processors it has.
    """
    return [
        *(*emulator.argv, "-accel", "tcg,thread=multi,tb-size=1024", "-machine", "q35", "-cpu", _CPU),
        *("-smp", str(cpus), "-m", str(_MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-kernel", str(linux.vmlinux), "-initrd", str(job.folder / "initramfs"), "-append", _KERNEL_ARGUMENTS),
        *("-serial", f"file:{job.folder / 'console'}"),
        *("-device", "intel-iommu,intremap=on"),
        *_share("host", Path("/"), "readonly=on,multidevs=remap"),
        *_share("job", job.folder, "readonly=off"),
        *(_share("shared", job.shared, "readonly=off") if job.shared else ()),
        # what is said and read inside is this process's standard output and input
        *("-chardev", "stdio,id=out,signal=off", "-device", "virtio-serial-pci"),
        *("-device", "virtconsole,chardev=out" if job.interactive else "virtserialport,chardev=out,name=out"),
        *(part for number, mac in enumerate(CARDS) for part in _card(number, mac)),
    ]


def _share(tag: str, path: Path, options: str) -> list[str]:
    # QEMU takes a comma for the end of a value unless it is doubled
    quoted = str(path).replace(",", ",,")
    return [
        *("-fsdev", f"local,id={tag},path={quoted},security_model=none,{options}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]


def _card(number: int, mac: str) -> list[str]:
    return [
        *("-netdev", f"hubport,id=wire{number},hubid=0"),
        *("-device", f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1}"),
        *("-device", f"igb,bus=port{number},netdev=wire{number},mac={mac}"),
    ]


@contextlib.contextmanager
def job_folder() -> Iterator[Path]:
    """Give a directory for a job. It can be used as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="vifd-vm-") as folder:
        yield Path(folder)


def run(emulator: Emulator, linux: Linux, job: Job, *, cpus: int, timeout_s: float) -> int:
    """Boot the machine, let it do its job, and give the command's exit status.

    What the command says appears on this process's standard output while it says it, line by line.

    Args:
        emulator: The QEMU.
        linux: What it boots.
        job: What it does.
        cpus: How many processors it has.
        timeout_s: How long all of it may take.

    Raises:
        MachineError: It didn't boot, died, or wasn't done in time.
    """
    job.write(linux)
    for _ in range(_BOOTS):
        why = _boot(emulator, linux, job, cpus, timeout_s)
        if job.has_started:
            break
    status = job.status
    if status is None:
        errors = (job.folder / "errors").read_text(errors="replace")
        raise MachineError(f"{why}\n{errors}--- its kernel's console:\n{job.console[-8000:]}")
    return status


def _boot(emulator: Emulator, linux: Linux, job: Job, cpus: int, timeout_s: float) -> str:
    """Run the machine once; say what is wrong if there is no exit status."""
    start_s = time.monotonic()
    # a pipe into which nobody writes: at the end of its input, QEMU takes the port for unplugged
    pipe = None if job.interactive else subprocess.PIPE
    command, environment = argv(emulator, linux, job, cpus), os.environ | emulator.environment
    with (
        (job.folder / "errors").open("wb") as errors,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors) as process,
        _copied(process.stdout),
    ):
        try:
            return _wait(process, job, start_s, timeout_s)
        finally:
            process.kill()


@contextlib.contextmanager
def _copied(said: IO[bytes] | None) -> Iterator[None]:
    """Have what is said written to this process's standard output, each line when it is whole: machines may speak at once."""

    def copy() -> None:
        for line in said or ():
            click.echo(line, nl=False)

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _wait(process: subprocess.Popen[bytes], job: Job, start_s: float, timeout_s: float) -> str:
    """Wait until QEMU ends, or for as long as it may take; say what is wrong if there is no exit status."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
            return f"the machine ended (QEMU's exit status: {process.returncode}) before its command did"
        passed_s = time.monotonic() - start_s
        if not job.has_started and passed_s > BOOT_TIMEOUT_S:
            return f"the machine didn't boot in {BOOT_TIMEOUT_S:.0f} s"
        if passed_s > timeout_s:
            return f"the machine wasn't done in {timeout_s / 60:.0f} minutes; --minutes allows it more"
