"""The example's command line; what it does to machines is in tests/e2e."""

import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from vifclient import Client, HypervisorDriver, Interface, VirtualMachine
from vifd.testing import FakeDaemon

CHECKOUT = Path(__file__).resolve().parents[3]
EXAMPLE = CHECKOUT / "client" / "examples" / "qemu_driver.py"
VM = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"

Run = Callable[..., int]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("qemu_driver", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(example: ModuleType, vifd_fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["qemu_driver.py", "--socket", vifd_fake.socket, *arguments])
        status: int = example.main()
        return status

    return run


def written_commands() -> list[str]:
    """Find every command line of the example that README and its own help show."""
    text = (CHECKOUT / "README.md").read_text() + EXAMPLE.read_text()
    return re.findall(r"^(?:client/examples/)?qemu_driver\.py (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("command", written_commands())
def test_what_is_written_is_understood(example: ModuleType, command: str) -> None:
    assert example._parse(shlex.split(command)).command == command.split(maxsplit=1)[0]


def test_there_is_something_written() -> None:
    assert {command.split(maxsplit=1)[0] for command in written_commands()} == {
        "start", "list", "hot-plug", "hot-unplug", "stop", "recover",
    }  # fmt: skip


def test_what_a_hypervisor_has_to_say_fits_on_a_screen(example: ModuleType) -> None:
    methods = [getattr(example.QemuDriver, name) for name in HypervisorDriver.__abstractmethods__]
    assert len(methods) == 6
    assert sum(len(inspect.getsource(method).splitlines()) for method in methods) <= 60


def test_an_interface_without_network_is_a_mistake(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("hot-plug", "web")
    assert (caught.value.code, "--network" in capsys.readouterr().err) == (2, True)


def test_where_machines_are_outlives_a_login(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "runtime"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    assert run("list") == 0
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in folder.iterdir()] == ["state"]
    assert (folder / "state" / "qemu_driver").stat().st_mode & 0o777 == 0o700


def test_why_a_machine_cannot_be_asked_is_told(
    run: Run, example: ModuleType, vifd_fake: FakeDaemon, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(vifd_fake.socket) as client:
        driver = example.QemuDriver(client, folder)
        vm, interface = VirtualMachine(uuid=VM, name="web"), Interface(network="default")
        client.request_endpoint(driver.make_request(vm, interface))
        loop = folder / f"{VM}.qmp"  # nobody can say whether a QEMU is behind it
        loop.symlink_to(loop)
        assert run("--directory", str(folder), "recover") == 1
        assert [one.endpoint_id for one in client.list_endpoints()] == [interface.endpoint_id]
    summary, *reasons = capsys.readouterr().err.splitlines()
    assert summary.startswith("qemu_driver.py: some VMs' endpoints could not be brought in order")
    assert len(reasons) == 1
    assert "can't be reached on" in reasons[0]
