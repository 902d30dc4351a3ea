"""Fetch Debian packages and read what is in them. Nothing is installed, and only apt's package lists are needed, no root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from tests.guest import kernel

ARCHITECTURE = "amd64"


class PackageError(Exception):
    """What is made of packages can't be made here; the message says what to do."""


def check_machine() -> None:
    """Make sure that this machine has packages for the architecture of the guests.

    Raises:
        PackageError: It hasn't.
    """
    machine = output("dpkg", "--print-architecture").strip()
    if machine != ARCHITECTURE:
        raise PackageError(f"the guest needs a Debian {ARCHITECTURE} machine, and this one is {machine or 'no Debian'}")


def download(names: Collection[str], folder: Path, options: Sequence[str] = ()) -> None:
    """Download packages.

    Args:
        names: Of the packages, with `=VERSION` for a certain one.
        folder: Where they go.
        options: More of apt's.

    Raises:
        PackageError: apt couldn't.
    """
    command = ["apt-get", "download", "-q", *sandbox(), *options, *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"apt-get download failed; 'apt-get update' may help:\n{done.stderr.strip()}")


def sandbox() -> list[str]:
    """Give the option by which root's apt may write into a checkout: its own user can't, and it warns of that."""
    return ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []


def get_download(folder: Path, package: str) -> Path:
    """Give the path of a package that was downloaded."""
    for path in folder.glob(f"{package}_*.deb"):
        return path
    raise PackageError(f"apt-get downloaded no {package}")


def read_member(archive: Path, pattern: re.Pattern[str]) -> bytes:
    """Read the first of the package's files whose name matches."""
    for _, content in members(archive, (pattern,)):
        return content
    raise PackageError(f"{archive.name} has nothing that matches {pattern.pattern}")


def members(archive: Path, patterns: Collection[re.Pattern[str]]) -> Iterator[tuple[str, bytes]]:
    """Read the package's files whose names match one of the patterns."""
    dpkg = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
    with dpkg, tarfile.open(fileobj=dpkg.stdout, mode="r|") as tar:
        for member in tar:
            reader = tar.extractfile(member) if any(pattern.search(member.name) for pattern in patterns) else None
            if reader is not None:
                yield member.name, reader.read()
    if dpkg.returncode != 0:
        raise PackageError(f"dpkg-deb can't read {archive.name}")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a package below a folder."""
    if subprocess.run(["dpkg-deb", "--extract", archive, folder], check=False).returncode != 0:
        raise PackageError(f"dpkg-deb can't unpack {archive.name}")


def decompress(name: str, content: bytes) -> bytes:
    """Decompress a kernel's module."""
    decompressed = kernel.find_decompressed(content)
    if decompressed is None:
        raise PackageError(f"can't decompress {name}: run tests/setup, which installs zstd and lz4")
    return decompressed


def output(*command: str) -> str:
    """Run a command of dpkg or apt; on a machine without them, the answer is empty as it is for an unknown package."""
    if shutil.which(command[0]) is None:
        return ""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, check=False)
    return done.stdout


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name when it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.rename(path)
