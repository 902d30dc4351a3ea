"""Numbers with units, as people write and read them: 100M, "100 Mbit/s". All prefixes are decimal, as bit rates have them."""

import re
from decimal import Decimal

import click

_PREFIXES = {"T": 10**12, "G": 10**9, "M": 10**6, "k": 10**3}
_WRITTEN = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,12})?)([kmgt]?)", re.IGNORECASE)
_SHOWN_DIGITS = 3  # after the point; what needs more is shown without a prefix


class Quantity(click.ParamType):
    """A whole number with a decimal prefix: 64k is 64,000.

    Args:
        unit: What is counted, in the plural: "bytes".
        least: The smallest that is allowed.
        most: The largest.
    """

    name = "quantity"

    def __init__(self, unit: str, least: int, most: int) -> None:
        self._unit, self._least, self._most = unit, least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Turn what was written into a number."""
        written = _WRITTEN.fullmatch(str(value))
        if written is None:
            self.fail(f"{str(value)!r} is no number of {self._unit}: write 1500, 64k, 100M or 1.5G", param, ctx)
        number = Decimal(written[1]) * next((n for prefix, n in _PREFIXES.items() if prefix.lower() == written[2].lower()), 1)
        if number != int(number):
            self.fail(f"{value} is no whole number of {self._unit}", param, ctx)
        if not self._least <= number <= self._most:
            self.fail(f"{value} is not {self._least} to {self._most} {self._unit}", param, ctx)
        return int(number)


def show_quantity(number: int, unit: str) -> str:
    """Write a number with the prefix that suits it, and exactly.

    Args:
        number: The number.
        unit: What is counted: "bit/s".

    Returns:
        Text for people: "1.5 Gbit/s".
    """
    for prefix, factor in _PREFIXES.items():
        if number >= factor and number * 10**_SHOWN_DIGITS % factor == 0:
            return f"{(Decimal(number) / factor).normalize():f} {prefix}{unit}"
    return f"{number} {unit}"
