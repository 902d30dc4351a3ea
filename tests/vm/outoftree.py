"""Build modules that Debian doesn't, from Debian's sources of the same kernel: netdevsim, and vDPA's simulator.

The tree is Debian's headers, unpacked, and in front of their makefile one that knows where they lie.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from tests.guest.packages import PackageError, get_download, unpack
from tests.vm.apt import Apt

#: What is built, and where its sources lie in the kernel's. vringh is a part of a directory whose rest Debian builds.
SOURCES = {
    "netdevsim": "drivers/net/netdevsim/",
    "vringh": "drivers/vhost/vringh.c",
    "vdpa_sim": "drivers/vdpa/vdpa_sim/",
}
CONFIGURATION = ("CONFIG_NETDEVSIM=m", "CONFIG_VDPA_SIM=m", "CONFIG_VDPA_SIM_NET=m")
_VERSION = re.compile(r"\d+\.\d+")


def packages(release: str, apt: Apt) -> list[str]:
    """Name the packages that have the sources and what builds them."""
    headers = f"linux-headers-{release}"
    # one version of all: modules of other sources than the kernel's don't load
    return [
        headers,
        apt.depends(headers, r"linux-headers-[^ ,]*-common"),
        apt.depends(headers, r"linux-kbuild-[^ ,]+"),
        f"{_source_package(release)}={apt.version(headers)}",
    ]


def build(downloads: Path, release: str, target: Path) -> None:
    """Build the modules.

    Args:
        downloads: Where the packages are.
        release: Of the kernel.
        target: Where the modules go.

    Raises:
        PackageError: The compiler said no.
    """
    target.mkdir(parents=True)
    # not in the checkout: make takes no blanks in paths
    with tempfile.TemporaryDirectory(prefix="vifd-linux-") as scratch:
        tree = Path(scratch)
        headers = _unpack_headers(downloads, release, tree)
        _unpack_sources(get_download(downloads, _source_package(release)), tree / "modules")
        jobs = f"-j{os.cpu_count() or 1}"
        command = ["make", "--silent", jobs, "-C", str(headers), f"M={tree / 'modules'}", *CONFIGURATION, "modules"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PackageError(f"the modules for Linux {release} can't be built:\n{done.stderr[-4000:].strip()}")
        for module in tree.glob("modules/*/*.ko"):
            subprocess.run(["strip", "--strip-debug", "-o", target / module.name, module], check=True)


def _source_package(release: str) -> str:
    version = _VERSION.match(release)
    if version is None:
        raise PackageError(f"'{release}' is no kernel's release")
    return f"linux-source-{version[0]}"


def _unpack_headers(downloads: Path, release: str, tree: Path) -> Path:
    """Unpack what builds modules, and give the directory to build with."""
    for pattern in ("linux-headers-*.deb", "linux-kbuild-*.deb"):
        for package in downloads.glob(pattern):
            unpack(package, tree)
    common = next((tree / "usr/src").glob("linux-headers-*-common"))
    headers = tree / "usr/src" / f"linux-headers-{release}"
    (headers / "Makefile").write_text(f"include {common}/Makefile\n")
    # with it, type information is added by pahole, which is not here
    (headers / "vmlinux").unlink(missing_ok=True)
    return headers


def _unpack_sources(package: Path, target: Path) -> None:
    target.mkdir()
    (target / "Makefile").write_text(f"obj-m += {' '.join(f'{name}/' for name in SOURCES)}\n")
    dpkg = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    with dpkg, tarfile.open(fileobj=dpkg.stdout, mode="r|") as outer:
        for member in outer:
            inner = outer.extractfile(member) if member.name.endswith(".tar.xz") else None
            if inner is not None:
                _extract(inner, target)
    (target / "vringh/Makefile").write_text("obj-m += vringh.o\n")


def _extract(archive: IO[bytes], target: Path) -> None:
    """Write the files of SOURCES, each module's in a directory of its own."""
    with tarfile.open(fileobj=archive, mode="r|xz") as tar:
        for member in tar:
            _, _, path = member.name.partition("/")
            for name, source in SOURCES.items():
                content = tar.extractfile(member) if path.startswith(source) else None
                if content is not None:
                    place = target / name / path[source.rindex("/") + 1 :]
                    place.parent.mkdir(exist_ok=True)
                    with content, place.open("wb") as file:
                        shutil.copyfileobj(content, file)
