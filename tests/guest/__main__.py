"""Build the guest: `python -m tests.guest`."""

from __future__ import annotations

import sys

from tests.guest import image
from tests.guest.packages import PackageError


def main() -> int:
    """Build it, or say in one line why that can't be done."""
    try:
        built = image.build()
    except PackageError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    print(f"guest: {built.kernel} {built.initramfs.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
