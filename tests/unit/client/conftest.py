import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.client.fake_vifd import FakeVifd
from vifclient import Client
from vifclient.cli import run_vifctl
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


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Vifctl = Callable[..., Result]


@pytest.fixture
def vifctl(vifd: FakeVifd, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Vifctl]:
    monkeypatch.setenv("VIFD_SOCKET", vifd.socket_path)

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        status = run_vifctl(list(arguments))
        return Result(status, *capfd.readouterr())

    return run
