"""A QEMU that has `igb`, a network card with SR-IOV: the host's own if it is new enough (8.0), else an unpacked one.

The unpacked one runs from the cache with its own firmware, and with those libraries that the host lacks.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.guest import packages
from tests.guest.packages import PackageError
from tests.vm.apt import Apt

PROGRAM = "qemu-system-x86_64"
_PACKAGE = "qemu-system-x86"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Emulator:
    """How QEMU is started.

    Args:
        argv: The program, and where its firmware is.
        environment: What its environment has in addition.
    """

    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_unpacked(self) -> bool:
        """Whether it isn't this host's own."""
        return self.argv[0] != PROGRAM

    def works(self) -> bool:
        """Tell whether it starts here and has the network card."""
        environment = os.environ | self.environment
        try:
            done = subprocess.run([*self.argv, "-device", "igb,help"], env=environment, capture_output=True, check=False)
        except OSError:
            return False
        # the exit status is 0 also where there is none
        return b"igb options:" in done.stdout

    def write_program(self, folder: Path) -> None:
        """Write a program of QEMU's own name that starts it, for whom PATH leads there."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        folder.mkdir(exist_ok=True)
        program = folder / PROGRAM
        program.write_text("\n".join(["#!/bin/sh", *exports, f'exec {shlex.join(self.argv)} "$@"', ""]))
        program.chmod(0o755)


def ensure(cache: Path, apt: Apt, report: Report) -> Emulator:
    """Give a QEMU, downloaded before if need be.

    Args:
        cache: The directory of what is kept.
        apt: Where it is downloaded from.
        report: Told of what takes time.

    Raises:
        PackageError: There is none.
    """
    own, unpacked = Emulator((PROGRAM,)), unpacked_below(cache / "qemu")
    for emulator in (own, unpacked):
        if emulator.works():
            return emulator
    report(f"downloading {_PACKAGE} of {apt.suite} (unpacked, not installed): this machine's has no igb")
    with tempfile.TemporaryDirectory(prefix=".qemu-", dir=cache) as scratch:
        folder = Path(scratch, "qemu")
        apt.update()
        apt.download(apt.missing(_PACKAGE), Path(scratch))
        for package in Path(scratch).glob("*.deb"):
            packages.unpack(package, folder)
        shutil.rmtree(cache / "qemu", ignore_errors=True)
        folder.rename(cache / "qemu")
    if not unpacked.works():
        raise PackageError(f"{_PACKAGE} of {apt.suite} doesn't start: '{' '.join(unpacked.argv)} -device igb,help' says why")
    return unpacked


def unpacked_below(root: Path) -> Emulator:
    """Say how a QEMU is started whose packages were unpacked."""
    firmware = [part for path in _FIRMWARE if (root / path).is_dir() for part in ("-L", str(root / path))]
    libraries = root / _LIBRARIES
    return Emulator(
        (str(root / "usr/bin" / PROGRAM), *firmware),
        {"LD_LIBRARY_PATH": f"{libraries}", "QEMU_MODULE_DIR": f"{libraries / 'qemu'}"},
    )
