"""The emulated machine's network cards, whose VFs are measured there. On no other host the bench touches a card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import vfs
from tests.vm.machine import CARDS

VFS_A_PF = 7
PFS = (vfs.FIRST_PF, vfs.SECOND_PF)


def are_there() -> bool:
    """Tell whether this is the emulated machine."""
    return vfs.pfs() == list(PFS) and tuple(Path(f"/sys/class/net/{pf}/address").read_text().strip() for pf in PFS) == CARDS


@contextmanager
def without_vfs(*, autoprobe: bool = True) -> Iterator[None]:
    """Have the cards without VFs before a block and after it.

    Args:
        autoprobe: whether the kernel gives VFs their driver.
    """
    try:
        _set_up(autoprobe=autoprobe)
        yield
    finally:
        _set_up(autoprobe=True)


def _set_up(*, autoprobe: bool) -> None:
    for pf in PFS:
        vfs.set_count(pf, 0)
        (vfs.PCI / vfs.pf_address(pf) / "sriov_drivers_autoprobe").write_text(str(int(autoprobe)))
