"""Whose a VF is, for a VF that a VM has holds no mark of its own; see `markfiles`.

Its mark says how the VF was found as well, so that whoever comes after a helper that died knows how to put it back.
"""

from __future__ import annotations

from msgspec import Struct

from vifd.kernel.markfiles import MarkFiles
from vifd.kernel.sriov.inventory import is_address
from vifd.kernel.sriov.settings import VfSettings


class RepresentorMark(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a VF's representor as it was found.

    Args:
        ifname: its name, which it keeps.
        alias: its ifalias.
        mtu_bytes: its MTU.
        ipv6_mode: how it makes its IPv6 link-local address (linux/if_link.h, IN6_ADDR_GEN_MODE_*).
    """

    ifname: str
    alias: str
    mtu_bytes: int
    ipv6_mode: int


class Mark(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of a VF that vifd has taken.

    Args:
        endpoint_id: for whom.
        pf_address: the PF that it is of.
        driver: what it was bound to; empty: nothing.
        driver_override: which driver alone might have it; empty: any.
        settings: what its PF had been told of it.
        representor: what its endpoint is attached through; None: the VF alone.
    """

    endpoint_id: str
    pf_address: str
    driver: str
    driver_override: str
    settings: VfSettings
    representor: RepresentorMark | None = None


class Marks(MarkFiles[Mark]):
    """The marks of VFs, each named by the VF's address."""

    folder = "functions"
    what = "VF"
    named_by = "PCI address"
    mark_type = Mark
    is_name = staticmethod(is_address)
