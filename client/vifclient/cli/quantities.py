"""Numbers with units, as people write and read them: 100M, "100 Mbit/s", 30s. Prefixes are decimal, as bit rates have them."""

import re
from collections.abc import Callable
from decimal import Decimal

import click

_PREFIXES = {"T": 10**12, "G": 10**9, "M": 10**6, "k": 10**3}
_WRITTEN = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,12})?)([kmgt]?)", re.IGNORECASE)
_TIMES = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)")
_SHOWN_DIGITS = 3  # after the point; what needs more is shown without a prefix


def read_quantity(unit: str, least: int, most: int) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """Make the callback of an option that is a whole number with a decimal prefix: 64k is 64,000.

    Args:
        unit: What is counted, in the plural: "bytes".
        least: The smallest that is allowed.
        most: The largest.

    Returns:
        The callback.
    """

    def read(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
        if value is None:
            return None
        written = _WRITTEN.fullmatch(value)
        if written is None:
            raise click.BadParameter(f"{value!r} is no number of {unit}: write 1500, 64k, 100M or 1.5G")
        number = Decimal(written[1]) * next((n for prefix, n in _PREFIXES.items() if prefix.lower() == written[2].lower()), 1)
        if number != int(number):
            raise click.BadParameter(f"{value} is no whole number of {unit}")
        if not least <= number <= most:
            raise click.BadParameter(f"{value} is not {least} to {most} {unit}")
        return int(number)

    return read


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


def read_duration(least_s: int, most_s: int) -> Callable[[click.Context, click.Parameter, str | None], Decimal | None]:
    """Make the callback of an option that is a time: 30s, 5m, 2h, 1d; without a unit, in seconds.

    Args:
        least_s: The shortest that is allowed, in seconds.
        most_s: The longest.

    Returns:
        The callback; it gives seconds.
    """

    def read(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Decimal | None:
        if value is None:
            return None
        written = _TIME.fullmatch(value)
        if written is None:
            raise click.BadParameter(f"{value!r} is no time: write 30s, 5m, 2h or 1d")
        seconds = Decimal(written[1]) * _TIMES[written[2] or "s"]
        if not least_s <= seconds <= most_s:
            raise click.BadParameter(f"{value} is not {show_duration(least_s)} to {show_duration(most_s)}")
        return seconds

    return read


def show_duration(seconds: Decimal | int) -> str:
    """Write a time in the largest unit of which it is a whole number: "5 min"."""
    unit = next((unit for unit, length in _TIMES.items() if seconds >= length and seconds % length == 0), "s")
    number = Decimal(seconds) / _TIMES[unit]
    return f"{number.normalize():f} {'min' if unit == 'm' else unit}"
