"""The units, sysusers and tmpfiles files as systemd's own tools read them; none of it needs a running systemd."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[3] / "systemd"
# Without DHCP it would be 19: that takes Internet sockets with any peer (0.5), and to bind, send raw packets and signals (0.2).
# That it sees other users' processes, which lifetimes take on older kernels, is 0.2.
MAXIMUM_EXPOSURE_TENTHS = 29


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)


def read_unit(name: str) -> configparser.ConfigParser:
    # strict=False: systemd lets keys repeat; the last one stands here.
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string((UNITS / name).read_text())
    return unit


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units in a directory, with a program that exists: `verify` looks for it, and vifd isn't installed here."""
    for name in ("vifd.service", "vifd.socket"):
        text = (UNITS / name).read_text().replace("/usr/bin/vifd", "/bin/true")
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An operating system's root with nothing in it but vifd's files, where a package puts them."""
    for kind in ("sysusers", "tmpfiles"):
        folder = tmp_path / f"usr/lib/{kind}.d"
        folder.mkdir(parents=True)
        shutil.copy(UNITS / f"vifd.{kind}", folder / "vifd.conf")
    (tmp_path / "etc").mkdir()
    return tmp_path


def test_the_service_exposes_little() -> None:
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={MAXIMUM_EXPOSURE_TENTHS}", UNITS / "vifd.service")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["vifd.service", "vifd.socket"])
def test_systemd_understands_every_key(units: Path, name: str) -> None:
    done = run("systemd-analyze", "verify", "--man=no", units / name)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "drop_ins",
    [
        ["netns.conf"],
        ["direct.conf"],
        ["direct.conf", "netns.conf"],
        ["sriov.conf"],
        ["vdpa.conf"],
        ["direct.conf", "netns.conf", "sriov.conf", "vdpa.conf"],
    ],
)
def test_the_drop_ins_are_understood(units: Path, drop_ins: list[str]) -> None:
    (units / "vifd.service.d").mkdir()
    for drop_in in drop_ins:
        shutil.copy(UNITS / drop_in, units / "vifd.service.d")
    done = run("systemd-analyze", "verify", "--man=no", units / "vifd.service")
    assert (done.returncode, done.stderr) == (0, "")


def test_sriov_may_write_only_the_part_of_sysfs_that_it_needs() -> None:
    service = read_unit("sriov.conf")["Service"]
    assert (service["ReadWritePaths"], service["CapabilityBoundingSet"]) == ("/sys/bus/pci /sys/devices", "CAP_CHOWN")
    assert "ProtectKernelTunables" not in service


def test_vdpa_may_write_only_the_part_of_sysfs_that_it_needs() -> None:
    service = read_unit("vdpa.conf")["Service"]
    assert (service["ReadWritePaths"], service["CapabilityBoundingSet"]) == ("-/sys/bus/vdpa /sys/devices", "CAP_CHOWN")
    assert service["DeviceAllow"] == "char-vhost-vdpa rw"


def test_only_the_main_process_is_asked_to_stop() -> None:
    # The helper must outlive what is in flight: control-group would end both at once.
    assert read_unit("vifd.service")["Service"]["KillMode"] == "mixed"


def test_systemd_gives_no_directory_of_vifds_to_root() -> None:
    # It would at each start, with all that is in them, and vifd has no capability to take them back.
    assert not read_unit("vifd.service")["Service"].keys() & {"RuntimeDirectory", "StateDirectory", "CacheDirectory"}


def test_a_reload_reaches_a_process_that_is_not_root() -> None:
    assert read_unit("vifd.service")["Service"]["ExecReload"].startswith("+")


def test_only_the_group_may_connect() -> None:
    socket = read_unit("vifd.socket")["Socket"]
    assert (socket["SocketGroup"], socket["SocketMode"]) == ("vifd", "0660")


def test_the_two_sockets_differ_in_type() -> None:
    # All sockets of a unit share one name, so the type is what tells them apart.
    socket = read_unit("vifd.socket")["Socket"]
    assert socket["ListenStream"] == "/run/vifd/vifd.sock"
    assert socket["ListenSequentialPacket"] == "/run/vifd/fd.sock"


def test_sysusers_makes_the_users_and_their_groups(root: Path) -> None:
    done = run("systemd-sysusers", f"--root={root}", "vifd.conf")
    assert done.returncode == 0, done.stderr
    users = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    homes = {name: (home, shell) for name, _, _, _, _, home, shell in users}
    assert homes == {"vifd": ("/var/lib/vifd", "/usr/sbin/nologin"), "vifd-dhcp": ("/", "/usr/sbin/nologin")}
    assert {line.split(":")[0] for line in (root / "etc/group").read_text().splitlines()} == {"vifd", "vifd-dhcp"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_tmpfiles_makes_the_directories(root: Path) -> None:
    assert run("systemd-sysusers", f"--root={root}", "vifd.conf").returncode == 0
    done = run("systemd-tmpfiles", f"--root={root}", "--create", "vifd.conf")
    assert (done.returncode, done.stderr) == (0, "")
    for private in ("var/lib/vifd", "run/vifd/vifd.sock.d"):
        found = (root / private).stat()
        assert (found.st_mode & 0o777, found.st_uid != 0) == (0o700, True)
    # Each of the two writes its own, and reads the other's; nobody else does either.
    hosts, leases = (root / "run/vifd/vifd.sock.dhcp" / name for name in ("hosts", "leases"))
    assert (hosts.stat().st_mode & 0o777, leases.stat().st_mode & 0o777) == (0o750, 0o750)
    assert (hosts.stat().st_uid, hosts.stat().st_gid) == (leases.stat().st_gid, leases.stat().st_uid)
    runtime = (root / "run/vifd").stat()
    # Whoever may connect is in the group: only the owner may put things there or take them away.
    assert (runtime.st_mode & 0o777, runtime.st_uid) == (0o755, 0)
