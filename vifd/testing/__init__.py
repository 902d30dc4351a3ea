"""For tests of what stands on either side of vifd.

    FakeDaemon                  a vifd inside a test, for authors of hypervisor drivers; pytest's fixture `vifd_fake` has one
    NetworkDriverConformance    tests of a network driver, for its author to derive from

The command `vif-sanity` tests a whole daemon, ours or another's, by its socket. docs/conformance.md has an example of each.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vifd.testing.conformance import NetworkDriverConformance
    from vifd.testing.daemon import FakeDaemon

__all__ = ["FakeDaemon", "NetworkDriverConformance"]

_HOMES = {"FakeDaemon": "vifd.testing.daemon", "NetworkDriverConformance": "vifd.testing.conformance"}


def __getattr__(name: str) -> object:
    # pytest loads the plugin beside this in every run where vifd is installed: neither grpc nor the daemon for nothing.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
