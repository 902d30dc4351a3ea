import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pytest

from tests.support.children import child
from tests.unit.client.fake_vifd import FakeVifd, make_status
from vifclient.messages import Lifetime, ProcessLifetime

VIFCTL = [sys.executable, "-c", "from vifclient.cli import main; main()"]


@pytest.fixture(autouse=True)
def _environment(vifd: FakeVifd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIFD_SOCKET", vifd.socket_path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # os.environ, and not what readline adds to this process's own
    argv, given = [*VIFCTL, "run", *arguments], dict(os.environ)
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, env=given)


def start(*arguments: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return child([*VIFCTL, "run", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_gets_fds_values_and_environment(vifd: FakeVifd) -> None:
    script = 'for fd in {fd} {fds}; do :; done; test -c /proc/self/fd/{fd} && echo "{fds} {mac} {ifname} {mtu} {id} {json}"; env'
    done = run("default", "--queues", "2", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    fds, mac, ifname, mtu, endpoint_id, rest = done.stdout.splitlines()[0].split()
    assert len(fds.split(":")) == 2
    assert (mac, ifname, mtu, rest) == ("52:54:00:12:34:56", "vdtfake", "1500", "{json}")
    environment = dict(line.split("=", 1) for line in done.stdout.splitlines()[1:] if "=" in line)
    assert {name: value for name, value in environment.items() if name.startswith("VIF_")} == {
        "VIF_FDS": fds, "VIF_MAC": mac, "VIF_IFNAME": ifname, "VIF_MTU": mtu, "VIF_ENDPOINT_ID": endpoint_id,
    }  # fmt: skip
    assert vifd.calls == ["RequestEndpoint", "GetHostInfo"]


@pytest.mark.parametrize("verbosity", [None, "DEBUG"])
def test_the_command_has_the_environment_that_vifctl_was_given(monkeypatch: pytest.MonkeyPatch, verbosity: str | None) -> None:
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    if verbosity is not None:
        monkeypatch.setenv("GRPC_VERBOSITY", verbosity)
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    seen = json.loads(run("default", "--", *show).stdout)
    assert {name: value for name, value in seen.items() if not name.startswith("VIF_")} == dict(os.environ)


def test_the_endpoint_lives_as_long_as_the_caller_which_becomes_the_command(vifd: FakeVifd) -> None:
    with start("default", "--", "sh", "-c", "echo $$") as vifctl:
        out, err = vifctl.communicate(timeout=60)
    assert (int(out), err) == (vifctl.pid, "")
    assert vifd.requests[0].lifetime == Lifetime(process=ProcessLifetime(pid=0))


def test_the_command_has_its_queues_and_what_vifctl_was_given_and_nothing_else(vifd: FakeVifd) -> None:
    done = run("default", "--", "sh", "-c", "echo $VIF_FDS; ls /proc/$$/fd; grep SigIgn /proc/$$/status")
    fds, *numbers, ignored = done.stdout.splitlines()
    assert sorted(map(int, numbers)) == sorted([0, 1, 2, *map(int, fds.split(":"))])
    of_python = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))  # which the interpreter ignores
    assert int(ignored.split()[1], 16) & of_python == 0


@pytest.mark.parametrize(
    ("command", "status"),
    [(["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], -9), (["/nonexistent"], 127), (["/etc/passwd"], 126)],
)
def test_the_status_is_the_commands(vifd: FakeVifd, command: list[str], status: int) -> None:
    assert run("default", "--", *command).returncode == status


def test_a_signal_before_the_command_ends_vifctl(vifd: FakeVifd) -> None:
    vifd.hang.clear()
    with start("default", "--", "touch", "/nonexistent/file") as vifctl:
        assert vifd.entered.wait(30)
        vifctl.send_signal(signal.SIGTERM)
        assert vifctl.wait(30) == -signal.SIGTERM
    vifd.hang.set()


def test_a_request_that_fails_starts_nothing(vifd: FakeVifd) -> None:
    vifd.failures.append(make_status(grpc.StatusCode.INTERNAL, "no", "KERNEL"))
    done = run("default", "--", "echo", "started")
    assert (done.returncode, done.stdout) == (125, "")
    assert "vifctl: no" in done.stderr


def test_no_fd_socket(vifd: FakeVifd) -> None:
    vifd.fd_socket_path = ""
    done = run("default", "--", "true")
    assert done.returncode == 125
    assert "hands no queues over" in done.stderr


def test_nobody_there(folder: Path) -> None:
    done = run("default", "--socket", str(folder / "none"), "--json", "--", "true")
    assert done.returncode == 125
    assert '"code": "UNAVAILABLE"' in done.stderr


def test_ctrl_c_reaches_the_command_once(vifd: FakeVifd) -> None:
    script = "n=0; trap 'n=$((n+1))' INT; echo up; read line; read line; echo got $n; exit 3"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [*VIFCTL, "run", "default", "--", "bash", "-c", script])
    read_until(terminal, "up")
    os.write(terminal, b"\x03")
    os.write(terminal, b"\n\n\n")
    seen = read_until(terminal, "got")
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert "got 1" in seen
    assert os.waitstatus_to_exitcode(status) == 3


def read_until(terminal: int, word: str) -> str:
    seen = ""
    while word not in seen or not seen.endswith("\n"):
        seen += os.read(terminal, 4096).decode()
    return seen
