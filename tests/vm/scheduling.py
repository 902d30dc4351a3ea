"""As a plugin of pytest-xdist's: the tests of a group run one after the other (`--vm-groups FILE`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        self._groups: dict[str, str] = json.loads(config.getoption("vm_groups").read_text())

    def _split_scope(self, nodeid: str) -> str:
        return self._groups[nodeid]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the option that says where the groups are."""
    parser.addoption("--vm-groups", type=Path, required=True, help="where the group of each test is")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Give what hands tests to the processes."""
    return _Scheduling(config, log)
