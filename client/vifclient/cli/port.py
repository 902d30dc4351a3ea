"""The options that say what a port is like, which `request`, `run` and `update` share."""

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, TypeVar

import click

from vifclient.cli.quantities import read_quantity
from vifclient.cli.settings import SectionOption, check_text
from vifclient.messages import GuardSpec, LimitsSpec, PortSpec, VlanProtocol, VlanSpec

_Function = TypeVar("_Function", bound=Callable[..., object])
_VIDS = range(1, 4095)
_VID = click.IntRange(_VIDS.start, _VIDS.stop - 1)
_MAX_RATE_BPS, _MAX_UINT32 = 2**40, 2**32 - 1
_DIRECTIONS: dict[Literal["from_vm", "to_vm"], str] = {"from_vm": "the VM sends", "to_vm": "the VM receives"}
_LIMIT_FIELDS = {"rate": "rate_bps", "burst": "burst_bytes", "pps": "rate_pps", "min_rate": "min_rate_bps"}
_VLAN_PROTOCOLS = {"802.1q": VlanProtocol.VLAN_PROTOCOL_DOT1Q, "802.1ad": VlanProtocol.VLAN_PROTOCOL_DOT1AD}


def check_addresses(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Check that each is an IP address, or a prefix."""
    for value in values:
        try:
            ipaddress.ip_interface(check_text(ctx, param, value))
        except ValueError:
            raise click.BadParameter(f"{value!r} is no IP address, with or without a prefix length") from None
    return tuple(values)


def _split_vids(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...]:
    parts = [] if value is None else value.split(",")
    for part in parts:
        if not (part.isascii() and part.isdecimal() and int(part) in _VIDS):
            raise click.BadParameter(f"{part!r} is no VLAN: write {_VIDS.start} to {_VIDS.stop - 1}, with commas between them")
    vids = tuple(map(int, parts))
    for vid in vids:
        if vids.count(vid) > 1:
            raise click.BadParameter(f"VLAN {vid} is there twice")
    return vids


def port_option(*names: str, section: str = "Port", **attributes: Any) -> Callable[[_Function], _Function]:
    """Make an option that the help shows among those of the port."""
    return click.option(*names, cls=SectionOption, section=section, **attributes)


def _port_options(*, changing: bool) -> Iterator[Callable[[_Function], _Function]]:
    def option(*names: str, what: str, otherwise: str, **attributes: Any) -> Callable[[_Function], _Function]:
        text = what if changing else f"{what} [default: {otherwise}]"  # in a change, what isn't given stays
        return port_option(*names, help=text, **attributes)

    yield option("--mtu", type=click.IntRange(68, 65535), metavar="BYTES", what="Its MTU.", otherwise="the network's")
    yield option(
        "--address",
        "addresses",
        callback=check_addresses,
        multiple=True,
        metavar="ADDR[/LENGTH]",
        what="An address of the VM, or a whole prefix; may be repeated.",
        otherwise="one of the network's pool, if it has one",
    )
    yield option(
        "--public-address",
        "public_addresses",
        callback=check_addresses,
        multiple=True,
        metavar="ADDR",
        what="An address by which the VM is reached from outside; may be repeated.",
        otherwise="none",
    )
    guard = "Whether the VM is kept from pretending to be another. To switch that off takes the administrator's leave."
    yield option("--guard/--no-guard", default=None, what=guard, otherwise="guard")
    yield option("--vlan", type=_VID, metavar="VID", what="The VLAN that it is in.", otherwise="the network's")
    qos = "With --vlan: the priority in the tags that the card puts on."
    yield option("--vlan-qos", type=click.IntRange(0, 7), metavar="0-7", what=qos, otherwise="0")
    tags = "With --vlan: what kind of tags those are."
    yield option("--vlan-protocol", type=click.Choice(list(_VLAN_PROTOCOLS)), what=tags, otherwise="802.1q")
    yield port_option("--trunk", callback=_split_vids, metavar="VID,VID,...", help="The VLANs whose frames pass with their tags.")
    yield option("--native-vlan", type=_VID, metavar="VID", what="With --trunk: the VLAN of untagged frames.", otherwise="none")
    trusted = "Whether the VM may do with a VF what is the host's otherwise, as to see all frames. Only for administrators."
    yield option("--trusted/--no-trusted", default=None, what=trusted, otherwise="no-trusted")
    isolated = "Whether it reaches only ports that aren't isolated."
    yield option("--isolated/--no-isolated", default=None, what=isolated, otherwise="no-isolated")
    link = "Whether frames pass; without, the endpoint stays and its device is down."
    yield option("--link/--no-link", default=None, what=link, otherwise="link")
    length = "How many frames the device may queue."
    length_type = click.IntRange(1, 100_000)
    yield option("--tx-queue-length", type=length_type, metavar="FRAMES", what=length, otherwise="the kernel's")


def _limit_options(*, changing: bool) -> Iterator[Callable[[_Function], _Function]]:
    least = 0 if changing else 1  # 0 takes a limit off
    rate = read_quantity("bits per second", least, _MAX_RATE_BPS)
    pps = read_quantity("frames per second", least, _MAX_UINT32)
    burst = read_quantity("bytes", least, _MAX_UINT32)
    for direction, deed in _DIRECTIONS.items():
        suffix = direction.replace("_", "-")
        about = {
            f"--rate-{suffix}": (rate, "BIT/S", f"How much {deed} in a second: 100M, 1G."),
            f"--burst-{suffix}": (burst, "BYTES", "How much of that may pass at once: 64k. [default: vifd's choice]"),
            f"--pps-{suffix}": (pps, "FRAMES/S", f"How many frames {deed} in a second."),
        }
        for name, (quantity, metavar, text) in about.items():
            yield port_option(name, callback=quantity, section="Limits", metavar=metavar, help=text)
    text = "How much the VM may send in a second whatever others do, where the card can promise that."
    yield port_option("--min-rate-from-vm", callback=rate, section="Limits", metavar="BIT/S", help=text)


def port_options(*, changing: bool) -> Callable[[_Function], _Function]:
    """Make what gives a command the options that `Port` is made of.

    Args:
        changing: Whether the port is there already.
    """

    def decorate(function: _Function) -> _Function:
        for option in reversed([*_port_options(changing=changing), *_limit_options(changing=changing)]):
            function = option(function)
        return function

    return decorate


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What the options say. None, or empty: nothing."""

    mtu: int | None
    addresses: Sequence[str]
    public_addresses: Sequence[str]
    guard: bool | None
    vlan: int | None
    vlan_qos: int | None
    vlan_protocol: str | None
    trunk: Sequence[int]
    native_vlan: int | None
    trusted: bool | None
    isolated: bool | None
    link: bool | None
    tx_queue_length: int | None
    rate_from_vm: int | None
    burst_from_vm: int | None
    pps_from_vm: int | None
    min_rate_from_vm: int | None
    rate_to_vm: int | None
    burst_to_vm: int | None
    pps_to_vm: int | None

    @classmethod
    def take(cls, options: dict[str, Any]) -> Self:
        """Take the port's options out of a command's.

        Raises:
            click.UsageError: They contradict each other.
        """
        port = cls(**{field.name: options.pop(field.name) for field in fields(cls)})
        if port.vlan is not None and port.trunk:
            raise click.UsageError("--vlan and --trunk exclude each other: a port is in a VLAN, or a trunk.", _context())
        if port.native_vlan is not None and not port.trunk:
            raise click.UsageError("--native-vlan goes with --trunk.", _context())
        if port.vlan is None and (port.vlan_qos is not None or port.vlan_protocol is not None):
            raise click.UsageError("--vlan-qos and --vlan-protocol go with --vlan.", _context())
        return port

    @property
    def has_limits(self) -> bool:
        """Whether a limit is given."""
        return any(self._limit(word, direction) is not None for word in _LIMIT_FIELDS for direction in _DIRECTIONS)

    def to_message(self, before: LimitsSpec | None = None) -> PortSpec:
        """Make the message, with what is given and nothing else.

        Args:
            before: The limits that hold where none is given. None: none hold.
        """
        message = PortSpec(
            mtu_bytes=self.mtu or 0,
            addresses=self.addresses,
            public_addresses=self.public_addresses,
            guard=None if self.guard is None else GuardSpec(enabled=self.guard),
            isolated=self.isolated,
            link_up=self.link,
            tx_queue_length=self.tx_queue_length or 0,
            trusted=self.trusted,
        )
        if self.vlan is not None or self.trunk:
            message.vlan.CopyFrom(self._vlan())
        if self.has_limits:
            limits = self._limits(before or LimitsSpec())
            if limits.ListFields():
                message.limits.CopyFrom(limits)
        return message

    def mask(self) -> list[str]:
        """Name the message's fields that are given."""
        given = {
            "mtu_bytes": self.mtu is not None,
            "addresses": bool(self.addresses),
            "public_addresses": bool(self.public_addresses),
            "guard": self.guard is not None,
            "vlan": self.vlan is not None or bool(self.trunk),
            "isolated": self.isolated is not None,
            "link_up": self.link is not None,
            "tx_queue_length": self.tx_queue_length is not None,
            "trusted": self.trusted is not None,
            "limits": self.has_limits,
        }
        return [name for name, is_given in given.items() if is_given]

    def _vlan(self) -> VlanSpec:
        vlan = VlanSpec(vid=self.vlan or 0, trunk_vids=self.trunk, native_vid=self.native_vlan or 0, qos=self.vlan_qos or 0)
        if self.vlan_protocol is not None:
            vlan.protocol = _VLAN_PROTOCOLS[self.vlan_protocol]
        return vlan

    def _limits(self, before: LimitsSpec) -> LimitsSpec:
        limits = LimitsSpec()
        limits.CopyFrom(before)
        for direction in _DIRECTIONS:
            limit = getattr(limits, direction)
            if self._limit("rate", direction) == 0:
                limit.burst_bytes = 0  # it belongs to the rate
            for word, name in _LIMIT_FIELDS.items():
                value = self._limit(word, direction)
                if value is not None:
                    setattr(limit, name, value)
            if not limit.ListFields():
                limits.ClearField(direction)
        return limits

    def _limit(self, word: str, direction: str) -> int | None:
        value: int | None = getattr(self, f"{word}_{direction}", None)  # a minimum is there for one of them alone
        return value


def _context() -> click.Context:
    return click.get_current_context()
