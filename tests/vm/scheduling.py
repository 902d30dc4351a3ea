"""As a plugin of pytest-xdist's: a file's tests run one after the other, and all that take the machine's hardware do."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.vm.selection import OWN


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return OWN if nodeid.startswith(OWN) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Give what hands tests to the processes."""
    return _Scheduling(config, log)
