import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.client.fake_vifd import FakeVifd
from vifclient import Client
from vifclient.retry import RetryPolicy

# Fast enough for tests, and still every step of the policy.
QUICK_RETRY = RetryPolicy(initial_delay_s=0.001, max_delay_s=0.01)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets: sun_path ends after 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="vifc-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIFD_SOCKET", "VIFD_FD_SOCKET", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def vifd(folder: Path) -> Iterator[FakeVifd]:
    server = FakeVifd(folder)
    yield server
    server.close()


@pytest.fixture
def client(vifd: FakeVifd) -> Iterator[Client]:
    with Client(vifd.socket_path, timeout_s=10, retry=QUICK_RETRY) as one:
        yield one
