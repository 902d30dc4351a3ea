"""Where a run took place: figures without it can't be compared."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("iproute2", "containernetworking-plugins")
DISTRIBUTIONS = ("vifd", "grpcio", "protobuf", "pyroute2", "oslo.privsep", "uvloop")


@dataclass(frozen=True)
class Machine:
    """The machine and what runs on it."""

    cpu: str
    cpus: int
    memory_mib: int
    kernel: str
    load_before: tuple[float, float, float]
    versions: dict[str, str]


def describe_machine() -> Machine:
    """Read it from the system."""
    return Machine(
        cpu=_field("/proc/cpuinfo", "model name"),
        cpus=len(os.sched_getaffinity(0)),
        memory_mib=int(_field("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        kernel=platform.release(),
        load_before=os.getloadavg(),
        versions=_versions(),
    )


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0 unknown"


def _versions() -> dict[str, str]:
    python = {name: metadata.version(name) for name in DISTRIBUTIONS}
    return {"python": platform.python_version(), **python, **{name: _debian_version(name) for name in PACKAGES}}


def _debian_version(package: str) -> str:
    try:
        done = subprocess.run(["dpkg-query", "-W", "-f=${Version}", package], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout
