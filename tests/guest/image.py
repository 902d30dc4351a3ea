"""Build the guest out of Debian packages, which are downloaded and unpacked, never installed.

It needs no root, only apt's package lists. What it makes is kept in a cache, under a name that has the kernel package's
version and a hash of everything else, so that the next run takes what is there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tests.guest import initramfs, kernel

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guest"
ARCHITECTURE = "amd64"
KERNEL_PACKAGE = f"linux-image-cloud-{ARCHITECTURE}"

_INIT, _DHCP = (Path(__file__).with_name(name) for name in ("init", "dhcp"))
# In the order of loading; a kernel may have some of them built in.
_MODULES = (
    "failover",
    "net_failover",
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_net",
    # What is written to a macvtap of the guest's leaves as it is: so it sends any frame.
    "tap",
    "macvlan",
    "macvtap",
)
_KERNEL_MEMBER = re.compile(r"boot/vmlinuz-[^/]+$")
_MODULE_MEMBER = re.compile(r"lib/modules/.*/(?P<name>[^/]+)\.ko(\.[a-z]+)?$")
_BUSYBOX_MEMBER = re.compile(r"bin/busybox$")

Report = Callable[[str], None]


class ImageError(Exception):
    """The guest can't be built here; the message says what to do."""


@dataclass(frozen=True)
class Image:
    """A guest's kernel and first file system, as QEMU's `-kernel` and `-initrd` take them."""

    kernel: Path
    initramfs: Path


def build(cache: Path = CACHE, report: Report = print) -> Image:
    """Make the guest, or take the one that an earlier call made.

    Raises:
        ImageError: The machine isn't amd64, apt doesn't know the packages, or a download failed.
    """
    package, version = _kernel_package()
    folder = cache / f"{package}_{version}"
    found = _find_image(folder)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_image(package, folder, report)
        found = _find_image(folder)
    if found is None:
        raise ImageError(f"the guest's files are missing in {folder} though they were just written: delete it and try again")
    return found


def _find_image(folder: Path) -> Image | None:
    kernels = [path for path in (folder / "vmlinux", folder / "vmlinuz") if path.exists()]
    archive = folder / _archive_name()
    return Image(kernels[0], archive) if kernels and archive.exists() else None


def _archive_name() -> str:
    """Name the initramfs after everything that it is made of, but for the packages."""
    sources = (_INIT.read_bytes(), _DHCP.read_bytes(), Path(__file__).read_bytes(), Path(initramfs.__file__).read_bytes())
    return f"initramfs-{hashlib.sha256(b''.join(sources)).hexdigest()[:12]}.img"


def _write_image(package: str, folder: Path, report: Report) -> None:
    """Write the kernel and the initramfs; each appears under its name when it is whole."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch:
        report(f"downloading {package} and busybox-static (unpacked, not installed)")
        _download([package, "busybox-static"], Path(scratch))
        report("unpacking the guest's kernel, modules and busybox")
        unpacked = _unpack_kernel(_find_download(Path(scratch), package))
        busybox = _read_member(_find_download(Path(scratch), "busybox-static"), _BUSYBOX_MEMBER)
        vmlinux = kernel.find_vmlinux(unpacked.vmlinuz)
        if vmlinux is None:
            report("this kernel can't be unpacked for QEMU's direct start: the guest takes a second longer to boot")
        _write_whole(folder / ("vmlinuz" if vmlinux is None else "vmlinux"), vmlinux or unpacked.vmlinuz)
        _write_whole(folder / _archive_name(), _pack_initramfs(busybox, unpacked.modules))


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.rename(path)


def _pack_initramfs(busybox: bytes, modules: dict[str, bytes]) -> bytes:
    loaded = [name for name in _MODULES if name in modules]
    return initramfs.pack(
        [
            *(initramfs.directory(path) for path in ("bin", "dev", "modules", "proc", "sys", "tmp")),
            initramfs.program("bin/busybox", busybox),
            initramfs.program("init", _INIT.read_bytes()),
            initramfs.program("dhcp", _DHCP.read_bytes()),
            initramfs.directory("etc"),
            initramfs.file("modules/order", "\n".join(f"{name}.ko" for name in loaded).encode()),
            *(initramfs.file(f"modules/{name}.ko", modules[name]) for name in loaded),
        ]
    )


@dataclass(frozen=True)
class _Kernel:
    vmlinuz: bytes
    modules: dict[str, bytes]


def _unpack_kernel(archive: Path) -> _Kernel:
    vmlinuz = b""
    modules: dict[str, bytes] = {}
    for name, content in _members(archive, (_KERNEL_MEMBER, _MODULE_MEMBER)):
        module = _MODULE_MEMBER.search(name)
        if module is None:
            vmlinuz = content
        elif module["name"] in _MODULES:
            modules[module["name"]] = _decompress(name, content)
    if not vmlinuz:
        raise ImageError(f"{archive.name} has no kernel")
    return _Kernel(vmlinuz, modules)


def _decompress(name: str, content: bytes) -> bytes:
    decompressed = kernel.find_decompressed(content)
    if decompressed is None:
        raise ImageError(f"can't decompress {name}: run tests/setup, which installs zstd and lz4")
    return decompressed


def _read_member(archive: Path, pattern: re.Pattern[str]) -> bytes:
    for _, content in _members(archive, (pattern,)):
        return content
    raise ImageError(f"{archive.name} has nothing that matches {pattern.pattern}")


def _members(archive: Path, patterns: Collection[re.Pattern[str]]) -> list[tuple[str, bytes]]:
    """Read the package's files whose names match one of the patterns."""
    found: list[tuple[str, bytes]] = []
    dpkg = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
    with dpkg, tarfile.open(fileobj=dpkg.stdout, mode="r|") as tar:
        for member in tar:
            reader = tar.extractfile(member) if any(pattern.search(member.name) for pattern in patterns) else None
            if reader is not None:
                found.append((member.name, reader.read()))
    if dpkg.returncode != 0:
        raise ImageError(f"dpkg-deb can't read {archive.name}")
    return found


def _kernel_package() -> tuple[str, str]:
    """Find the newest cloud kernel that apt knows: the meta package depends on the real one.

    Returns:
        The package's name and version.
    """
    machine = _output("dpkg", "--print-architecture").strip()
    if machine != ARCHITECTURE:
        raise ImageError(f"the guest needs a Debian {ARCHITECTURE} machine, and this one is {machine or 'no Debian'}")
    depends = re.search(r"Depends: (linux-image-\S+)", _output("apt-cache", "depends", KERNEL_PACKAGE))
    if depends is None:
        raise ImageError(f"apt doesn't know {KERNEL_PACKAGE}: run tests/setup, which updates its lists")
    candidate = re.search(r"Candidate: (\S+)", _output("apt-cache", "policy", depends[1]))
    if candidate is None or candidate[1] == "(none)":
        raise ImageError(f"apt doesn't have {depends[1]}: run 'apt-get update'")
    return depends[1], candidate[1].replace(":", "%3a")


def _download(packages: Collection[str], folder: Path) -> None:
    # apt's own user can't write into a checkout; without this, root gets a warning about it
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    command = ["apt-get", "download", "-q", *sandbox, *packages]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImageError(f"apt-get download failed; 'apt-get update' may help:\n{done.stderr.strip()}")


def _find_download(folder: Path, package: str) -> Path:
    for path in folder.glob(f"{package}_*.deb"):
        return path
    raise ImageError(f"apt-get downloaded no {package}")


def _output(*command: str) -> str:
    """Run a command of dpkg or apt; on a machine without them, the answer is empty as it is for an unknown package."""
    if shutil.which(command[0]) is None:
        return ""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, check=False)
    return done.stdout
