import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import short_directory
from tests.support.sockets import ordinary_user
from vifd import __version__
from vifd.command import main

BRIDGE = '[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"\n'
OURS = '[daemon]\nuser = "nobody"\nsocket_group = "root"\n'


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vifd", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vifd.toml"


def check(path: Path, text: str) -> int:
    path.write_text(text)
    path.chmod(0o644)
    return main(["--check-config", "--config", str(path)])


def test_help_says_what_there_is() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in done.stdout for word in ("--config", "--check-config", "--fake", "--socket", "--fd-socket", "vifd --fake"))


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"vifd {__version__}\n"


COLLECTIONS = """
import gc, sys
from vifd.__main__ import main
gc.callbacks.append(lambda phase, info: print(phase))
sys.argv = ["vifd", "--version"]
main()
"""


def test_the_collector_does_not_walk_through_what_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTIONS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vifd {__version__}\n", "")


SERVES = """
import gc, sys
from vifd import daemon, systemd

class Notifier(systemd.Notifier):
    def ready(self, status):
        print(gc.isenabled(), gc.get_freeze_count() > 10_000)
        sys.exit()

daemon.Notifier = Notifier
from vifd.__main__ import main
sys.argv = ["vifd", *sys.argv[1:]]
main()
"""


def test_the_collector_works_when_it_serves() -> None:
    with short_directory() as directory:
        argv = [sys.executable, "-c", SERVES, "--fake", "--socket", f"{directory}/s", "--fd-socket", f"{directory}/f"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True True\n", done.stderr


def test_an_unknown_option_is_a_matter_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--fast"])
    assert "--fast" in capsys.readouterr().err


def test_a_good_configuration_is_said_to_be_right(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(path, OURS + BRIDGE) == 0
    assert capsys.readouterr().out == "vifd: the configuration is right; networks: blue (bridge)\n"


def test_a_configuration_without_networks_is_right(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(path, OURS) == 0
    assert "networks: none" in capsys.readouterr().out


def test_every_problem_has_a_line_of_its_own(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(path, "[daemon]\nsoket = 1\nlog_level = 'loud'\n" + BRIDGE.replace("br-blue", "%d")) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(":")[1].strip() for line in err.splitlines()] == [
        "daemon.soket",
        "daemon.log_level",
        "networks.blue.bridge",
    ]


def test_a_user_and_a_group_that_this_host_has_not_are_both_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(path, '[daemon]\nuser = "no-such-user"\nsocket_group = "no-such-group"\n') == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("vifd: daemon.user: this host has no user 'no-such-user'")
    assert second.startswith("vifd: daemon.socket_group: this host has no group 'no-such-group'")


def test_vifd_doesnt_serve_strangers_as_root(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(path, '[daemon]\nuser = "root"\nsocket_group = "root"\n') == 1
    assert "daemon.user: must not be root" in capsys.readouterr().err


def test_a_configuration_that_isnt_there_is_an_error(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check-config", "--config", str(path)]) == 1
    assert "can't be read" in capsys.readouterr().err


def test_fake_and_config_exclude_each_other(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text("")
    assert main(["--fake", "--config", str(path)]) == 1
    assert "exclude each other" in capsys.readouterr().err


def test_a_bridge_needs_root(capsys: pytest.CaptureFixture[str]) -> None:
    with short_directory() as folder:
        (folder / "vifd.toml").write_text(OURS + BRIDGE)
        with ordinary_user():
            assert main(["--config", str(folder / "vifd.toml")]) == 1
    assert "network blue needs root to be made" in capsys.readouterr().err


def test_the_daemon_is_taken_in_without_grpc() -> None:
    code = "import sys, vifd.daemon; sys.exit(any(name.split('.')[0] in ('grpc', 'google') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
