from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sriov_host import FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """Two PFs, eth0 and eth1, with two VFs each."""
    return FakeHost(tmp_path)
