import pytest


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIFD_SOCKET", "VIFD_FD_SOCKET", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
