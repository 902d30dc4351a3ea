"""IPv6 on devices of vifd's: whether they can have it, and how the host is kept from joining a network of VMs by itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

_CONF = Path("/proc/sys/net/ipv6/conf")
_MIN_MTU_BYTES = 1280  # linux/ipv6.h; below it the kernel takes IPv6 off a device (net/ipv6/addrconf.c, addrconf_notify)


#: The host takes no routes and addresses from router advertisements that a VM sends.
NO_AUTOCONFIGURATION: Mapping[str, str] = MappingProxyType({"accept_ra": "0", "autoconf": "0"})
#: The host says nothing: one that forwards reports its multicast groups (RFC 3810) by every device that has IPv6.
SILENCE: Mapping[str, str] = MappingProxyType({"disable_ipv6": "1"})


class SettingError(Exception):
    """A setting can't be written: what the administrator has to know.

    Args:
        message: a sentence.
        number: the kernel's errno.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


def is_possible(mtu_bytes: int) -> bool:
    """Tell whether a device of some MTU has IPv6: where it doesn't, the kernel refuses IPv6's attributes and settings."""
    return mtu_bytes >= _MIN_MTU_BYTES and _runs()


def address_mode(ifname: str) -> int:
    """Tell how a device makes its link-local address (linux/if_link.h, IN6_ADDR_GEN_MODE_*); 0, the default, without IPv6."""
    try:
        return int((_CONF / ifname / "addr_gen_mode").read_text())
    except OSError:
        return 0


def set_all(ifname: str, mtu_bytes: int, settings: Mapping[str, str]) -> None:
    """Set what ip-sysctl.rst describes, where a device can have IPv6 at all.

    Args:
        ifname: a device of vifd's.
        mtu_bytes: its MTU.
        settings: by name, the values.

    Raises:
        SettingError: one can't be written.
    """
    for setting, value in settings.items() if is_possible(mtu_bytes) else ():
        try:
            (_CONF / ifname / setting).write_text(value)
        except OSError as error:
            message = f"can't set {setting} of {ifname} ({error.strerror}); let vifd write below {_CONF}"
            raise SettingError(message, error.errno or 0) from error


@functools.cache
def _runs() -> bool:
    return _CONF.exists()
