"""The configuration: what --check-config says of it, and what vifd serves without any."""

from __future__ import annotations

import json
import os
import secrets
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import kernel
from tests.support.asking import make
from tests.support.daemon import BIN, BLUE, Daemon, ip, network_namespace, running, short_directory, taps
from vifclient import Client, VifError
from vifd.command import main

README = Path(__file__).resolve().parents[2] / "README.md"

# One wrong thing a line: the key that has to be named, a part of the sentence, and the text.
WRONG: list[tuple[str, str, str]] = [
    ("TOML", "line 1", "= nonsense"),
    ("demon", "did you mean 'daemon'?", "[demon]"),
    ("daemon.sockett", "did you mean 'socket'?", '[daemon]\nsockett = "/run/x"'),
    ("daemon.socket", "", '[daemon]\nsocket = "relative"'),
    ("daemon.socket", "", f'[daemon]\nsocket = "/{"x" * 100}"'),
    ("daemon.fd_socket", "a path of its own", '[daemon]\nsocket = "/run/x"\nfd_socket = "/run/x"'),
    ("daemon.socket_mode", "", '[daemon]\nsocket_mode = "0668"'),
    ("daemon.socket_mode", "", "[daemon]\nsocket_mode = 432"),
    ("daemon.log_level", "", '[daemon]\nlog_level = "loud"'),
    ("daemon.user", "no user 'vifd-nobody'", '[daemon]\nuser = "vifd-nobody"'),
    ("daemon.user", "must not be root", '[daemon]\nuser = "root"'),
    ("daemon.user", "must not be root", '[daemon]\nuser = "0"'),
    ("daemon.socket_group", "no group 'vifd-nogroup'", '[daemon]\nuser = "nobody"\nsocket_group = "vifd-nogroup"'),
    ("daemon.dhcp_user", "must not be root", '[daemon]\nuser = "nobody"\nsocket_group = "nogroup"\ndhcp_user = "root"'),
    ("daemon.dhcp_user", "a user of its own", '[daemon]\nuser = "nobody"\nsocket_group = "nogroup"\ndhcp_user = "nobody"'),
    (
        "daemon.dhcp_user",
        "no user 'vifd-nobody'",
        (
            '[daemon]\nuser = "nobody"\nsocket_group = "nogroup"\ndhcp_user = "vifd-nobody"\n'
            '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\naddresses = ["10.0.0.1/24"]\ndhcp = true'
        ),
    ),
    ("networks", "table", "networks = 7"),
    (
        "networks.b.bridge",
        "network a has bridge br-x too",
        '[networks.a]\ndriver = "bridge"\nbridge = "br-x"\n[networks.b]\ndriver = "bridge"\nbridge = "br-x"\nmtu = 9000',
    ),
    ("networks.blue", "table", "[networks]\nblue = 7"),
    ("networks.Blue", "a-z", '[networks.Blue]\ndriver = "bridge"\nbridge = "br-x"'),
    ("networks.blue.driver", "is missing", '[networks.blue]\nbridge = "br-x"'),
    ("networks.blue.driver", "did you mean 'bridge'?", '[networks.blue]\ndriver = "brigde"\nbridge = "br-x"'),
    ("default_driver", "no network driver 'ovs9'", 'default_driver = "ovs9"'),
    ("networks.blue.bridge", "is missing", '[networks.blue]\ndriver = "bridge"'),
    ("networks.blue.brigde", "did you mean 'bridge'?", '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\nbrigde = "br-y"'),
    ("networks.blue.bridge", "can't name an interface", '[networks.blue]\ndriver = "bridge"\nbridge = "../br"'),
    ("networks.blue.bridge", "can't name an interface", '[networks.blue]\ndriver = "bridge"\nbridge = "br%d"'),
    ("networks.blue.bridge", "can't name an interface", '[networks.blue]\ndriver = "bridge"\nbridge = "a-name-of-16-bytes"'),
    ("networks.blue.uplink", "is the bridge itself", '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\nuplink = "br-x"'),
    ("networks.blue.mtu", "", '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\nmtu = 67'),
    ("networks.blue.mtu", "", '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\nmtu = "big"'),
    ("networks.blue.addresses", "prefix length", '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\naddresses = ["10.0.0.1"]'),
    ("networks.fast.pfs", "is missing", '[networks.fast]\ndriver = "sriov"'),
    ("networks.fast.pfs", "is no PF", '[networks.fast]\ndriver = "sriov"\npfs = ["../eth7"]'),
    ("networks.fast.vfs", "is no PCI address", '[networks.fast]\ndriver = "sriov"\npfs = ["eth7"]\nvfs = ["eth7"]'),
    (
        "networks.fast.exclude",
        "ends before it begins",
        '[networks.fast]\ndriver = "sriov"\npfs = ["eth7"]\nexclude = ["0000:03:10.2-0000:03:10.0"]',
    ),
    (
        "networks.fast.vfs",
        "network core may use the same VFs of eth7",
        '[networks.core]\ndriver = "sriov"\npfs = ["eth7"]\n[networks.fast]\ndriver = "sriov"\npfs = ["eth7"]',
    ),
    ("networks.blue.dhcp", "addresses", '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\ndhcp = true'),
    ("networks.blue.dns", "DNS server", '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\ndns = ["ns"]'),
    ("networks.blue.domain", "DNS domain", '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\ndomain = "a..b"'),
    (
        "networks.blue.pool",
        "10.0.1.0/24 is in no subnet of addresses",
        '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\naddresses = ["10.0.0.1/24"]\npool = ["10.0.1.0/24"]',
    ),
    (
        "networks.blue.pool",
        "overlaps",
        '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\naddresses = ["10.0.0.1/24"]\npool = ["10.0.0.7", "10.0.0.0/28"]',
    ),
    (
        "networks.blue.pool",
        "a pool has ranges",
        '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\naddresses = ["10.0.0.1/24"]\npool = ["10.0.0.9-10.0.0.2"]',
    ),
    (
        "networks.blue.pool",
        "no IPv4 address to hand out",
        '[networks.blue]\ndriver = "bridge"\nbridge = "br-x"\naddresses = ["10.0.0.1/24"]\npool = ["10.0.0.0/31"]',
    ),
    ("policy", "array of tables", "[policy]"),
    ("policy[0]", "exactly one of", "[[policy]]"),
    ("policy[0]", "exactly one of", "[[policy]]\nuid = 1\ngid = 1"),
    ("policy[0].uid", "", "[[policy]]\nuid = -1"),
    ("policy[0]", "no user 'vifd-nobody'", '[[policy]]\nuser = "vifd-nobody"'),
    ("policy[0].role", "", '[[policy]]\nuid = 1\nrole = "king"'),
    ("policy[0].kinds", "", '[[policy]]\nuid = 1\nkinds = ["taps"]'),
    ("policy[0].max_endpoints", "", "[[policy]]\nuid = 1\nmax_endpoints = 0"),
    ("policy[0].network", "did you mean 'networks'?", '[[policy]]\nuid = 1\nnetwork = ["*"]'),
    ("policy[0].networks", "no network 'green'", '[[policy]]\nuid = 1\nnetworks = ["green"]'),
]


def check(text: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "vifd.toml"
    path.write_text(text)
    path.chmod(0o644)
    argv = [str(BIN / "vifd"), "--check-config", "--config", str(path)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def problems(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What it says, by key."""
    lines = [line.removeprefix("vifd: ") for line in done.stderr.splitlines()]
    return {line.split(": ", 1)[0]: line.split(": ", 1)[1] for line in lines}


@pytest.mark.parametrize(("key", "sentence", "text"), WRONG, ids=[f"{key} {i}" for i, (key, _, _) in enumerate(WRONG)])
def test_a_wrong_configuration_is_told_by_its_key(tmp_path: Path, key: str, sentence: str, text: str) -> None:
    done = check(text, tmp_path)
    assert done.returncode == 1
    assert sentence in problems(done)[key]


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    done = check(
        '[daemon]\nsockett = "/x"\nlog_level = "loud"\n[networks.blue]\nmtu = 1\n[[policy]]\nuid = 1\nrole = "king"', tmp_path
    )
    assert done.returncode == 1
    assert set(problems(done)) == {"daemon.sockett", "daemon.log_level", "networks.blue.driver", "policy[0].role"}


def test_a_good_configuration_is_told_to_be_so(tmp_path: Path) -> None:
    done = check(f'[daemon]\nuser = "nobody"\nsocket_group = "nogroup"\n{BLUE}\n[[policy]]\nuser = "nobody"\n', tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "networks: blue (bridge)" in done.stdout


def test_a_file_that_is_not_there_or_unreadable_is_told(tmp_path: Path) -> None:
    argv = [str(BIN / "vifd"), "--check-config", "--config", str(tmp_path / "none.toml")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "can't be read" in done.stderr) == (1, True)
    (tmp_path / "vifd.toml").write_bytes(b"\xff\xfe")
    argv[-1] = str(tmp_path / "vifd.toml")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "can't be read" in done.stderr) == (1, True)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "vifd.toml"
    path.write_text(BLUE)
    path.chmod(mode)
    argv = [str(BIN / "vifd"), "--check-config", "--config", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "writable by root alone" in done.stderr) == (1, True)


def test_a_misspelt_key_stops_the_start_and_leaves_no_trace(tmp_path: Path) -> None:
    with short_directory() as directory, network_namespace() as netns:
        daemon = Daemon(directory, netns=netns, networks=BLUE.replace("bridge =", "brigde ="))
        before = kernel.snapshot(netns)
        done = subprocess.run(daemon.argv, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert "networks.blue.brigde: unknown key; did you mean 'bridge'?" in done.stderr
        assert kernel.snapshot(netns) == before
        assert [path.name for path in directory.iterdir()] == ["vifd.toml"]


@pytest.mark.parametrize(("netns", "path"), [("vifd-test-none", "/run/netns/vifd-test-none"), (2 * ("/proc/self/ns/uts",))])
def test_what_is_no_network_namespace_stops_the_start(netns: str, path: str) -> None:
    with short_directory() as directory:
        daemon = Daemon(directory, netns=netns)
        done = subprocess.run(daemon.argv, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, f"daemon.netns: can't enter {path}" in done.stderr) == (1, True)


def test_no_program_is_started_to_enter_a_namespace() -> None:
    told = "import sys; sys.addaudithook(lambda event, _: event in {events} and sys.exit(event))\n"
    script = told.format(events={"subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"}) + (
        "from vifd.kernel import netns; netns.enter(sys.argv[1]); print(netns.inode())"
    )
    with network_namespace() as netns:
        argv = [sys.executable, "-c", script, netns]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert (done.stderr, done.stdout.strip()) == ("", str(Path(f"/run/netns/{netns}").stat().st_ino))


def test_logs_are_json_where_they_are_wanted_so() -> None:
    with running(daemon='log_format = "json"\nlog_level = "debug"') as daemon, Client(daemon.socket) as client:
        make(client)
        assert daemon.stop() == 0
        lines = [json.loads(line) for line in daemon.log().splitlines()]
    assert any(line["message"] == "vifd serves" and line["socket"] == daemon.socket for line in lines)


def test_the_readmes_configuration_can_be_checked(tmp_path: Path) -> None:
    blocks = [block.split("```")[0] for block in README.read_text().split("```toml\n")[1:]]
    assert blocks
    for block in blocks:
        assert tomllib.loads(block)
        done = check(block, tmp_path)
        told = problems(done) if done.returncode else {}
        assert all("this host has no" in message for message in told.values()), told


_USERS = """\
vifd:x:29999:29999::/nonexistent:/usr/sbin/nologin
vifd-dhcp:x:29998:29998::/nonexistent:/usr/sbin/nologin
"""


class BareDaemon(Daemon):
    """A vifd without any configuration, on a host that has just its users and group: in a mount namespace of its own."""

    @property
    def argv(self) -> list[str]:
        users, groups = self.directory / "passwd", self.directory / "group"
        users.write_text(Path("/etc/passwd").read_text() + _USERS)
        groups.write_text(Path("/etc/group").read_text() + "vifd:x:29999:\n")
        mounts = [
            f"mount --bind {users} /etc/passwd",
            f"mount --bind {groups} /etc/group",
            "mount -t tmpfs tmpfs /run",
            "mount -t tmpfs tmpfs /var/lib",
            "if [ -d /etc/vifd ]; then mount -t tmpfs tmpfs /etc/vifd; fi",
        ]
        script = " && ".join([*mounts, f"exec {BIN / 'vifd'}"])
        return ["ip", "netns", "exec", self.netns, "unshare", "-m", "--propagation", "private", "sh", "-c", script]

    @property
    def root(self) -> Path:
        """The daemon's own view of the file system."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root")


@pytest.fixture(scope="module")
def bare() -> Iterator[BareDaemon]:
    with short_directory() as directory, network_namespace() as netns:
        daemon = BareDaemon(directory, netns=netns)
        try:
            daemon.start()
            yield daemon
            assert daemon.stop() == 0
        finally:
            daemon.kill()
            print(daemon.log())


def test_without_a_configuration_there_is_one_network_with_an_address_on_the_host(bare: BareDaemon) -> None:
    bridge = kernel.settings(bare.netns, "br-vifd")
    assert [(one["local"], one["prefixlen"]) for one in bridge["addr_info"]] == [("192.168.177.1", 24)]
    with Client(str(bare.root / "run/vifd/vifd.sock")) as client:
        (network,) = client.get_host_info().networks
        assert (network.name, network.network_driver) == ("default", "bridge")
        endpoint = make(client, network="default")
        assert [(tap["ifname"], tap["master"]) for tap in taps(bare.netns)] == [(endpoint.tap.ifname, "br-vifd")]
        client.release_endpoint(endpoint.endpoint_id)


def test_without_a_configuration_its_own_group_may_connect(bare: BareDaemon) -> None:
    for name in ("vifd.sock", "fd.sock"):
        found = (bare.root / "run/vifd" / name).stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (29999, 0o660)
    state = (bare.root / "var/lib/vifd").stat()
    assert (state.st_uid, stat.S_IMODE(state.st_mode)) == (29999, 0o700)


def test_without_a_configuration_it_runs_as_its_own_user(bare: BareDaemon) -> None:
    assert bare.process is not None
    assert os.stat(f"/proc/{bare.process.pid}").st_uid in (0, 29999)  # noqa: PTH116  root where it isn't dumpable
    assert "Uid:\t29999\t29999\t29999\t29999" in Path(f"/proc/{bare.process.pid}/status").read_text()


def test_fake_needs_no_kernel_at_all(tmp_path: Path) -> None:
    with running(fake=True) as daemon, Client(daemon.socket) as client:
        endpoint = make(client, network="default")
        assert client.get_endpoint(endpoint.endpoint_id) == endpoint
        assert daemon.stop() == 0
    with pytest.raises(VifError):
        Client(daemon.socket, timeout_s=0.2).get_host_info()


def test_several_networks_are_served_by_one_daemon() -> None:
    networks = "".join(f'[networks.n{i}]\ndriver = "bridge"\nbridge = "br-{i}"\n' for i in range(20))
    with running(networks=networks) as daemon, Client(daemon.socket) as client:
        endpoints = {f"n{i}": make(client, network=f"n{i}").tap.ifname for i in range(20)}
        masters = {tap["ifname"]: tap["master"] for tap in taps(daemon.netns)}
        assert masters == {ifname: f"br-{name[1:]}" for name, ifname in endpoints.items()}
        assert len(ip(daemon.netns, "link", "show", "type", "bridge")) == 20


def test_a_fake_vifd_takes_no_directory_of_somebody_elses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = 2_000_000_000 + secrets.randbelow(100_000_000)  # nobody's, so that the directory is this test's own
    squatted = Path(f"/tmp/vifd-{uid}")
    squatted.mkdir(mode=0o777)
    try:
        os.chown(squatted, uid + 1, -1)
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr(os, "getuid", lambda: uid)
        assert main(["--fake"]) == 1
        assert f"{squatted} belongs to uid {uid + 1}" in capsys.readouterr().err
        assert list(squatted.iterdir()) == []
    finally:
        squatted.rmdir()
