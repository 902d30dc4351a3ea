import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.unit.client.fake_vifd import FakeVifd, make_status

VIFCTL = [sys.executable, "-c", "from vifclient.cli import main; main()"]


@pytest.fixture(autouse=True)
def _environment(vifd: FakeVifd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIFD_SOCKET", vifd.socket_path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*VIFCTL, "run", *arguments], check=False, capture_output=True, text=True, timeout=60)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*VIFCTL, "run", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
    assert vifd.endpoints == {}
    assert vifd.calls == ["RequestEndpoint", "GetHostInfo", "ReleaseEndpoint"]


@pytest.mark.parametrize(
    ("command", "status"),
    [(["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137), (["/nonexistent"], 127), (["/etc/passwd"], 126)],
)
def test_the_status_is_the_commands_and_nothing_is_left(vifd: FakeVifd, command: list[str], status: int) -> None:
    assert run("default", "--", *command).returncode == status
    assert vifd.endpoints == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signals_are_passed_on(vifd: FakeVifd, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 5' {name}; echo up; while :; do read line <&3; done"
    # A pipe that never ends keeps the shell in read, where its trap runs at once.
    reading, writing = os.pipe()
    vifctl = start("default", "--", "sh", "-c", f"exec 3</proc/{os.getpid()}/fd/{reading}; {script}")
    assert vifctl.stdout is not None
    assert vifctl.stdout.readline() == "up\n"
    vifctl.send_signal(number)
    out, err = vifctl.communicate(timeout=30)
    os.close(reading)
    os.close(writing)
    assert (vifctl.returncode, out, err) == (5, f"got {name}\n", "")
    assert vifd.endpoints == {}


def test_a_signal_before_the_command_stops_vifctl(vifd: FakeVifd) -> None:
    vifd.hang.clear()
    vifctl = start("default", "--", "touch", "/nonexistent/file")
    assert vifd.entered.wait(30)
    vifctl.send_signal(signal.SIGTERM)
    vifd.hang.set()
    _, err = vifctl.communicate(timeout=30)
    # The request may have ended before the signal came to Python: then the command runs and gets it.
    assert vifctl.returncode in {128 + signal.SIGTERM, 1}, err
    assert vifd.endpoints == {}
    assert vifd.calls[-1] == "ReleaseEndpoint"


def test_a_request_that_fails_releases_all_the_same(vifd: FakeVifd) -> None:
    vifd.failures.append(make_status(grpc.StatusCode.INTERNAL, "no", "KERNEL"))
    done = run("default", "--", "true")
    assert done.returncode == 125
    assert "vifctl: no" in done.stderr
    assert vifd.calls == ["RequestEndpoint", "ReleaseEndpoint"]


def test_no_fd_socket(vifd: FakeVifd) -> None:
    vifd.fd_socket_path = ""
    done = run("default", "--", "true")
    assert done.returncode == 125
    assert "hands no queues over" in done.stderr
    assert vifd.endpoints == {}


def test_nobody_there(folder: Path) -> None:
    done = run("default", "--socket", str(folder / "none"), "--json", "--", "true")
    assert done.returncode == 125
    assert '"code": "UNAVAILABLE"' in done.stderr


def test_a_release_that_fails_is_told_and_leaves_the_status(vifd: FakeVifd) -> None:
    endpoint_id = "3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61"
    vifctl = subprocess.Popen(
        [*VIFCTL, "run", "default", "--id", endpoint_id, "--", "sh", "-c", "echo up; read line; exit 7"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert vifctl.stdout is not None
    vifctl.stdout.readline()
    vifd.failures.append(make_status(grpc.StatusCode.INTERNAL, "no", "KERNEL"))
    _, err = vifctl.communicate("\n", timeout=30)
    assert vifctl.returncode == 7
    assert f"the endpoint {endpoint_id} is left behind: no" in err
    assert f"vifctl release {endpoint_id}" in err


def test_ctrl_c_reaches_the_command_once(vifd: FakeVifd) -> None:
    """On a terminal the kernel sends SIGINT to both: vifctl must not add a second one."""
    script = "n=0; trap 'n=$((n+1))' INT; echo up; read line; read line; echo got $n; exit 3"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [*VIFCTL, "run", "default", "--", "bash", "-c", script])
    seen = read_until(terminal, "up")
    os.write(terminal, b"\x03")
    os.write(terminal, b"\n\n\n")
    seen = read_until(terminal, "got")
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert "got 1" in seen
    assert os.waitstatus_to_exitcode(status) == 3
    assert vifd.endpoints == {}


def read_until(terminal: int, word: str) -> str:
    seen = ""
    while word not in seen or not seen.endswith("\n"):
        seen += os.read(terminal, 4096).decode()
    return seen
