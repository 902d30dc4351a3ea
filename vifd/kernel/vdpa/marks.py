"""Whose a vDPA device is, for it holds no mark of its own, and all network namespaces share it; see `markfiles`."""

from __future__ import annotations

from msgspec import Struct

from vifd.kernel.markfiles import MarkFiles
from vifd.kernel.names import is_device_name


class Mark(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a vDPA device that vifd has made, or has begun to make.

    Args:
        endpoint_id: for whom.
        management_device: on what.
        netns: the inode of the network namespace of the vifd that made it: that has one vifd.
    """

    endpoint_id: str
    management_device: str
    netns: int


class Marks(MarkFiles[Mark]):
    """The marks of vDPA devices, each named by the device's name."""

    folder = "vdpa"
    what = "vDPA device"
    named_by = "device name of vifd's"
    mark_type = Mark
    is_name = staticmethod(is_device_name)
