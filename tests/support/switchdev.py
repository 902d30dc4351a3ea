"""A card whose switch is in mode switchdev: netdevsim's, which is no PCI device, shown to a daemon as one.

Its PF, the VFs and what they are bound to are a sysfs of plain files; the netdevs in it, representors too, are links to those of
netdevsim. The daemon has it in the place of `/sys`, in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import vfs as nics
from tests.support.daemon import Daemon, short_directory, wait_for
from tests.support.sysfs import FakeSysfs

PF_ADDRESS = "0000:01:00.0"
PF_ID, VF_ID = 71, 72  # of netdevsim's devices: one with the PF and the representors, then one for the netdev of each VF
_BUS = Path("/sys/bus/netdevsim")
_MOUNT = """
mount --bind "$1" /sys
shift
exec "$@"
"""


def vf_address(index: int) -> str:
    """The PCI address that a VF is given."""
    return f"0000:01:10.{index}"


def device(number: int) -> Path:
    """A device of netdevsim's in sysfs."""
    return _BUS / "devices" / f"netdevsim{number}"


class Card:
    """The card.

    Args:
        sysfs: where it is shown.
        vfs: how many VFs it has.
    """

    def __init__(self, sysfs: Path, vfs: int) -> None:
        self.sysfs, self.vfs = sysfs, vfs

    @property
    def pf(self) -> str:
        """The PF's netdev."""
        return next(name for name, port in self._ports().items() if port == "p1")

    def representor(self, index: int) -> str:
        """A VF's representor, by what the kernel says of it."""
        return next(name for name, port in self._ports().items() if port == f"pf0vf{index}")

    def netdev(self, index: int) -> str:
        """The netdev of a VF."""
        return next((device(VF_ID + index) / "net").iterdir()).name

    def renew(self) -> None:
        """Do to the VFs' netdevs what a driver does that is bound anew: they are down, and have no name and mark of anybody's."""
        for index in range(self.vfs):
            ifname = self.netdev(index)
            subprocess.run(["ip", "link", "set", ifname, "down", "alias", ""], check=True)
            subprocess.run(["ip", "link", "set", ifname, "name", f"vf{index}"], check=True)

    def set_mode(self, mode: str) -> None:
        """Put the switch into a mode: the representors are made, or go."""
        subprocess.run(["devlink", "dev", "eswitch", "set", f"netdevsim/netdevsim{PF_ID}", "mode", mode], check=True)
        count = self.vfs if mode == "switchdev" else 0
        wait_for(lambda: sum(port.startswith("pf0vf") for port in self._ports().values()) == count)

    def _ports(self) -> dict[str, str]:
        return {path.name: (path / "phys_port_name").read_text().strip() for path in (device(PF_ID) / "net").iterdir()}


@contextlib.contextmanager
def switchdev_card(vfs: int = 2) -> Iterator[Card]:
    """Give a card in mode switchdev."""
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(short_directory())
        for number in (PF_ID, *range(VF_ID, VF_ID + vfs)):
            (_BUS / "new_device").write_text(f"{number} 1")
            stack.callback((_BUS / "del_device").write_text, str(number))
            wait_for(partial(_has_netdev, number))
        (device(PF_ID) / "sriov_numvfs").write_text(str(vfs))
        card = Card(root / "sys", vfs)
        card.set_mode("switchdev")
        _build(root, vfs)
        subprocess.run(["mount", "--bind", "/sys", root / "real"], check=True)
        stack.callback(subprocess.run, ["umount", root / "real"], check=True)
        yield card


def _has_netdev(number: int) -> bool:
    return (device(number) / "net").exists() and any((device(number) / "net").iterdir())


def _build(root: Path, vfs: int) -> None:
    """Make the sysfs."""
    (root / "real").mkdir()
    sysfs = FakeSysfs(root / "sys")
    sysfs.add_pf(PF_ADDRESS, total_vfs=vfs)
    _link(root, sysfs.device(PF_ADDRESS) / "net", f"devices/netdevsim{PF_ID}/net")
    for index in range(vfs):
        path = sysfs.add_vf(PF_ADDRESS, index, vf_address(index), driver="netdevsim")
        _link(root, path / "net", f"devices/netdevsim{VF_ID + index}/net")
        (path / "driver_override").unlink()
        os.mknod(path / "driver_override", stat.S_IFCHR | 0o644, os.makedev(1, 3))  # what is written to a file would stay there
    shutil.rmtree(root / "sys/class/net")
    _link(root, root / "sys/class/net", "class/net")


def _link(root: Path, path: Path, target: str) -> None:
    """Let a path of the daemon's sysfs be one of the real one."""
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()
    path.symlink_to(root / "real" / target)


class CardDaemon(Daemon):
    """A vifd that sees a card in the place of this host's.

    Args:
        directory: see Daemon.
        card: the card.
        networks: see Daemon.
    """

    def __init__(self, directory: Path, card: Card, networks: str) -> None:
        super().__init__(directory, networks=networks)
        self._card = card

    @property
    def argv(self) -> list[str]:
        """See Daemon."""
        return ["unshare", "--mount", "sh", "-euc", _MOUNT, "sh", str(self._card.sysfs), *super().argv]


@contextlib.contextmanager
def running_with(card: Card, networks: str) -> Iterator[CardDaemon]:
    """Run a vifd in this namespace that sees a card."""
    with short_directory() as directory:
        daemon = CardDaemon(directory, card, networks)
        try:
            yield daemon.start()
        finally:
            daemon.kill()


def run(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True)


def read(*argv: str) -> Any:
    """Read the kernel back with a program that speaks JSON."""
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout or "[]")


def link(ifname: str) -> Any:
    """A device, as `ip` shows it."""
    return read("ip", "-d", "-j", "link", "show", "dev", ifname)[0]


def qdiscs(ifname: str) -> dict[str, Any]:
    """The qdiscs of a device, by their kind."""
    return {one["kind"]: one for one in read("tc", "-j", "qdisc", "show", "dev", ifname)}


def guarded(ifname: str) -> bool:
    """Whether the guard's table has anything of a device."""
    text = subprocess.run(["nft", "list", "ruleset", "bridge"], check=True, capture_output=True, text=True).stdout
    return f'"{ifname}"' in text


def state(card: Card, index: int) -> object:
    """All that vifd could have changed of a VF's representor."""
    ifname = card.representor(index)
    found = link(ifname)
    kept = ("flags", "mtu", "master", "ifalias", "altnames", "inet6_addr_gen_mode", "txqlen", "linkinfo")
    own = set(qdiscs(ifname)) - {"noqueue"}  # the kernel's own, which is there once it was up
    return {key: found.get(key) for key in kept}, own, guarded(ifname), nics.told(card.pf, index)
