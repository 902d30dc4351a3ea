"""PCI functions as network drivers hand them out: lists of them in a configuration, and what is known of each. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from msgspec import Struct

from vifd.errors import Violation
from vifd.kernel.sriov.inventory import Function, PhysicalFunction, is_address
from vifd.model import State

_ADDRESSES_A_LIST = 4096

#: By PCI address, the state of the endpoint that has the function.
Taken = Mapping[str, State]


class FunctionState(StrEnum):
    """Who has a VF."""

    FREE = "free"
    IN_USE = "in_use"
    TAKEN = "taken"
    QUARANTINED = "quarantined"
    EXCLUDED = "excluded"


class FunctionStatus(Struct, frozen=True):
    """What is known of a VF.

    Args:
        function: the VF.
        state: who has it.
        message: why; empty: there is no more to say.
        endpoint_id: the endpoint that has it; empty: none, or one that is not to be told of.
    """

    function: Function
    state: FunctionState = FunctionState.FREE
    message: str = ""
    endpoint_id: str = ""


class PfStatus(Struct, frozen=True):
    """What is known of a PF that a network names.

    Args:
        name: as the configuration has it.
        pf: the PF; None: there is none.
        functions: its VFs, by number.
        message: what is wrong with it; empty: nothing.
    """

    name: str
    pf: PhysicalFunction | None
    functions: Sequence[FunctionStatus] = ()
    message: str = ""


def expand(texts: Sequence[str]) -> tuple[str, ...]:
    """Give the addresses that a list names: each by itself, or "0000:03:10.0-0000:03:11.4" for all from one to another.

    Raises:
        ValueError: it can't be read; the text says why.
    """
    found: dict[str, None] = {}
    for text in texts:
        found |= dict.fromkeys(_expand(text))
        if len(found) > _ADDRESSES_A_LIST:
            raise ValueError(f"names more than {_ADDRESSES_A_LIST} PCI addresses")
    return tuple(found)


def check(key: str, texts: Sequence[str]) -> Iterator[Violation]:
    """Say what is wrong with a key that lists PCI addresses."""
    try:
        expand(texts)
    except ValueError as error:
        yield Violation(key, str(error))


def _expand(text: str) -> Iterator[str]:
    first, dash, last = (part.strip() for part in text.partition("-"))
    for part in (first, last) if dash else (first,):
        if not is_address(part):
            raise ValueError(f'{text!r} is no PCI address, like "0000:03:10.2", nor a range of them with "-" in between')
    begin, end = _number(first), _number(last or first)
    if begin > end:
        raise ValueError(f"{text!r} ends before it begins")
    if end - begin >= _ADDRESSES_A_LIST:
        raise ValueError(f"{text!r} has more than {_ADDRESSES_A_LIST} PCI addresses")
    return (_address(number) for number in range(begin, end + 1))


def _number(address: str) -> int:
    """Give an address's place among all: the domain, 8 bits of bus, 5 of device, 3 of function (pci_regs.h, PCI_DEVID)."""
    domain, bus, rest = address.split(":")
    device, function = rest.split(".")
    return (int(domain, 16) << 16) | (int(bus, 16) << 8) | (int(device, 16) << 3) | int(function)


def _address(number: int) -> str:
    return f"{number >> 16:04x}:{number >> 8 & 0xFF:02x}:{number >> 3 & 0x1F:02x}.{number & 7}"
