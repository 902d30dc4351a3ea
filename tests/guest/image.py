"""Build the guest out of Debian packages, which are downloaded and unpacked, never installed.

It needs no root, only apt's package lists. What it makes is kept in a cache, under a name that has the kernel package's
version and a hash of everything else, so that the next run takes what is there.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.guest import initramfs, kernel, packages
from tests.guest.packages import PackageError

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guest"
KERNEL_PACKAGE = f"linux-image-cloud-{packages.ARCHITECTURE}"

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


@dataclass(frozen=True)
class Image:
    """A guest's kernel and first file system, as QEMU's `-kernel` and `-initrd` take them."""

    kernel: Path
    initramfs: Path


def build(cache: Path = CACHE, report: Report = print) -> Image:
    """Make the guest, or take the one that an earlier call made.

    Raises:
        PackageError: The machine isn't amd64, apt doesn't know the packages, or a download failed.
    """
    package, version = _kernel_package()
    folder = cache / f"{package}_{version}"
    found = _find_image(folder)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_image(package, folder, report)
        found = _find_image(folder)
    if found is None:
        raise PackageError(f"the guest's files are missing in {folder} though they were just written: delete it and try again")
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
        packages.download([package, "busybox-static"], Path(scratch))
        report("unpacking the guest's kernel, modules and busybox")
        unpacked = _unpack_kernel(packages.get_download(Path(scratch), package))
        busybox = packages.read_member(packages.get_download(Path(scratch), "busybox-static"), _BUSYBOX_MEMBER)
        vmlinux = kernel.find_vmlinux(unpacked.vmlinuz)
        if vmlinux is None:
            report("this kernel can't be unpacked for QEMU's direct start: the guest takes a second longer to boot")
        packages.write_whole(folder / ("vmlinuz" if vmlinux is None else "vmlinux"), vmlinux or unpacked.vmlinuz)
        packages.write_whole(folder / _archive_name(), _pack_initramfs(busybox, unpacked.modules))


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
    for name, content in packages.members(archive, (_KERNEL_MEMBER, _MODULE_MEMBER)):
        module = _MODULE_MEMBER.search(name)
        if module is None:
            vmlinuz = content
        elif module["name"] in _MODULES:
            modules[module["name"]] = packages.decompress(name, content)
    if not vmlinuz:
        raise PackageError(f"{archive.name} has no kernel")
    return _Kernel(vmlinuz, modules)


def _kernel_package() -> tuple[str, str]:
    """Find the newest cloud kernel that apt knows: the meta package depends on the real one.

    Returns:
        The package's name and version.
    """
    packages.check_machine()
    depends = re.search(r"Depends: (linux-image-\S+)", packages.output("apt-cache", "depends", KERNEL_PACKAGE))
    if depends is None:
        raise PackageError(f"apt doesn't know {KERNEL_PACKAGE}: run tests/setup, which updates its lists")
    candidate = re.search(r"Candidate: (\S+)", packages.output("apt-cache", "policy", depends[1]))
    if candidate is None or candidate[1] == "(none)":
        raise PackageError(f"apt doesn't have {depends[1]}: run 'apt-get update'")
    return depends[1], candidate[1].replace(":", "%3a")
