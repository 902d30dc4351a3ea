"""Plans as drivers make them, and as none does."""

from __future__ import annotations

from typing import Any

from vifd.kernel import names
from vifd.kernel.ops import ChangePort, ConfigurePort
from vifd.model import Kind, Port

VM_MAC = "52:54:00:12:34:56"


def configure(endpoint_id: str, network: str = "blue", *, ifname: str | None = None, **port: Any) -> ConfigurePort:
    """Put an endpoint's tap, or a device of another name, on a network."""
    name = names.device_name(Kind.TAP, endpoint_id) if ifname is None else ifname
    return ConfigurePort(endpoint_id, name, network, Port(**({"mac": VM_MAC} | port)))


def change(
    endpoint_id: str, network: str = "blue", *, ifname: str | None = None, mac: str | None = None, before: Any = None, **port: Any
) -> ChangePort:
    """Change an endpoint's tap, or a device of another name."""
    wanted = configure(endpoint_id, network, ifname=ifname, **port)
    host_mac = names.host_mac(wanted.port.mac) if mac is None else mac
    return ChangePort(endpoint_id, wanted.ifname, network, host_mac, before, wanted.port)
