"""How long tests wait for what should come: longer where everything is slow, as in an emulated machine."""

from __future__ import annotations

import os

#: The environment's variable with the factor.
VARIABLE = "VIFD_TESTS_PATIENCE"
_FACTOR = float(os.environ.get(VARIABLE, "1"))


def patient(seconds: float) -> float:
    """Give the time to wait here for what takes less than `seconds` on an ordinary machine."""
    return seconds * _FACTOR
