"""Where the command `vifd` begins."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Run the command; returns its exit status.

    What it imports stays, and the garbage collector would walk through it again and again: an eighth of the time. Once all is
    there, the daemon turns it on again, and spares it that for good.
    """
    gc.disable()
    from vifd import command  # noqa: PLC0415  not before the collector is off

    return command.main()


if __name__ == "__main__":
    sys.exit(main())
