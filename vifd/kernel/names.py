"""Names and marks of what vifd makes: they say whose a device is, and recovery trusts them."""

from __future__ import annotations

import base64
import functools
import hashlib
import re

from vifd.model import Kind

_LETTERS = {
    Kind.BRIDGE: "b",
    Kind.TAP: "t",
    Kind.MACVTAP: "m",
    Kind.PCI: "p",
    Kind.OVS_PORT: "o",
    Kind.VHOST_USER: "u",
    Kind.VDPA: "v",
}

DEVICE_PREFIX = b"vd"
_MARK = "vifd:"
_NETWORK_MARK = "vifd:network:"
_VLAN_MARK = "vifd:vlan:"
_IFB_MARK = "vifd:ifb:"
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DEVICE_NAME = re.compile(f"vd[{''.join(_LETTERS.values())}][a-z2-7]{{10}}")
_VLAN_NAME = re.compile("vdq[a-z2-7]{10}")
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_MANAGEMENT_DEVICE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_-]{0,30}/)?[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")
_PLACE = re.compile(rf"({_MANAGEMENT_DEVICE.pattern})#(0|[1-9][0-9]{{0,4}})")
_IFNAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,14}")


def is_endpoint_id(text: str) -> bool:
    """Tell whether a text is a UUID in canonical lower-case form, and not the nil UUID."""
    return _UUID.fullmatch(text) is not None and text.strip("0-") != ""


def is_ifname(text: str) -> bool:
    """Tell whether a text can name an interface everywhere.

    Stricter than the kernel's dev_valid_name (net/core/dev.c: 15 bytes, no '/', ':' or white space), for `%d` in a name
    makes the kernel choose a number, and a leading '-' or '.' misleads programs and paths.
    """
    return _IFNAME.fullmatch(text) is not None


def is_pci_address(text: str) -> bool:
    """Tell whether a text is the address of a PCI function, in the form that sysfs has: "0000:03:10.2"."""
    return _PCI_ADDRESS.fullmatch(text) is not None


def is_management_device(text: str) -> bool:
    """Tell whether a text can name a vDPA management device as vdpa(8) has it: "pci/0000:01:00.2", or "vdpasim_net"."""
    return _MANAGEMENT_DEVICE.fullmatch(text) is not None


def place(management_device: str, number: int) -> str:
    """Name one of the places for devices that a vDPA management device has; how many, only its driver knows."""
    return f"{management_device}#{number}"


def parse_place(text: str) -> tuple[str, int] | None:
    """Give a place's management device and number; None: the text names no place."""
    found = _PLACE.fullmatch(text)
    return None if found is None else (found[1], int(found[2]))


def device_name(kind: Kind, endpoint_id: str) -> str:
    """Give the name of an endpoint's device: 13 bytes, `vd`, a letter for the kind, ten base32 characters of the id's SHA-256."""
    return f"vd{_LETTERS[kind]}{_letters_of(endpoint_id)}"


def is_device_name(text: str) -> bool:
    """Tell whether a text has the form of an endpoint's device name."""
    return _DEVICE_NAME.fullmatch(text) is not None


def ifb_name(endpoint_id: str) -> str:
    """Give the name of the ifb that limits what an endpoint's device takes in; it has the same ten characters."""
    return f"ifb{_letters_of(endpoint_id)}"


@functools.lru_cache(4096)
def _letters_of(endpoint_id: str) -> str:
    digest = hashlib.sha256(endpoint_id.encode()).digest()[:10]  # more than ten letters take, and no padding: that takes time
    return base64.b32encode(digest)[:10].decode().lower()


def altname(endpoint_id: str) -> str:
    """Give the device's alternative name, by which `ip link show` finds it from the id."""
    return f"vifd-{endpoint_id}"


def mark(endpoint_id: str) -> str:
    """Give the ifalias that says that a device is this endpoint's."""
    return f"{_MARK}{endpoint_id}"


def marked_endpoint_id(alias: str) -> str:
    """Read an endpoint's id from an ifalias; empty where it is no endpoint's mark."""
    endpoint_id = alias.removeprefix(_MARK)
    return endpoint_id if alias.startswith(_MARK) and is_endpoint_id(endpoint_id) else ""


def ifb_mark(endpoint_id: str) -> str:
    """Give the ifalias that says that an ifb is this endpoint's."""
    return f"{_IFB_MARK}{endpoint_id}"


def marked_ifb_endpoint_id(alias: str) -> str:
    """Read an endpoint's id from an ifb's ifalias; empty where it is no such mark."""
    endpoint_id = alias.removeprefix(_IFB_MARK)
    return endpoint_id if alias.startswith(_IFB_MARK) and is_endpoint_id(endpoint_id) else ""


def network_mark(network: str) -> str:
    """Give the ifalias that says that vifd made a bridge for this network."""
    return f"{_NETWORK_MARK}{network}"


def vlan_name(uplink: str, vid: int) -> str:
    """Give the name of the 802.1Q device of one VLAN of an uplink."""
    return f"vdq{_letters_of(vlan_mark(uplink, vid))}"


def is_vlan_name(text: str) -> bool:
    """Tell whether a text has the form of an 802.1Q device's name."""
    return _VLAN_NAME.fullmatch(text) is not None


def vlan_mark(uplink: str, vid: int) -> str:
    """Give the ifalias that says that an 802.1Q device is vifd's."""
    return f"{_VLAN_MARK}{uplink}:{vid}"


def is_vlan_mark(alias: str) -> bool:
    """Tell whether an ifalias says that an 802.1Q device is vifd's."""
    return alias.startswith(_VLAN_MARK)


def derived_mac(text: str) -> str:
    """Derive a MAC address from a text: unicast, locally administered (IEEE 802, first octet xxxxxx10), never starting with fe
    or fa.

    Those two are left for the host's side of taps, see `host_mac`.
    """
    digest = bytearray(hashlib.sha256(b"vifd mac " + text.encode()).digest()[:6])
    digest[0] = digest[0] & 0x3C | 0x02
    return digest.hex(":")


def host_mac(vm_mac: str) -> str:
    """Give the MAC of the host's side of a tap: the VM's, with fe (or fa, if the VM has fe itself) first.

    It must differ from the VM's, or the bridge takes the VM's frames for its own; and it must be high, for a bridge whose own
    address was never set takes the lowest of its ports' (net/bridge/br_stp_if.c, br_stp_recalculate_bridge_id).
    """
    first = "fa" if vm_mac.startswith("fe") else "fe"
    return first + vm_mac[2:]
