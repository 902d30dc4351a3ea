"""Debian's kernel with those of its modules that have to do with networks, and some that Debian doesn't build.

They are downloaded once, unpacked below the cache, never installed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.guest import kernel, packages
from tests.guest.packages import PackageError
from tests.vm import outoftree
from tests.vm.apt import Apt

#: Where the modules lie that the machine has, in the kernel's own tree; what they depend on comes with them.
MODULES = (
    r"net/",
    r"drivers/net/[^/]+\.ko",
    r"drivers/net/(bonding|geneve|ipvlan|macsec|team|vxlan)/",
    r"drivers/net/ethernet/intel/(igb|igbvf|e1000e)/",
    r"drivers/(iommu|vdpa|vfio|vhost|virtio)/",
    r"drivers/char/virtio_console\.ko",
    r"fs/(9p|overlayfs)/",
    # of nftables, which asks for it by no name that depmod sees
    r"(arch/x86/)?crypto/crc32c",
)
#: What has to be loaded before the machine has its files.
FIRST = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
_META_PACKAGE = f"linux-image-{packages.ARCHITECTURE}"
_BUSYBOX = "busybox-static"
_BUSYBOX_MEMBER = re.compile(r"bin/busybox$")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Linux:
    """A kernel that QEMU boots, and its modules.

    Args:
        folder: Where all of it is.
    """

    folder: Path

    @property
    def release(self) -> str:
        """As `uname -r` says it."""
        return (self.folder / "release").read_text().strip()

    @property
    def vmlinux(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinux"

    @property
    def busybox(self) -> Path:
        """The first program."""
        return self.folder / "busybox"

    @property
    def modules(self) -> Path:
        """What has to be at /lib/modules/RELEASE."""
        return self.folder / "lib/modules" / self.release

    def first_modules(self) -> list[Path]:
        """Give the modules to load before there are any files, in that order."""
        dependencies = parse_dependencies((self.modules / "modules.dep").read_text())
        return [self.modules / path for path in load_order(FIRST, dependencies)]


def ensure(cache: Path, apt: Apt, report: Report) -> Linux:
    """Give the kernel, downloaded and built before if need be: 300 MB, two minutes.

    Args:
        cache: The directory of what is kept.
        apt: Where it is downloaded from.
        report: Told of what takes time.

    Raises:
        PackageError: It can't be downloaded, or its modules can't be built.
    """
    folder = cache / f"linux-{_recipe()}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=".linux-", dir=cache) as scratch:
            apt.update()
            _make(Path(scratch), apt, report)
            Path(scratch, "made").rename(folder)
    return Linux(folder)


def parse_dependencies(text: str) -> dict[str, list[str]]:
    """Read depmod's modules.dep: for each module all that it depends on, whose last has to be loaded first."""
    rows = (line.partition(":") for line in text.splitlines())
    return {path: needed.split() for path, _, needed in rows}


def load_order(names: Iterable[str], dependencies: Mapping[str, list[str]]) -> list[str]:
    """Give the paths of modules and of what they need, in the order of loading; a kernel may have some of them built in."""
    paths = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in dependencies}
    found = [paths[name] for name in names if name in paths]
    return list(dict.fromkeys(one for path in found for one in (*reversed(dependencies[path]), path)))


def wanted(dependencies: Mapping[str, list[str]]) -> set[str]:
    """Choose the modules of MODULES, with all that they depend on."""
    pattern = re.compile(rf"kernel/({'|'.join(MODULES)})")
    chosen = {path for path in dependencies if pattern.match(path)}
    return chosen.union(*(dependencies[path] for path in chosen))


def _recipe() -> str:
    recipe = repr((MODULES, FIRST, outoftree.SOURCES, outoftree.CONFIGURATION))
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _make(scratch: Path, apt: Apt, report: Report) -> None:
    image = apt.depends(_META_PACKAGE, r"linux-image-[^ ,]+")
    release = image.removeprefix("linux-image-")
    made, downloads, whole = scratch / "made", scratch / "downloads", scratch / "whole"
    report(f"downloading {image} and its sources (300 MB, unpacked, not installed)")
    apt.download([image, _BUSYBOX, *outoftree.packages(release, apt)], downloads)
    report("unpacking the kernel and its modules")
    packages.unpack(packages.get_download(downloads, image), whole)
    modules = made / "lib/modules" / release
    modules.mkdir(parents=True)
    _write_vmlinux(whole / "boot" / f"vmlinuz-{release}", made / "vmlinux")
    _copy_modules(_indexed(whole, release), modules)
    report("building the modules that Debian doesn't build (two minutes)")
    outoftree.build(downloads, release, modules / "extra")
    _depmod(made, release)
    busybox = packages.read_member(packages.get_download(downloads, _BUSYBOX), _BUSYBOX_MEMBER)
    (made / "busybox").write_bytes(busybox)
    (made / "release").write_text(release + "\n")


def _write_vmlinux(vmlinuz: Path, path: Path) -> None:
    vmlinux = kernel.find_vmlinux(vmlinuz.read_bytes())
    if vmlinux is None:
        raise PackageError(
            f"{vmlinuz.name} can't be unpacked for QEMU's direct start: run tests/setup, which installs zstd and lz4"
        )
    path.write_bytes(vmlinux)


def _indexed(whole: Path, release: str) -> Path:
    """Give the directory of an unpacked kernel's modules, with depmod's tables."""
    place = whole / "lib/modules" / release
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        (whole / "usr/lib/modules" / release).rename(place)
    _depmod(whole, release)
    return place


def _copy_modules(source: Path, target: Path) -> None:
    for path in sorted(wanted(parse_dependencies((source / "modules.dep").read_text()))):
        module = target / path[: path.index(".ko") + len(".ko")]
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_bytes(packages.decompress(path, (source / path).read_bytes()))
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copyfile(source / name, target / name)


def _depmod(base: Path, release: str) -> None:
    done = subprocess.run(["depmod", "-b", base, release], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"depmod can't read {release}'s modules:\n{done.stderr.strip()}")
